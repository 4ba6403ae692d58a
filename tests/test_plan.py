"""The plan: complete, stable, each thing once, and every unknown name refused before anything is computed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from robench import catalog
from robench.api import plan_run
from robench.errors import ConfigError
from robench.plan import Plan, Sources, expand
from robench.sources import UserModel, resolve_sources
from robench.spec import Artifact, Context, Ref, Settings
from robench.suite import PACKAGED, Suite, parse_suite, read_suite

ZOO = ("digits-standard", "digits-augmented", "digits-pgd-at", "digits-trades", "digits-vit", "digits-mlp", "digits-trap")
COLOUR = ("cifar10-standard", "cifar10-pgd-at")
SOURCES = Sources(
    "digits",
    "digits",
    {"train": "hash-of-train", "test": "hash-of-test"},
    {name: Artifact("model", Ref.of("zoo", name=name), f"1|{name}", label=name) for name in (*ZOO, *COLOUR)},
)
SMALL = """
name: small
limit: 60
models: [digits-standard, digits-pgd-at]
threats: [linf(0.1)]
attacks: [fgsm, transfer(source='digits-standard')]
corruption: {names: [gaussian_noise, rotation]}
scarcity: {recipes: [standard], fractions: [0.5, 1.0], seeds: [0, 1], steps: 30}
"""


def plan(suite: Suite | str, **more) -> Plan:
    parsed = parse_suite(suite) if isinstance(suite, str) else suite
    return expand(parsed, replace(SOURCES, data=parsed.data, data_label=parsed.data), **more)


def lineage(artifact: Artifact) -> list[Artifact]:
    return [artifact, *(a for i in artifact.inputs for a in lineage(i))]


def digests(suite: Suite | str, **more) -> set[str]:
    return {cell.digest for cell in plan(suite, **more).cells}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_suites_expand_with_unique_digests(name):
    found = [cell.digest for cell in plan(read_suite(name)).cells]
    assert len(found) == len(set(found)) > 0


def test_counts_of_a_small_suite_in_closed_form():
    found = plan(SMALL)
    # two models: clean on both splits, 2 attacks and a sentinel each, 2 corruptions; 2 fractions x 2 seeds of one recipe
    assert found.counts() == {
        "build corrupted": 2, "build trained": 4, "build predictions": 2 * 2 + 4 + 2 * 2,
        "clean": 2 * 2 + 4, "evasion": 4, "sentinel": 2, "corruption": 4,
    }  # fmt: skip


def test_every_scenario_of_full_reaches_every_model():
    cells = plan(read_suite("full")).cells
    for scenario in ("clean", "evasion", "sentinel", "corruption", "explanation", "efficiency"):
        assert {c.model.label for c in cells if c.scenario.name == scenario} >= set(ZOO), scenario
    arms = {
        c.condition for c in cells if c.model.builder.name in ("compressed", "tuned") and c.data.builder.name == "images"
    }
    assert arms == {*read_suite("full").compression.arms, "onnx_int8"}
    crossed = {c.condition for c in cells if " | corruption(" in c.condition}
    assert len(crossed) == 2 and {c.model.builder.name for c in cells if c.condition in crossed} == {"compressed"}
    assert {c.condition for c in cells if c.model.builder.name == "defended"} == {"bit_depth(bits=3)"}
    trained = {c.model.digest for c in cells if c.model.builder.name == "trained"}
    # 2 recipes x 4 fractions, label noise, 2 augmentations, a transfer and its twin from scratch, each on 3 seeds
    assert len(trained) == (2 * 4 + 1 + 2 + 2) * 3
    assert {c.scenario.name for c in cells} >= {"ood", "calibration", "spatial", "flips", "disagreement"}


def test_attacks_meet_only_the_norms_they_declare():
    met = [c.scenario.kwargs for c in plan(read_suite("full")).cells if c.scenario.name == "evasion"]
    pairs = {(Ref.parse(m["attack"]).name, m["threat"].partition("(")[0]) for m in met}
    assert {("pgd", "linf"), ("pgd", "l2")} <= pairs
    assert all(norm in catalog.ATTACKS[attack].facts["norms"] for attack, norm in pairs)


def test_compressed_and_defended_models_are_also_attacked_from_their_parent():
    cells = plan(read_suite("full")).cells
    for kind in ("compressed", "tuned", "defended"):
        models = {c.model.digest for c in cells if c.model.builder.name == kind}
        assert models, kind
        for digest in models:
            mine = [c for c in cells if c.model.digest == digest and c.scenario.name == "evasion"]
            sources = {c.extra[0].label for c in mine if c.extra}
            assert mine[0].model.inputs[0].label in sources


ARMS = "compression: {models: [digits-standard], threats: [linf(0.1)], attacks: [fgsm], corruptions: [gaussian_noise], "


def compressed_cells(arms: str, more: str = "") -> list:
    found = plan(
        SMALL.replace("attacks: [fgsm, transfer(source='digits-standard')]", "attacks: []") + ARMS + arms + "}\n" + more
    )
    return [c for c in found.cells if c.condition and c.model.builder.name in ("compressed", "tuned")]


def test_an_arm_may_be_a_chain_whose_training_is_stored_once():
    steps = "finetune(steps=5)"
    cells = compressed_cells(f'arms: ["prune(amount=0.9) | {steps}", "prune(0.9) | {steps} | int8_weights", "{steps}"]')
    last = {c.condition: c.model for c in cells}
    assert list(last) == [
        "prune(amount=0.9) | finetune(steps=5)", "prune(amount=0.9) | finetune(steps=5) | int8_weights", "finetune(steps=5)",
    ]  # fmt: skip
    tuned, rounded, dense = last.values()
    assert tuned.stored and tuned.builder.name == "tuned" and tuned.inputs[0].builder.name == "compressed"
    assert rounded.inputs[0].digest == tuned.digest and not rounded.stored
    assert dense.inputs[0].builder.name == "zoo" and dense.digest != tuned.digest
    assert {c.scenario.name for c in cells} == {"clean", "disagreement", "evasion", "sentinel", "corruption"}


def test_a_compressed_model_is_compared_with_its_parent_on_kept_predictions():
    cells = compressed_cells("explainers: [saliency], arms: [prune]", "explain_limit: 20\n")
    beside = next(c for c in cells if c.scenario.name == "disagreement")
    assert [a.builder.name for a in beside.extra] == ["predictions"] * 2
    assert [a.inputs[0].builder.name for a in beside.extra] == ["compressed", "zoo"]
    maps = next(c for c in cells if c.scenario.name == "explanation_change")
    assert maps.extra[0].builder.name == "zoo" and maps.data.builder.kwargs["limit"] == 20


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("arms: [int8_weights | finetune]", "one that leaves weights to train"),
        ("arms: [fp16 | prune | finetune]", "one that leaves weights to train"),
        ("arms: [finetune(recipe='standart')]", "did you mean 'standard'"),
        ("arms: [distill(arch='smal_cnn')]", "did you mean 'small_cnn'"),
        ("arms: [prune | scarcity(0.5)]", "a name of compressions must be a known one"),
        ("calibration: test, arms: [int8]", "apart from the test images, got 'test'"),
        ("calibration: test, arms: [finetune]", "apart from the test images, got 'test'"),
    ],
)
def test_arms_that_make_no_sense_are_refused(arms, message):
    with pytest.raises(ConfigError, match=message):
        compressed_cells(arms)


DEPLOYED = """
name: deployed
limit: 60
models: [digits-standard]
compression:
  models: [digits-standard]
  arms: [int8, onnx_int8, "prune(amount=0.5) | onnx_int8"]
  threats: [linf(0.1), l2(1.5)]
  attacks: [noise(draws=2), pgd(steps=4), ddn, robench-standard]
"""


def test_a_model_without_a_gradient_meets_its_twins_its_parent_and_queries():
    cells = [c for c in plan(DEPLOYED).cells if c.scenario.name == "evasion"]
    met = {}
    for cell in cells:
        met.setdefault((cell.condition, cell.scenario.kwargs["threat"]), set()).add(cell.scenario.kwargs["attack"])
    common = {"noise(draws=2)", "robench-standard", "transfer(source='digits-standard')"}
    assert met["int8", "linf(0.1)"] == {*common, "pgd(steps=4)"}
    lent = {*common, "through(attack='pgd(steps=4)')", "compressed-union(source='digits-standard')"}
    assert met["onnx_int8", "linf(0.1)"] == lent and met["onnx_int8", "l2(1.5)"] == {*lent, "through(attack='ddn')"}
    chained = [c for c in cells if c.condition == "prune(amount=0.5) | onnx_int8" and c.extra]
    assert {Ref.parse(c.extra[0].builder.kwargs["method"]).name for c in chained} == {"prune"}  # what the runtime took over
    twins = [c for c in plan(DEPLOYED).cells if c.scenario.name == "twin"]
    assert {c.condition for c in twins} == {"onnx_int8", "prune(amount=0.5) | onnx_int8"}
    assert all(c.model.stored for c in twins)


def test_every_compressed_model_meets_gradients_its_parent_and_queries():
    text = DEPLOYED.replace(", robench-standard", "")
    met = {c.scenario.kwargs["attack"] for c in plan(text).cells if c.condition == "int8" and c.scenario.name == "evasion"}
    from_parent = {f"{name}(source='digits-standard')" for name in ("transfer", "compressed-union")}
    assert met == {"noise(draws=2)", "pgd(steps=4)", "ddn", *from_parent}
    for asked in ("", "autoattack-rand", "robench-l0"):
        cells = plan(text.replace("noise(draws=2), pgd(steps=4), ddn", asked).replace("l2(1.5)", "l0(5)")).cells
        assert any("union" in str(c.scenario) and c.condition == "int8" for c in cells), asked


def test_an_attack_that_transfers_takes_the_parents_images_where_it_names_no_source():
    text = DEPLOYED.replace("noise(draws=2)", "compressed-union")
    met = {c.scenario.kwargs["attack"] for c in plan(text).cells if c.condition == "int8" and c.scenario.name == "evasion"}
    assert "compressed-union(source='digits-standard')" in met
    assert {c.extra[0].label for c in plan(text).cells if c.condition == "int8" and "union" in str(c.scenario)} == {
        "digits-standard"
    }


def test_the_version_of_an_attack_that_another_runs_is_part_of_the_cell(monkeypatch):
    before = digests(DEPLOYED)
    monkeypatch.setitem(catalog.ATTACKS["ddn"].facts, "version", 99)
    changed = [c for c in plan(DEPLOYED).cells if c.digest not in before]
    assert {c.scenario.kwargs["attack"] for c in changed} == {"ddn", "through(attack='ddn')"}


def test_levels_hold_each_stored_artifact_once():
    for name in PACKAGED:
        found = plan(read_suite(name))
        built = [a.digest for level in found.levels for a in level]
        assert len(built) == len(set(built))
        below = [a for c in found.cells for start in c.artifacts() for a in lineage(start)]
        assert {a.digest for a in below if a.stored} == set(built)


def test_stored_inputs_come_on_an_earlier_level():
    from robench.plan import levels as _levels
    from robench.spec import Cell

    data = Artifact("data", Ref.of("images"))
    base = Artifact("model", Ref.of("trained"), inputs=(data,), stored=True)
    between = Artifact("model", Ref.of("compressed"), inputs=(base,))
    top = Artifact("model", Ref.of("trained", seed=1), inputs=(between,), stored=True)
    cells = [Cell(Ref("clean"), "1", model, data) for model in (top, between, base)]
    assert _levels(cells) == ((base,), (top,))


def test_digests_do_not_depend_on_the_order_of_models_or_attacks():
    suite = parse_suite(SMALL)
    turned = suite.model_copy(update={"models": suite.models[::-1], "attacks": suite.attacks[::-1]})
    assert suite != turned and digests(suite) == digests(turned)


def test_display_names_do_not_change_digests():
    suite = parse_suite(SMALL)
    assert digests(suite) == digests(suite.model_copy(update={"name": "other", "summary": "x", "version": 2}))


def test_a_default_written_out_is_the_same_cell():
    one, other = (parse_suite(SMALL).model_copy(update={"attacks": [a]}) for a in ("pgd", "pgd(steps=40)"))
    short, long = ({c.version for c in plan(s).cells if c.scenario.name == "evasion"} for s in (one, other))
    assert catalog.ATTACKS["pgd"].parameters["steps"] == 40 and short == long


@pytest.mark.parametrize(
    "more",
    [{"seed": 1}, {"settings": Settings(width=32)}, {"settings": Settings(search_precision="tf32")}],
    ids=["seed", "width", "precision"],
)
def test_seed_and_settings_change_every_cell(more):
    trained = {c.digest for c in plan(SMALL).cells if c.model.builder.name == "trained"} if "seed" in more else set()
    assert not (digests(SMALL) - trained) & digests(SMALL, **more)


def test_the_run_says_where_the_search_precision_does_not_reach():
    suite = parse_suite(SMALL).model_copy(
        update={"attacks": ["pgd", "robench-standard", "autoattack-standard"], "threats": ["linf(0.1)", "l1(5)"]}
    )
    notes = [note for note in plan(suite, settings=Settings(search_precision="bfloat16")).notes if "bfloat16" in note]
    where = [note.partition(":")[0] for note in notes]
    assert sorted(where) == [f"bfloat16 in {name}" for name in (
        "autoattack-standard at l1", "autoattack-standard at linf", "robench-standard at l1",
    )]  # fmt: skip
    assert all("robench-standard (linf, l2), robench-deep (linf, l2) search with it" in note for note in notes)
    assert not any("float" in note for note in plan(suite).notes)


def test_limit_changes_cells_on_test_images_only():
    before, after = plan(SMALL).cells, plan(SMALL.replace("limit: 60", "limit: 61")).cells
    same = {c.digest for c in before} & {c.digest for c in after}
    assert same == {c.digest for c in before if c.scenario.kwargs.get("split") == "train"}


@pytest.mark.parametrize(("table", "name"), [("ATTACKS", "fgsm"), ("SCENARIOS", "evasion")])
def test_a_changed_default_or_version_changes_its_cells(monkeypatch, table, name):
    before = {c.digest for c in plan(SMALL).cells if "fgsm" in str(c.scenario)}
    entry = getattr(catalog, table)[name]
    monkeypatch.setitem(entry.__dict__, "facts", {**entry.facts, "version": 99})
    after = {c.digest for c in plan(SMALL).cells if "fgsm" in str(c.scenario)}
    assert before and not before & after
    monkeypatch.undo()
    monkeypatch.setitem(entry.__dict__, "parameters", {**entry.parameters, "brand_new": 7})
    changed = {c.digest for c in plan(SMALL).cells if "fgsm" in str(c.scenario)}
    assert not before & changed


@pytest.mark.parametrize("kind", ["CORRUPTIONS", "RECIPES", "ARCHITECTURES"])
def test_versions_of_what_an_artifact_is_made_of_change_it(monkeypatch, kind):
    name = {"CORRUPTIONS": "gaussian_noise", "RECIPES": "standard", "ARCHITECTURES": "small_cnn"}[kind]
    before = {a.digest for level in plan(SMALL).levels for a in level}
    entry = getattr(catalog, kind)[name]
    monkeypatch.setitem(entry.__dict__, "facts", {**entry.facts, "version": 99})
    after = {a.digest for level in plan(SMALL).levels for a in level}
    changed = before - after
    # one set of images and the predictions of two models on it; four trainings and their predictions
    assert len(changed) == {"CORRUPTIONS": 1 + 2, "RECIPES": 2 * 4, "ARCHITECTURES": 2 * 4}[kind]


@pytest.fixture
def named(tmp_path):
    """Models of every kind of source, by name: the digests of their artifacts."""
    files = [tmp_path / "cnn.safetensors", tmp_path / "mlp.safetensors", tmp_path / "program.pt2"]
    for path in files:
        path.write_bytes(path.name.encode())
    users = [UserModel(str(f), a) for f, a in zip(files, ("small_cnn(width=8)", "mlp", ""), strict=True)]
    trained = ["trained(arch='small_cnn', steps=3)", "trained(arch='mlp', steps=3)"]

    def digests() -> dict[str, str]:
        return {name: a.digest for name, a in resolve_sources("digits", [*ZOO, *users, *trained])[0].models.items()}

    return digests


@pytest.mark.parametrize("what", ["facts", "parameters"])
def test_an_architectures_version_and_defaults_are_part_of_every_model_made_of_it(monkeypatch, named, what):
    before, entry = named(), catalog.ARCHITECTURES["small_cnn"]
    changed = {"facts": {**entry.facts, "version": 99}, "parameters": {**entry.parameters, "brand_new": 7}}[what]
    monkeypatch.setitem(entry.__dict__, what, changed)
    after = named()
    assert before.keys() == after.keys() and len(set(before.values())) == len(before) == len(ZOO) + 5
    assert {name for name in before if before[name] != after[name]} == {
        "digits-standard", "digits-augmented", "digits-pgd-at", "digits-trades",
        "cnn.safetensors", "trained(arch='small_cnn', steps=3)",
    }  # fmt: skip


def test_a_files_unknown_architecture_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="did you mean 'small_cnn'"):
        resolve_sources("digits", [UserModel(str(path), "smal_cnn")])


def test_a_changed_default_of_a_recipe_trains_anew(monkeypatch):
    text = SMALL.replace("recipes: [standard]", "recipes: [pgd_at]")
    before = {a.digest for level in plan(text).levels for a in level if a.builder.name == "trained"}
    entry = catalog.RECIPES["pgd_at"]
    monkeypatch.setitem(entry.__dict__, "parameters", {**entry.parameters, "eps": 0.123})
    assert not before & {a.digest for level in plan(text).levels for a in level}


@pytest.mark.parametrize("kind", ["EXPLAINERS", "COMPRESSIONS", "DEFENSES"])
def test_versions_of_plug_ins_change_their_cells(monkeypatch, kind):
    suite = read_suite("smoke")
    before = digests(suite)
    name = {"EXPLAINERS": "saliency", "COMPRESSIONS": "prune", "DEFENSES": "bit_depth"}[kind]
    entry = getattr(catalog, kind)[name]
    monkeypatch.setitem(entry.__dict__, "facts", {**entry.facts, "version": 99})
    assert before - digests(suite)


def test_content_of_data_and_weights_is_part_of_the_identity():
    suite = parse_suite(SMALL)
    other = Sources(SOURCES.data, SOURCES.data_label, {**SOURCES.splits, "test": "changed"}, SOURCES.models)
    on_test = {c.digest for c in expand(suite, SOURCES).cells if c.scenario.name == "evasion"}
    assert not on_test & {c.digest for c in expand(suite, other).cells}


def test_where_a_run_computes_is_no_part_of_a_cell():
    fields = {"device", "batch_size", "threads", "root", "workers"}
    assert fields - {"workers"} <= set(Context.__dataclass_fields__)
    cell = plan(SMALL).cells[0]
    assert not fields & (set(cell.__dataclass_fields__) | set(cell.settings.__dataclass_fields__))


def changed(**update) -> Suite:
    return parse_suite(SMALL).model_copy(update=update)


@pytest.mark.parametrize(
    ("text", "wrong", "hint"),
    [
        (SMALL.replace("fgsm", "fgms"), "fgms", "fgsm"),
        (SMALL.replace("fgsm", "pgd(stpes=3)"), "stpes", "steps"),
        (SMALL.replace("gaussian_noise", "gausian_noise"), "gausian_noise", "gaussian_noise"),
        (SMALL.replace("recipes: [standard]", "recipes: [standart]"), "standart", "standard"),
        (SMALL.replace("recipes: [standard]", "arch: smal_cnn, recipes: [standard]"), "smal_cnn", "small_cnn"),
        (SMALL.replace("source='digits-standard'", "source='digits-standart'"), "digits-standart", "digits-standard"),
        (SMALL.replace("[digits-standard, digits-pgd-at]", "[digits-standart]"), "digits-standart", "digits-standard"),
        (SMALL + "explainers: [salincy]", "salincy", "saliency"),
        (SMALL + "defenses: [{model: digits-standard, defense: bit_deph}]", "bit_deph", "bit_depth"),
        (SMALL + "defenses: [{model: digits-standart, defense: bit_depth}]", "digits-standart", "digits-standard"),
        (SMALL + "compression: {models: [digits-standard], arms: [prun]}", "prun", "prune"),
        (SMALL + "compression: {models: [digits-standart], arms: [int8]}", "digits-standart", "digits-standard"),
        (SMALL + "curves: [{norm: linff, eps: ['0.1'], attacks: [fgsm]}]", "linff(0.1)", "linf"),
        (SMALL.replace("names: [gaussian", "table: digits-w1, names: [gaussian"), "digits-w1", "digits-v1"),
    ],
)
def test_unknown_names_anywhere_are_refused_with_what_was_meant(text, wrong, hint):
    with pytest.raises(ConfigError) as caught:
        plan(text)
    assert wrong in str(caught.value)
    assert hint in str(caught.value).replace(repr(wrong), "")


@pytest.mark.parametrize("threat", ["linf(8)", "linf(-1)", "linf", "linf(x)", "linf(1/0)", "l3(1)"])
def test_unusable_threats_are_refused(threat):
    with pytest.raises(ConfigError):
        plan(changed(threats=[threat]))


def test_eps_in_bytes_is_refused_with_what_was_meant():
    with pytest.raises(ConfigError, match="did you mean 8/255"):
        plan(changed(threats=["linf(8)"]))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        plan(SMALL.replace("[0.5, 1.0]", f"[{fraction}]"))


def test_scarcity_without_training_images_is_refused():
    sources = Sources("npz:x", "npz:x", {"test": "hash"}, SOURCES.models)
    with pytest.raises(ConfigError, match="train"):
        expand(parse_suite(SMALL), sources)


def test_plan_run_knows_the_zoo_and_narrows_a_suite_to_chosen_models():
    found, paths = plan_run("smoke", models=["digits-pgd-at"])
    assert paths == ()
    assert {c.model.label for c in found.cells if c.model.builder.name == "zoo"} == {"digits-pgd-at"}
    assert not [c for c in found.cells if c.model.builder.name in ("compressed", "defended")]


def test_planning_imports_no_torch():
    code = (
        "import sys; from robench.plan import Sources, expand; from robench.suite import read_suite\n"
        "from robench.spec import Artifact, Ref\n"
        f"models = {{n: Artifact('model', Ref.of('zoo', name=n), label=n) for n in {ZOO!r}}}\n"
        "plan = expand(read_suite('full'), Sources('digits', 'digits', {'train': 'a', 'test': 'b'}, models))\n"
        "assert len(plan.cells) > 100 and 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_a_model_has_one_sentinel_and_another_seed_other_samples():
    plan, _ = plan_run("full")
    watched = [(c.model.digest, c.condition) for c in plan.cells if c.scenario.name == "sentinel"]
    attacked = {(c.model.digest, c.condition) for c in plan.cells if c.scenario.name == "evasion"}
    assert len(watched) == len(set(watched)) and set(watched) == attacked
    labels = {c.data.label for c in plan_run("smoke", seed=3)[0].cells}
    assert labels == {"digits (seed 3)"}


def test_a_surrogate_of_another_class_count_is_refused_before_anything_is_computed():
    suite = parse_suite(SMALL)
    for classes in ({}, dict.fromkeys(ZOO, 10), {"digits-standard": 7}):
        assert expand(suite, replace(SOURCES, classes=classes)).cells
    known = replace(SOURCES, classes={"digits-standard": 7, "digits-pgd-at": 10})
    with pytest.raises(ConfigError, match="the source digits-standard must be the 10 of digits-pgd-at, got 7"):
        expand(suite, known)


def test_zoo_nets_come_with_data_of_their_channels_only():
    assert set(resolve_sources("digits", [])[0].models) == set(ZOO)
    with pytest.raises(ConfigError, match=r"of 3 channel\(s\), as of cifar10, got 1; use --data cifar10"):
        resolve_sources("digits", ["cifar10-standard"])


def test_the_classes_of_models_are_known_where_somebody_said_them(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"weights")
    (tmp_path / "made.py").write_text("import torch\n\ndef make():\n    return torch.nn.Flatten()\n")
    trained = ["trained(arch='small_cnn')", "trained(arch='small_cnn(num_classes=12)')"]
    told = UserModel(str(tmp_path / "net.safetensors"), arch="small_cnn(num_classes=7)", num_classes=7)
    users = [told, f"{tmp_path / 'made.py'}:make", *trained]
    found = resolve_sources("digits", users, trust=True)[0].classes
    assert {k: v for k, v in found.items() if k not in ZOO} == {
        "net.safetensors": 7, "trained(arch='small_cnn')": 10, "trained(arch='small_cnn(num_classes=12)')": 12,
    }  # fmt: skip
    assert {found[name] for name in ZOO} == {10}


@pytest.mark.parametrize(
    "change",
    [
        "attacks: [fgsm, cw]",
        "attacks: [fgsm]\ncurves: [{norm: l2, eps: ['1'], attacks: [sigma_zero]}]",
        "attacks: [fgsm]\ncompression: {models: [digits-mlp], arms: [int8], threats: [linf(0.1)], attacks: [ead]}",
    ],
)
def test_an_attack_that_knows_none_of_the_suites_norms_is_refused_not_left_out(change):
    text = f"name: t\nmodels: [digits-mlp]\nthreats: [linf(0.1)]\n{change}\n"
    with pytest.raises(ConfigError, match=r"a threat for (cw|sigma_zero|ead) must be of norm l[012], got '(linf|l2)'"):
        plan(text)
    assert plan(text.replace("[fgsm, cw]", "[fgsm]").partition("curves")[0].partition("compression")[0]).cells


def test_explanations_that_need_a_gradient_are_left_out_aloud_where_there_is_none():
    text = SMALL + "compression: {models: [digits-standard], arms: [onnx_int8], explainers: [saliency, occlusion]}"
    found = plan(text)
    (maps,) = [c for c in found.cells if c.scenario.name == "explanation_change"]
    assert maps.scenario.kwargs["explainers"] == ("occlusion",)
    assert any("saliency left out, there is no gradient" in note for note in found.notes)
