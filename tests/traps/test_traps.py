"""No trap is called sound and robust, and no honest model is called suspicious."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

QUICK, WHOLE = 24, 64
"""Images per model, in every run of the tests and in the whole study."""


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"traps_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


study = beside("study")
models, fresh = study.models, study.fresh
TRAPS = [v for v in vars(models).values() if isinstance(v, type) and issubclass(v, models.Trap) and v is not models.Trap]


def shown(rows: pd.DataFrame, capsys) -> None:
    table = study.confusion(rows)
    with capsys.disabled():
        print("\n" + "\n".join(study.lines(rows)) + "\n" + table.to_string())


FEW = ("Boxed", "HalfDetached", "BitDepth", "Flipped", "OneHotDecoy", "Watching", "WrongClass")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW[:2] else pytest.mark.slow) for n in FEW])
def test_a_trap_is_told_by_the_sentinel_alone(name):
    row = study.examine(study.trap(getattr(models, name)), QUICK, protocol="")
    assert row["outcome"] == "suspicious", row


REASONS = [
    ("Boxed", "sentinel failed on 24 of 24 samples"),
    ("Flipped", "agree with the gradient by a cosine of -1.00"),
    ("HalfDetached", "of the squared gradient lie on pixels where it is said to be zero"),
    ("Watching", "the output changes when a gradient is asked for"),
    ("Crowd", "the output depends on the other images of the batch"),
    ("Softmaxed", "the model returns probabilities"),
    ("Noisy", "the model's output is random"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), REASONS)
def test_the_reason_is_the_right_one(name, reason):
    found = study.examine(study.trap(getattr(models, name)), QUICK, protocol="")["reasons"]
    assert reason in " ".join(found)


@pytest.mark.parametrize("name", ["digits-mlp", pytest.param("digits-standard", marks=pytest.mark.slow)])
def test_an_honest_model_is_sound(name):
    row = study.examine(next(c for c in study.HONEST if c.name == name), QUICK, protocol="")
    assert row["outcome"] == "sound", row


def test_every_trap_answers_clean_images_as_its_net_nearly_does():
    x, y = (part[:QUICK] for part in study.digit_images())
    net = study.load("digits-standard")
    for kind in [*TRAPS, *fresh.TRAPS]:
        with torch.no_grad():
            right = (kind(net)(x).argmax(1) == y).float().mean()
        assert right > 0.5, kind.__name__


def judged_right(rows: pd.DataFrame, capsys) -> None:
    shown(rows, capsys)
    assert list(rows.loc[rows["outcome"].isin(["missed", "false alarm"]), "name"]) == []


@pytest.mark.slow
def test_all_traps_and_honest_models_under_plain_attacks(capsys):
    rows = study.study(study.known(), WHOLE, protocol="")
    judged_right(rows, capsys)
    for half in ("calibration", "held-out"):
        part = rows[rows["half"] == half]
        assert part["honest"].sum() >= 5 and (~part["honest"]).sum() >= 10


ALARMS = ["new width 6 pgd-at l2(1.5)"]
"""Honest nets on which plain PGD is called suspicious: the sentinel's short ascents break images that it left."""


@pytest.mark.slow
@pytest.mark.shared
def test_what_no_threshold_has_seen_under_plain_attacks(shared_data, capsys):
    rows = study.study([*study.added(), *study.photographed(shared_data)], WHOLE, protocol="")
    shown(rows, capsys)
    assert set(rows["half"]) == {"fresh"} and rows["honest"].sum() >= 10
    assert list(rows.loc[rows["outcome"] == "missed", "name"]) == []
    assert set(rows.loc[rows["outcome"] == "false alarm", "name"]) <= set(ALARMS)


@pytest.mark.slow
@pytest.mark.shared
def test_what_no_threshold_has_seen_under_the_standard_protocol(shared_data, capsys):
    judged_right(study.study([*study.added(), *study.photographed(shared_data)], QUICK), capsys)


def test_the_confusion_table_counts_each_half():
    rows = pd.DataFrame(
        [
            ("held-out", True, "sound", "sound"),
            ("held-out", True, "suspicious", "false alarm"),
            ("held-out", False, "suspicious", "broken"),
            ("fresh", False, "sound", "missed"),
            ("fresh", False, "suspicious", "suspicious"),
        ],
        columns=["half", "honest", "verdict", "outcome"],
    )
    table = study.confusion(rows)
    assert table.loc[("held-out", "honest")].tolist() == [1, 1, 0, 0, 0, 1]
    assert table.loc[("held-out", "trap")].tolist() == [0, 1, 1, 0, 0, 0]
    assert table.loc[("fresh", "trap")].tolist() == [1, 1, 0, 1, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [fresh.Sparse, fresh.Sawtooth])
def test_a_fresh_trap_is_told_by_the_sentinel_alone(kind):
    assert study.examine(study.trap(kind), QUICK, protocol="")["outcome"] == "suspicious"


HARD = ("WinnersTakeAll", "Seeded", "OneHotDecoy", "Saturated", "Staircase", "HalfDetached", "NearData", "Ripple")
PLEASANT = ("digits-standard", "digits-augmented", "digits-mlp", "digits-vit", "int8 of standard", "width 8 pgd-at")


@pytest.mark.slow
def test_the_standard_protocol_breaks_or_tells_the_hard_traps(capsys):
    chosen = [study.trap(getattr(models, name)) for name in HARD] + [c for c in study.HONEST if c.name in PLEASANT]
    judged_right(study.study(chosen, QUICK), capsys)


@pytest.mark.slow
@pytest.mark.shared
def test_models_by_others_and_traps_around_them(shared_data, published, capsys):
    data = np.load(shared_data / "mnist" / "mnist.npz")
    x, y = torch.from_numpy(data["test_x"][:WHOLE]).float()[:, None] / 255, torch.from_numpy(data["test_y"][:WHOLE]).long()
    cifar = np.load(shared_data / "models" / "cifar_sdp200.npz")
    other = torch.from_numpy(cifar["x"][:WHOLE]).float() / 255, torch.from_numpy(cifar["y"][:WHOLE]).long()
    seen = {"mnist": (x, y), "cifar": other}
    threats = {"kw_mnist_0.1": "linf(0.1)", "kw_mnist_small_0.3": "linf(0.3)", "eran_mnist_6_100_nat": "linf(0.026)"}
    threats["sdp_cifar_cnn_a_adv"] = "linf(2/255)"
    cases = []
    for name, threat in threats.items():
        images = seen["cifar" if "cifar" in name else "mnist"]
        told = {"images": lambda images=images: images, "threat": threat}
        make = lambda name=name: published(name)  # noqa: E731
        cases.append(study.Case(name, make, **told))
        for kind in (models.Thousandfold, models.Hundredths, models.Ripple):
            cases.append(study.Case(f"{kind.__name__} on {name}", lambda k=kind, m=make: k(m()), undefended=make, **told))
    judged_right(study.study(cases, WHOLE, protocol=""), capsys)
