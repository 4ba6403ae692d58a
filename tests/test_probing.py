"""What probing measures, against gradients known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robench.ops.random import Draws
from robench.probing import along, geometry
from robench.spec import ThreatModel
from robench.victim import Victim

SHAPE = (1, 8, 8)


class Changed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class Linear(nn.Module):
    """Two classes, the margin linear in the pixels; the gradient of every pixel is multiplied by a factor."""

    def __init__(self, weights: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        score = 5 - (Changed.apply(x, self.factor) * self.weights).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def weights() -> Tensor:
    """Half of the pixels weigh 0.2, the others 1: under linf the small ones are a sixth of the mass."""
    small = torch.arange(64) % 2 == 0
    return torch.where(small, 0.2, 1.0).view(SHAPE)


def victim(factor: Tensor, norm: str = "linf", wave: float = 0.0) -> Victim:
    net = Linear(weights(), factor)
    if wave:
        net = Waving(net, wave)
    x = 0.3 + 0.4 * torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Victim(net, x, torch.zeros(12, dtype=torch.int64), threat=ThreatModel.parse(f"{norm}(0.1)"), width=16)


class Waving(nn.Module):
    """Logits times a wave along the mean pixel: every gradient is true."""

    def __init__(self, net: nn.Module, height: float) -> None:
        super().__init__()
        self.net, self.height = net, height

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + self.height * torch.sin(2000 * x.flatten(1).mean(1, keepdim=True)))


def measured(model: Victim) -> dict[str, Tensor]:
    rows = torch.arange(len(model.x))
    ends = model.x + 0.1 * weights().sign()
    return geometry(model, model.x, rows, Draws(0, rows), "test") | along(model, ends, rows)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_true_gradient_is_confirmed_in_every_geometry(norm):
    found = measured(victim(torch.ones(SHAPE), norm))
    assert found["mass_error"].max() < 0.02
    assert (found["steep"] - 1).abs().max() < 0.01
    assert found["line_error"].max() < 1e-3 and (found["line_turns"] - 1).abs().max() < 1e-3


def test_flipped_small_pixels_cost_their_share_of_the_mass():
    """0.2 of 1.2 per pair of pixels is lost and as much is claimed: the step yields (1 - 0.2) / 1.2 of what it claims."""
    factor = torch.where(weights() < 0.5, -1.0, 1.0)
    found = measured(victim(factor))
    assert (found["steep"] - 2 / 3).abs().max() < 0.01
    assert found["mass_error"].median() > 0.2
    squared = measured(victim(factor, "l2"))
    assert (squared["steep"] - (1 - 0.04) / (1 + 0.04)).abs().max() < 0.01


def test_zeroed_small_pixels_are_stepped_along_too():
    found = measured(victim(torch.where(weights() < 0.5, 0.0, 1.0)))
    assert (found["steep"] - 1).abs().max() < 0.01
    assert 0.1 < float(found["mass_error"].median()) < 0.3


def test_a_reversed_gradient_is_wrong_in_every_measure():
    found = measured(victim(-torch.ones(SHAPE)))
    assert (found["steep"] + 1).abs().max() < 0.01
    assert found["line_error"].min() > 0.99
    assert found["mass_error"].min() > 1.9


class OnFaces(nn.Module):
    """The gradient has the wrong sign at pixels of exactly 0 or 1, where searches end, and is true elsewhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Changed.apply(x, 1 - 2.0 * ((x == 0) | (x == 1))))


def test_a_gradient_that_lies_on_the_faces_of_the_box_only_is_seen_there():
    model = victim(torch.ones(SHAPE))
    lying = Victim(OnFaces(model.model), model.x, model.y, threat=model.threat, width=16)
    rows = torch.arange(12)
    ends = model.x.where(torch.arange(64).view(SHAPE) % 4 > 1, torch.ones(()))
    for judged, wrong in ((model, 0.0), (lying, 1.0)):
        found = geometry(judged, ends, rows, Draws(0, rows), "test")
        assert (found["steep"] - (1 - wrong)).abs().max() < 0.01
        assert (found["mass_error"] > 0.3).all() == bool(wrong)


def test_true_gradients_of_a_wave_add_up_to_nothing():
    found = measured(victim(torch.ones(SHAPE), wave=0.5))
    assert found["line_turns"].median() > 3


def test_a_line_without_length_is_not_judged():
    model = victim(torch.ones(SHAPE))
    found = along(model, model.x, torch.arange(12))
    assert found["line_error"].isnan().all() and found["line_turns"].isnan().all()
