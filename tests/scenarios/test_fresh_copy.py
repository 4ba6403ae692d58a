"""A model that remembers the images it met first is found out by a copy that has met none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.data._digits import digits
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


def test_a_model_that_cannot_be_copied_is_measured_without():
    class Alone(Counting):
        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

    found = robench.evaluate(Alone(load("digits-standard")), X[:4], Y[:4], threat="linf(0.05)", attacks=ATTACKS)
    assert found.rows["fresh_copy_agrees"].isna().all()
