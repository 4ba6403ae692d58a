"""Suites: packaged ones are valid, user YAML is held to the same keys and types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from robench.errors import ConfigError
from robench.suite import PACKAGED, Suite, _models, packaged, parse_suite, read_suite


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_suites_are_valid_and_named_as_their_file(name):
    suite = read_suite(name)
    assert suite.name == name
    assert suite.summary
    assert Suite.model_validate(suite.model_dump()) == suite


def test_full_covers_what_the_issue_asks_for():
    suite = read_suite("full")
    assert suite.limit >= 300 and suite.explain_limit >= 100
    assert len(suite.models) == 7
    assert {"benchmark", "extra"} <= set(suite.corruption.names) and suite.corruption.sequences
    assert suite.scarcity.fractions == [0.05, 0.1, 0.25, 1.0] and len(suite.scarcity.seeds) > 1
    assert {"prune(amount=0.5)", "prune(amount=0.7)", "prune(amount=0.9)", "int8"} < set(suite.compression.arms)
    assert suite.defenses and suite.efficiency and len(suite.explainers) == 3
    assert any("1" in curve.eps for curve in suite.curves)


def test_yaml_file_of_the_user_reads_like_a_packaged_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(packaged("smoke"))
    assert read_suite(str(path)) == read_suite("smoke")


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("name: a\natacks: [fgsm]", "atacks", "attacks"),
        ("name: a\ncorruption: {nmes: [jpeg]}", "corruption.nmes", "names"),
        ("name: a\ncurves: [{norm: linf, epss: ['1']}]", "curves.0.epss", "eps"),
        ("name: a\ndefenses: [{modell: m, model: m, defense: d}]", "defenses.0.modell", "model"),
        ("name: a\nscarcity: {fraction: [1.0]}", "scarcity.fraction", "fractions"),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(text, key, meant):
    with pytest.raises(ConfigError) as caught:
        parse_suite(text)
    assert f"got '{key}'" in str(caught.value)
    assert f"did you mean '{meant}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: a\nlimit: many", "limit"),
        ("name: a\nlimit: 0", "limit"),
        ("name: a\nexplain_limit: -1", "explain_limit"),
        ("name: a\nthreats: linf(0.1)", "threats"),
        ("name: a\nmodels: [[x]]", "models.0"),
        ("name: a\ncompression: [int8]", "compression"),
        ("name: a\ndefenses: [{model: m}]", "defenses.0.defense"),
        ("summary: without a name", "name"),
    ],
)
def test_wrong_types_and_missing_keys_name_the_key(text, key):
    with pytest.raises(ConfigError, match=f"the suite's {key} must be"):
        parse_suite(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a list", "just text", "3"])
def test_yaml_that_is_no_mapping_is_a_config_error(text):
    with pytest.raises(ConfigError):
        parse_suite(text)


@pytest.mark.parametrize("text", ["name: [", "a: b: c", "\tname: a"])
def test_broken_yaml_is_a_config_error(text):
    with pytest.raises(ConfigError, match="must be YAML"):
        parse_suite(text)


def test_yaml_cannot_build_objects():
    with pytest.raises(ConfigError):
        parse_suite("name: !!python/object/apply:os.getcwd []")


def test_unknown_suite_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        read_suite("smok")


def test_file_that_is_not_text_is_a_config_error(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError):
        read_suite(str(path))


def test_suite_is_frozen():
    suite = parse_suite(yaml.safe_dump({"name": "a"}))
    with pytest.raises(ValueError, match="frozen"):
        suite.name = "b"


def test_options_replace_or_add_and_curves_give_way_to_named_threats():
    quick = read_suite("quick")
    assert quick.override(limit=5).curves == quick.curves and not quick.override(limit=5).notes
    for change in ({"threats": ["linf(8/255)"]}, {"attacks": ["fgsm"]}):
        edited = quick.override(**change)
        assert edited.curves == [] and "security curves" in edited.notes[0]
    assert quick.override(threats=["l2(1)"]).threats == ["l2(1)"]
    added = quick.override(defenses=["bit_depth(bits=3)"], chains=["prune(0.5)"], ood=["noise", "noise"])
    assert [d.defense for d in added.defenses] == ["bit_depth(bits=3)"] and added.ood.sources == ["noise"]
    assert quick == read_suite("quick"), "a suite is never changed in place"


def test_only_keeps_what_belongs_to_the_scenarios():
    full = read_suite("full")
    assert full.only([]) == full
    few = full.only(["evasion", "corruption"])
    assert few.attacks == full.attacks and few.corruption == full.corruption and few.curves == full.curves
    assert not (few.scarcity.recipes or few.compression.arms or few.chains or few.explainers or few.ood.sources)
    assert not (few.efficiency or few.spatial.angles or few.robust_gap.attacks or few.calibration.split)
    with pytest.raises(ConfigError, match="did you mean 'evasion'"):
        full.only(["evasoin"])


def test_parts_that_name_other_models_are_left_out_with_a_note():
    full = read_suite("full").for_models(["digits-pgd-at", "mine"])
    assert full.models == ["digits-pgd-at", "mine"] and full.compression.models == ["digits-pgd-at"]
    assert not full.defenses and {m for chain in full.chains for m in chain.models} == {"digits-pgd-at"}
    assert any("digits-standard" in note and "compression" in note for note in full.notes)
    assert read_suite("corruption").for_models(["mine"]).corruption.reference == ""


def test_entries_must_fit_where_the_user_named_them():
    own = parse_suite("name: a\nattacks: [fgsm]")
    assert not own.adapts and own.requires("fgsm")
    packaged_one = read_suite("quick").override(attacks=["fgsm"])
    assert packaged_one.requires("fgsm") and not packaged_one.requires("noise(draws=20)")


def documented() -> dict[str, set[str]]:
    """Key of a suite -> its keys inside, as docs/suites.md says."""
    text = (Path(__file__).parent.parent / "docs" / "suites.md").read_text().partition("## Keys of a suite")[2]
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            names, inside, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
            found |= {name: set(re.findall(r"`(\w+)`", inside)) for name in re.findall(r"`(\w+)`", names)}
    return found


def test_the_documented_keys_are_those_of_the_code():
    told = documented()
    assert set(told) == set(Suite.model_fields)
    for name, field in Suite.model_fields.items():
        sections = list(_models(field.annotation))
        assert told[name] == (set(sections[0].model_fields) if sections else set()), name


def test_a_suite_knows_whether_it_is_limited_however_it_was_edited():
    own = parse_suite("name: mine\nlimit: 30\nattacks: [fgsm]\nthreats: ['linf(0.1)']\n")
    assert not own.limited and not own.override(limit=30).limited and not own.override(attacks=["pgd"]).limited
    assert own.override(limit=5).limited and own.model_copy(update={"limit": 5}).limited
    assert own.override(limit=5, threats=["linf(0.2)"]).limited and own.override(limit=5).only(["clean"]).limited
    assert not own.override(limit=5).override(limit=30).limited


def test_a_suite_that_passes_for_a_packaged_one_is_limited_where_that_is_not():
    quick = read_suite("quick")
    copied = Suite.model_validate({**quick.model_dump(), "limit": 5})
    assert copied.limited and not Suite.model_validate(quick.model_dump()).limited
    assert not Suite.model_validate({**quick.model_dump(), "limit": 5, "attacks": ["fgsm"]}).limited


@pytest.mark.parametrize(("limit", "count", "limited"), [(5, 20, True), (20, 20, False), (25, 20, False), (25, None, True)])
def test_a_limit_that_leaves_all_images_is_none(limit, count, limited):
    """The suite is declared on 30 images; the data has ``count``."""
    own = parse_suite("name: mine\nlimit: 30\n").override(limit=limit).fitted(count)
    assert own.limited == limited and own.limit == (limit if limited else 30)
