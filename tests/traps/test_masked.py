"""Masked models from the generator are broken or told, and honest ones of many families are sound."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FEW = 24
"""Images per model in every run of the tests."""


def study():
    """The module ``masked`` of this folder, which is no package."""
    if "traps_masked" not in sys.modules:
        spec = importlib.util.spec_from_file_location("traps_masked", Path(__file__).with_name("masked.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["traps_masked"]


masked = study()
generator, honest = masked.generator, masked.honest


def case(name: str):
    return next(c for part in ("limits", "report") for c in masked.masked(part) if c.name == name)


TOLD = [
    ("flip small pixels, 5 %", "of the slope that the gradient claims"),
    ("zero small pixels, 15 %", "differences of pixel groups contradict"),
    ("ripple, 0.9, 0.005", "times as much as it falls"),
]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "reason"), [TOLD[0], *(pytest.param(*told, marks=pytest.mark.slow) for told in TOLD[1:])])
def test_the_gradients_of_a_masked_model_give_it_away(name, reason):
    one = case(name)
    assert reason in " ".join(masked.told_by_gradients(one.make().eval(), *honest.first("digits", FEW), one.threat))


def test_the_gradients_of_the_net_inside_do_not():
    x, y = honest.first("digits", FEW)
    assert masked.told_by_gradients(masked.base_net("tiny"), x, y, "linf(0.1)") == []


def test_both_halves_have_mechanisms_and_no_name_twice():
    names = [m.name for m in generator.MECHANISMS]
    assert len(set(names)) == len(names) and all(m.make for m in generator.MECHANISMS)
    assert min(sum(m.part == part for m in generator.MECHANISMS) for part in ("limits", "report")) >= 20


def test_masked_gradients_leave_every_answer_as_it_is():
    net, (x, _) = masked.base_net("tiny"), honest.first("digits", FEW)
    for rule in (generator.flip_small(0.05), generator.zero_small(0.05), generator.pattern(0.4), generator.flip_blocks(0.3)):
        with torch.no_grad():
            assert torch.equal(generator.Masked(net, rule)(x), net(x))


def test_the_honest_models_are_of_many_families():
    names = [one.name for one in honest.HONEST]
    assert len(set(names)) == len(names) >= 60
    assert sum("max pool" in name for name in names) >= 6 and sum(one.random for one in honest.HONEST) >= 3
    assert {one.threat.partition("(")[0] for one in honest.HONEST} == {"linf", "l2", "l1", "l0"}


def ends(cases, count: int, end: str, capsys) -> list[str]:
    found = [masked.examine(one, count) for one in cases]
    with capsys.disabled():
        print("\n" + "\n".join(masked.line(one) for one in found))
    return [one.name for one in found if one.end == end]


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 200])
@pytest.mark.parametrize("part", ["limits", "report"])
def test_no_masked_model_is_sound_above_the_truth(part, count, capsys):
    assert ends(masked.masked(part), count, "missed", capsys) == []


@pytest.mark.slow
def test_no_honest_model_is_suspicious(capsys):
    assert ends(masked.honest_ones(), 60, "false alarm", capsys) == []
