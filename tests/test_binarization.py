"""An attack that works finds the planted class; one that is led astray does not, and the test says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robench
from robench import binarization
from robench.data._digits import digits
from robench.errors import ConfigError, ModelError
from robench.ops.norms import Ball, distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.zoo import load

TOLD = {"threat": "linf(0.1)", "n_samples": 5, "inner": 149, "trials": 20, "attack": "pgd(steps=10, loss='margin')"}


class Rounded(nn.Module):
    """A net behind rounding, which lets no gradient pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 7).round() / 7) + 0 * x.sum()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digits(split="test").images()[:16]


def test_an_honest_net_passes_and_is_left_as_it_was(images: Tensor) -> None:
    net = load("digits-mlp")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = robench.binarization_test(net, images, **TOLD)
    assert (found.status, found.n, len(found.rows)) == ("passed", 5, 5)
    assert found.success_rate >= 0.95 and found.random_rate <= 0.25
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_a_masked_gradient_fails(images: Tensor) -> None:
    found = robench.binarization_test(Rounded(load("digits-mlp")), images, **TOLD)
    assert found.status == "failed" and not found.passed
    assert found.success_rate <= 0.25 and found.n == 5


@pytest.mark.slow
def test_a_sample_meets_the_same_task_in_other_company(images: Tensor) -> None:
    whole = robench.binarization_test(load("digits-mlp"), images, **TOLD | {"attack": "noise"}).rows
    part = robench.binarization_test(load("digits-mlp"), images, **TOLD | {"attack": "noise", "n_samples": 3}).rows
    assert whole.iloc[:3].equals(part)


@pytest.mark.parametrize("threat", ["linf(0.1)", "l2(1.0)"])
def test_points_of_the_surface_lie_on_it(images: Tensor, threat: str) -> None:
    ball = Ball(images, ThreatModel.parse(threat))
    for share in (1.0, 0.95):
        points = binarization._scattered(ball, Draws(0, torch.arange(16)), "x", step=3, share=share)
        assert ball.contains(points).all()
        gaps = distance(images, points, ball.threat.norm)
        assert torch.allclose(gaps, torch.full_like(gaps, share * ball.threat.eps), rtol=1e-3)


def test_the_readout_parts_one_point_from_the_others_tightly() -> None:
    """Two inner points on an axis and one planted a unit further: the border lies just before it."""
    weight, border = binarization._readout(torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(weight, torch.tensor([0.5, 0.0], dtype=torch.float64), atol=1e-6)
    assert float(border) == pytest.approx(binarization.CLOSENESS, abs=1e-6)


def test_a_point_that_equals_another_is_not_usable() -> None:
    weight, _ = binarization._readout(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
    assert not weight.any()


def test_balls_that_meet_are_attacked_apart(images: Tensor) -> None:
    groups = list(binarization._apart(images[[0, 0, 1, 0]], ThreatModel.parse("linf(0.1)")))
    assert [g.tolist() for g in groups] == [[0, 2], [1], [3]]


def test_what_cannot_be_tested_is_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="linf or l2, got 'l1'"):
        robench.binarization_test(load("digits-mlp"), images, threat="l1(1)")
    with pytest.raises(ConfigError, match="inner must be at least 1"):
        robench.binarization_test(load("digits-mlp"), images, inner=0)
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 32), nn.Flatten())
    with pytest.raises(ModelError, match="a linear layer on vectors"):
        robench.binarization_test(convolutional, images, threat="linf(0.1)")
