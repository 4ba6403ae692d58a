"""Suites: packaged ones are valid, user YAML is held to the same keys and types."""

from __future__ import annotations

import pytest
import yaml

from robench.errors import ConfigError
from robench.suite import PACKAGED, Suite, packaged, parse_suite, read_suite


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
