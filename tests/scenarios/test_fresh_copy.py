"""A model that remembers the images it met first is found out by a copy that has met none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.data._digits import digits
from robench.scenarios.fresh_copy import FreshCopy
from robench.scenarios.objects import Hold
from robench.spec import ThreatModel
from robench.zoo import load

DATA = digits(split="test")
X, Y = DATA.images()[:16], DATA.labels[:16]
pytestmark = pytest.mark.usefixtures("narrow")
ATTACKS = ["noise", "pgd(steps=10)"]


class Remembering(nn.Module):
    """Answers near an image that it met first as it answered there, with a little of the real slope."""

    def __init__(self, net: nn.Module, first: int = 10_000) -> None:
        super().__init__()
        self.net, self.first = net, first
        self.memory: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        found = []
        for image, own in zip(x, logits, strict=True):
            known = next((old for seen, old in self.memory if (image.detach() - seen).abs().max() < 0.15), None)
            if known is None and len(self.memory) < self.first:
                self.memory.append((image.detach().clone(), own.detach()))
            found.append(own if known is None else known + 0.02 * (own - own.detach()))
        return torch.stack(found)


class Counting(nn.Module):
    """Keeps state between calls that its answers do not depend on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls, self.last = net, 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x.detach().clone()
        return self.net(x)


def test_a_model_with_a_memory_is_invalid():
    found = robench.evaluate(Remembering(load("digits-standard")), X, Y, threat="linf(0.1)", attacks=ATTACKS)
    assert found.validity.status == "invalid"
    assert any("a new copy of the model" in reason for reason in found.validity.reasons)
    assert (found.rows["fresh_copy_agrees"] == 0).any()


@pytest.mark.parametrize("wrap", [nn.Identity, Counting])
def test_an_honest_model_agrees_with_its_copy(wrap):
    net = load("digits-standard") if wrap is nn.Identity else Counting(load("digits-standard"))
    found = robench.evaluate(net, X, Y, threat="linf(0.05)", attacks=ATTACKS)
    assert set(found.rows["fresh_copy_agrees"].dropna()) == {1.0}
    assert found.validity.status != "invalid"


@pytest.mark.parametrize("kind", [Remembering, Counting])
def test_a_model_that_cannot_be_copied_is_not_called_sound(kind):
    class Alone(kind):
        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

    found = robench.evaluate(Alone(load("digits-standard")), X, Y, threat="linf(0.05)", attacks=ATTACKS)
    assert found.rows["fresh_copy_agrees"].isna().all() and not found.validity.sound
    told = [note for note in found.validity.notes if note.startswith("not examined for a memory of earlier images")]
    assert told and "one of a kind" in told[0]


def held(make, model, **told):
    """The rows of one survivor and what a check by the copy leaves in them."""
    again = FreshCopy(make, model, ThreatModel.parse("linf(0.1)"))
    row = {"status": "ok", "draws": 0, "unstable": False, "score_clean": 1.0, "score_adv": 1.0}
    row |= {"fresh_copy_agrees": math.nan, "fresh_copy_note": "", **told}  # as a row is written before the copy is asked
    again.add(Hold(X[:1], Y[:1], torch.arange(1), 16), X[:1], [row])
    again.judge()
    return row


def test_every_way_to_miss_a_copy_is_told():
    def broken():
        raise KeyError("no such file")

    net = load("digits-standard")
    assert held(lambda: net, net)["fresh_copy_agrees"] == 1.0 and not held(lambda: net, net)["fresh_copy_note"]
    assert held(None, net)["fresh_copy_note"] == "no copy of the model can be built"
    assert "KeyError: 'no such file'" in held(broken, net)["fresh_copy_note"]
    assert math.isnan(held(broken, net)["fresh_copy_agrees"]) and not held(None, net, draws=50)["fresh_copy_note"]


def test_a_model_without_gradients_says_that_no_ascent_was_made():
    class Sealed(Counting):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.detach())

    net = Sealed(load("digits-standard")).requires_grad_(False)
    row = held(lambda: net, net)
    assert row["fresh_copy_agrees"] == 1.0 and "no ascent led away" in row["fresh_copy_note"]
