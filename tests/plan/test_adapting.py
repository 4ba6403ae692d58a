"""Packaged suites on other data and models: what does not fit is left out with a note, what the user named is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from robench.api import plan_run
from robench.errors import ConfigError
from robench.models.weights import fresh
from robench.sources import UserModel
from robench.suite import parse_suite, read_suite


def folder(path: Path, *, classes: int = 10, size: int = 32, splits: tuple[str, ...] = ("",)) -> Path:
    """A folder of noise, two images per class."""
    rng = np.random.default_rng(0)
    for split in splits:
        for c in range(classes):
            place = path / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(place / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, UserModel]]:
    """Kind of data -> (data, a model for it): colour photos, photos with a training split, grey photos of 3 classes."""
    root = tmp_path_factory.mktemp("own")
    found = {}
    kinds = {"colour": (10, 3, ("",)), "split": (10, 3, ("train", "test")), "grey": (3, 1, ("",))}
    for kind, (classes, channels, splits) in kinds.items():
        data = f"folder:{folder(root / kind, classes=classes, splits=splits)}" + ("(channels=1)" if channels == 1 else "")
        arch = f"small_cnn(in_channels={channels}, num_classes={classes})"
        file = root / f"{kind}.safetensors"
        safetensors.torch.save_file(fresh(arch, seed=0).state_dict(), file)
        found[kind] = (data, UserModel(str(file), arch, num_classes=classes, name="mine"))
    return found


@pytest.mark.parametrize("suite", ["smoke", "quick", "standard", "full", "corruption", "scarcity", "compression"])
@pytest.mark.parametrize("kind", ["colour", "split", "grey"])
def test_every_packaged_suite_takes_own_data_and_an_own_model(made, suite, kind):
    data, model = made[kind]
    plan, _ = plan_run(suite, models=[model], data=data)
    plain = {c.model.label for c in plan.cells if not c.condition}
    if suite == "scarcity":
        assert any("trained(" in str(c.model.builder) for c in plan.cells) == (kind == "split")
    else:
        assert plain == {"mine"}
    assert not any("digits" in str(c.scenario) or "digits" in c.data.label for c in plan.cells)
    if suite in ("smoke", "quick", "full"):
        assert any("digits-standard" in note for note in plan.notes)
    if suite == "scarcity" and kind != "split":
        assert any(note.startswith("scarcity") and "'train'" in note for note in plan.notes)


def test_a_transfer_from_a_net_of_the_data_stays(made):
    plan, _ = plan_run("quick", models={"mine": "digits-pgd-at"})
    assert any("transfer" in str(c.scenario) for c in plan.cells) and not plan.notes


def test_a_transfer_that_the_user_names_must_fit(made):
    data, model = made["colour"]
    suite = read_suite("quick").override(attacks=["transfer(source='digits-standard')"])
    with pytest.raises(ConfigError, match="digits-standard"):
        plan_run(suite, models=[model], data=data)
    with pytest.raises(ConfigError, match="digits-standart"):
        plan_run(read_suite("quick").override(attacks=["transfer(source='digits-standart')"]), models=["digits-mlp"])


def test_severity_tables_follow_the_data(made, tmp_path):
    tables = {}
    for size in (32, 64, 224):
        data = f"folder:{folder(tmp_path / str(size), size=size)}"
        plan, _ = plan_run(read_suite("standard").only(["corruption"]), models=["cifar10-standard"], data=data)
        tables[size] = {c.scenario.kwargs["table"] for c in plan.cells if c.scenario.name == "corruption"}
    assert tables == {32: {"cifar-v1"}, 64: {"tiny-v1"}, 224: {"imagenet-v1"}}
    plan, _ = plan_run(read_suite("standard").only(["corruption"]))
    assert {c.scenario.kwargs["table"] for c in plan.cells if c.scenario.name == "corruption"} == {"digits-v2"}


def test_a_suite_on_data_its_models_do_not_fit_takes_the_nets_of_that_data_or_asks_for_a_model(made):
    data, _ = made["colour"]
    with pytest.raises(ConfigError, match="--model"):
        plan_run("quick", data=data)


def test_a_threat_of_another_norm_leaves_out_the_attacks_that_do_not_know_it():
    plan, _ = plan_run(read_suite("quick").override(threats=["l2(0.5)"]))
    assert {c.scenario.kwargs["threat"] for c in plan.cells if c.scenario.name == "evasion"} == {"l2(0.5)"}
    for_linf = parse_suite("{name: a, models: [digits-mlp], threats: [linf(0.1)], attacks: [fgsm]}")
    with pytest.raises(ConfigError, match="robench-l0"):
        plan_run(for_linf.override(threats=["l0(5)"]))


def test_a_named_defence_and_chain_go_to_every_model():
    suite = read_suite("quick").override(defenses=["bit_depth(bits=3)"], chains=["prune(0.5) | attack(fgsm)"])
    plan, _ = plan_run(suite, models=["digits-mlp", "digits-vit"])
    for condition in ("bit_depth(bits=3)", "prune(amount=0.5)"):
        assert {c.model.label for c in plan.cells if c.condition == condition} == {"digits-mlp", "digits-vit"}


def test_models_are_named_apart_from_their_files(tmp_path):
    plan, _ = plan_run("quick", models={"old": "digits-standard", "new": "digits-pgd-at"})
    assert {c.model.label for c in plan.cells} == {"old", "new"}
    plan, _ = plan_run("quick", models=["base=digits-standard", "digits-mlp"])
    assert {c.model.label for c in plan.cells} == {"base", "digits-mlp"}
    for models in (["x=digits-standard", "x=digits-mlp"], ["digits-mlp=digits-standard"], ["=digits-mlp"], ["x="]):
        with pytest.raises(ConfigError):
            plan_run("quick", models=models)


def test_a_file_with_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file(fresh("small_cnn", seed=0).state_dict(), "eps=8.safetensors")
    plan, _ = plan_run("quick", models=[UserModel("eps=8.safetensors", "small_cnn")])
    assert {c.model.label for c in plan.cells} == {"eps=8.safetensors"}
