"""The section scarcity: which trainings and measurements it draws, what it shares, and what it refuses."""

from __future__ import annotations

import importlib.util

import pytest

from robench.errors import ConfigError
from robench.plan import Plan, Sources, expand
from robench.plan.scarcity import checked
from robench.sources import resolve_sources
from robench.spec import Artifact, Ref
from robench.suite import parse_suite, read_suite

SPLITS = {"train": "hash-of-train", "test": "hash-of-test"}
ARMS = """
name: arms
limit: 60
scarcity:
  recipes: [standard, augmented]
  fractions: [0.1, 1.0]
  seeds: [0, 1]
  steps: 30
  arms_at: [0.1]
  shots: [5]
  imbalances: [10]
  label_noise: [0.2]
  noises: [symmetric, asymmetric]
  augmentations: [mixup, crop(pad=2)]
  transfer: [linear_probe, lp_ft]
  threats: [linf(0.1)]
  attacks: ["apgd(steps=20, loss='margin')"]
  corruptions: [gaussian_noise]
"""


def plan(text: str, data: str = "digits") -> Plan:
    models = {"digits-mlp": Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")}
    return expand(parse_suite(text), Sources(data, data, SPLITS, models))


def changed(**values: object) -> str:
    lines = ["name: x", "scarcity:", "  recipes: [standard]", "  fractions: [1.0]"]
    return "\n".join([*lines, *(f"  {key}: {value}" for key, value in values.items())])


def test_every_arm_is_trained_on_the_same_seeds_and_measured_alike() -> None:
    found = plan(ARMS)
    # 2 recipes x 2 fractions, shots, imbalance, 2 kinds of noise, 2 augmentations; scratch, 2 transfers; 1 source
    arms, seeds = 4 + 1 + 1 + 2 + 2 + 3, 2
    assert found.counts()["build trained"] == (arms + 1) * seeds
    for scenario in ("clean", "evasion", "sentinel", "corruption"):
        cells = [c for c in found.cells if c.scenario.name == scenario]
        assert len(cells) == arms * seeds, scenario
        assert {c.seed for c in cells} == {0, 1}
    assert found.counts()["build corrupted"] == 2  # all test images, and those of the second half of the classes
    steps = {c.model.builder.kwargs["steps"] for c in found.cells}
    assert steps == {30}


def test_conditions_name_what_was_changed() -> None:
    cells = [c for c in plan(ARMS).cells if c.scenario.name == "clean" and c.seed == 0]
    assert {(c.model.label, c.condition, c.data.label) for c in cells} == {
        *((f"trained-{r}", f"scarcity(fraction={f})", "digits") for r in ("standard", "augmented") for f in (0.1, 1.0)),
        *(("trained-standard", condition, "digits") for condition in (
            "scarcity(shots=5)", "scarcity(fraction=1.0, imbalance=10.0)", "scarcity(fraction=1.0, label_noise=0.2)",
            "scarcity(fraction=1.0, label_noise=0.2, noise='asymmetric')", "scarcity(augment='mixup', fraction=0.1)",
            "scarcity(augment='crop(pad=2)', fraction=0.1)",
        )),
        *(("trained-standard", condition, "digits, second half of the classes") for condition in (
            "scarcity(fraction=0.1)", "scarcity(fraction=0.1, transfer='linear_probe')",
            "scarcity(fraction=0.1, transfer='lp_ft')",
        )),
    }  # fmt: skip


def test_a_transfer_comes_from_the_other_half_of_the_classes() -> None:
    cells = [c for c in plan(ARMS).cells if c.model.builder.kwargs["transfer"]]
    assert cells
    for cell in cells:
        target, source = cell.model.inputs
        assert target.builder.kwargs["classes"] == cell.data.builder.kwargs["classes"] == "second_half"
        assert source.builder.name == "trained" and source.inputs[0].builder.kwargs["classes"] == "first_half"
        assert source.builder.kwargs["seed"] == cell.seed and source.inputs[0].builder.kwargs["fraction"] == 1.0


def test_samples_and_trainings_have_one_seed() -> None:
    for cell in plan(ARMS).cells:
        sample = cell.model.inputs[0]
        assert cell.model.builder.kwargs["seed"] == cell.seed
        assert sample.builder.name == "images" or sample.builder.kwargs["seed"] == cell.seed


def test_a_chain_shares_the_trainings_of_the_section() -> None:
    user = "trained(arch='small_cnn', steps=30)"
    both = f"{ARMS}\nchains:\n  - {{chain: 'scarcity(fraction=0.1)', models: [\"{user}\"]}}\n"
    models = {user: resolve_sources("digits", [user])[0].models[user]}
    sources = resolve_sources("digits", [])[0]
    found = expand(parse_suite(both), Sources("digits", "digits", sources.splits, models))
    alone = expand(parse_suite(ARMS), Sources("digits", "digits", sources.splits, models))
    assert found.counts()["build trained"] == alone.counts()["build trained"]


def test_a_users_training_may_be_on_a_sample() -> None:
    text = "trained(arch='small_cnn', steps=3, fraction=0.1, label_noise=0.2, seed=4)"
    made = resolve_sources("digits", [text])[0].models[text]
    assert made.label == text and made.inputs[0].builder.kwargs["label_noise"] == 0.2
    assert (made.inputs[0].builder.kwargs["fraction"], made.inputs[0].builder.kwargs["seed"]) == (0.1, 4)
    with pytest.raises(ConfigError, match="without 'transfer'"):
        resolve_sources("digits", ["trained(transfer='lp_ft')"])
    with pytest.raises(ConfigError, match="keep their label when mirrored"):
        resolve_sources("digits", ["trained(augment='flip_crop')"])


def test_flips_are_refused_where_a_mirrored_image_may_be_another_class() -> None:
    for data in ("digits", "mnist", "folder:photos"):
        with pytest.raises(ConfigError, match=r"keep their label when mirrored, got '.*'; use 'crop', which never mirrors"):
            checked(data, "flip_crop")
        assert checked(data, "crop").name == "crop"
    assert checked("cifar10(root='x')", "flip_crop").name == "flip_crop"
    with pytest.raises(ConfigError, match="flip_crop"):
        plan(changed(augmentations="[flip_crop]"))
    assert plan(changed(augmentations="[flip_crop]"), data="cifar10").cells


def test_an_augmentation_without_its_library_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = changed(augmentations="[randaugment, mixup]")
    whole = plan(text)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "kornia" else real(name, *a))
    found = plan(text)
    assert [n for n in found.notes if "kornia is not installed; pip install 'robench[augment]'" in n]
    assert len(found.cells) == len(whole.cells) - 1 and not whole.notes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shots": "[0]"}, "shots"),
        ({"imbalances": "[1]"}, "imbalances"),
        ({"label_noise": "[1.0]"}, "label_noise"),
        ({"noises": "[uniform]"}, "noises"),
        ({"transfer": "[finetune]"}, "transfer"),
        ({"augmentations": "[mixupp]"}, "did you mean 'mixup'"),
        ({"attacks": "[\"transfer(source='digits-mlp')\"]", "threats": "[linf(0.1)]"}, "without another model"),
        ({"attacks": "[fgsm]", "threats": "[l0(3)]"}, "a threat for fgsm"),
    ],
)
def test_bad_values_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(changed(**values))


@pytest.mark.parametrize("name", ["scarcity", "scarcity-cifar10"])
def test_the_suites_have_two_recipes_three_seeds_and_all_arms(name: str) -> None:
    section = read_suite(name).scarcity
    assert len(section.recipes) >= 2 and len(section.seeds) >= 3 and len(section.fractions) >= 5
    assert set(section.transfer) == {"linear_probe", "fine_tune", "lp_ft"}
    named = {Ref.parse(a).name for a in section.augmentations}
    rest = {"rotation", "cutout", "randaugment", "trivialaugment", "mixup", "cutmix", "augmix"}
    assert named == rest | ({"flip_crop"} if name == "scarcity-cifar10" else {"crop"})
    assert section.attacks and section.threats and section.corruptions
