"""Images on which no attack can succeed, by bounds written here in float64: none is ever reported broken.

Interval bounds for linf (Gowal et al., 2018), a Lipschitz bound for l2 (Tsuzuku et al., NeurIPS 2018).
"""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import robench
from robench.data._digits import digits
from robench.models.wrap import Normalised

LEAST = 50
"""Certified images that each test must have, else it shows nothing."""
SLACK = 1e-4
"""Of the logits' difference, for what float32 adds to the proof in float64."""
ROUNDING = 1e-5
"""Of eps, for what float32 adds to the ball."""
DEEP = ["robench-deep", "autoattack-standard"]


def box(layer: nn.Module, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and radius of the interval behind a layer."""
    if isinstance(layer, nn.Flatten):
        return middle.flatten(1), radius.flatten(1)
    if isinstance(layer, nn.Linear):
        return layer(middle), radius @ layer.weight.abs().T
    if isinstance(layer, nn.Conv2d):
        told = {"stride": layer.stride, "padding": layer.padding}
        return layer(middle), functional.conv2d(radius, layer.weight.abs(), **told)
    low, high = (middle - radius).relu(), (middle + radius).relu()
    return (high + low) / 2, (high - low) / 2


def margins(net: nn.Sequential, low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    """Lower bounds of logit[y] - logit[k], (N, K), infinite at k = y, over the box of images."""
    middle, radius = (high + low) / 2, (high - low) / 2
    for layer in net[:-1]:
        middle, radius = box(layer, middle, radius)
    rows = net[-1].weight[y][:, None] - net[-1].weight
    bias = net[-1].bias[y][:, None] - net[-1].bias
    least = (rows @ middle[..., None]).squeeze(-1) + bias - (rows.abs() @ radius[..., None]).squeeze(-1)
    return least.masked_fill(functional.one_hot(y, least.shape[1]).bool(), torch.inf)


def inside_box(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def certified_linf(net: nn.Sequential, x: Tensor, y: Tensor, *, eps: float, mean: float = 0, std: float = 1) -> Tensor:
    """Whether interval bounds prove each image's label in the ball, bool (N,)."""
    bounds = (part.sub(mean).div(std) for part in inside_box(x.double(), eps * (1 + ROUNDING) + ROUNDING**2))
    with torch.no_grad():
        return margins(copy.deepcopy(net).double(), *bounds, y).amin(1) > SLACK


def lipschitz(net: nn.Sequential) -> Tensor:
    """A bound of how fast logit i - logit j of a multilayer perceptron changes with the image, in l2, (K, K)."""
    linear = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
    behind = torch.stack([torch.linalg.matrix_norm(w, ord=2) for w in linear[:-1]]).prod()
    gaps = linear[-1][:, None] - linear[-1]
    return behind * gaps.square().sum(-1).clamp_min(1e-12).sqrt()


def certified_l2(net: nn.Sequential, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """Whether the Lipschitz bound proves each image's label in the ball, bool (N,)."""
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        logits = net(x.double())
        least = logits.gather(1, y[:, None]) - logits - (eps * (1 + ROUNDING)) * lipschitz(net)[y]
    return least.masked_fill(functional.one_hot(y, 10).bool(), torch.inf).amin(1) > SLACK


def fitted(net: nn.Sequential, bound, steps: int) -> nn.Sequential:
    """The net, trained so that the bound itself, as logits, has little cross-entropy."""
    data = digits(split="train")
    pixels, labels, seen = data.images(), data.labels, np.random.default_rng(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.from_numpy(seen.integers(0, len(labels), 64))
        optimiser.zero_grad()
        least = bound(net, pixels[rows], labels[rows], min(1.0, 2 * step / steps))
        gaps = (-least).masked_fill(functional.one_hot(labels[rows], 10).bool(), 0)
        functional.cross_entropy(gaps, labels[rows]).backward()
        optimiser.step()
    return net.eval()


EPS_LINF, EPS_L2 = 0.1, 0.5


@cache
def interval_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)
        )
    return fitted(net, lambda net, x, y, share: margins(net, *inside_box(x, share * EPS_LINF), y), 200)


@cache
def lipschitz_net() -> nn.Sequential:
    def bound(net: nn.Sequential, x: Tensor, y: Tensor, share: float) -> Tensor:
        logits = net(x)
        return logits.gather(1, y[:, None]) - logits - share * EPS_L2 * lipschitz(net)[y]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 10))
    return fitted(net, bound, 200)


@cache
def images() -> tuple[Tensor, Tensor]:
    data = digits(split="test")
    return data.images()[:500], data.labels[:500]


def hold(net: nn.Module, proved: Tensor, threat: str, protocol: str, count: int) -> None:
    """Attack ``count`` images, the proved ones first: none of those may fall, and far outside the ball nearly all must."""
    x, y = images()
    rows = proved.nonzero().flatten()[:count]
    assert len(rows) >= LEAST, len(rows)
    found = robench.attack(net, x[rows], y[rows], threat=threat, protocol=protocol)
    assert set(found.rows["status"]) == {"ok"}
    assert not found.rows["broken"].any() and not found.rows["broken_8bit"].any()
    assert found.robust.all(), f"proved robust, reported broken: {rows[~found.robust].tolist()}"


def falls(net: nn.Module, proved: Tensor, threat: str) -> float:
    """The share of proved images that the same attack breaks outside the ball of the proof."""
    x, y = images()
    rows = proved.nonzero().flatten()[:LEAST]
    return float((~robench.attack(net, x[rows], y[rows], threat=threat, protocol="robench-standard").robust).double().mean())


def linf_case() -> tuple[nn.Module, Tensor, str]:
    net = interval_net()
    return net, certified_linf(net, *images(), eps=EPS_LINF), f"linf({EPS_LINF})"


def l2_case() -> tuple[nn.Module, Tensor, str]:
    net = lipschitz_net()
    return net, certified_l2(net, *images(), eps=EPS_L2), f"l2({EPS_L2})"


CASES = {"linf": linf_case, "l2": l2_case}


def test_the_bounds_hold_at_random_points_of_the_ball() -> None:
    x, y = (part[:8] for part in images())
    net, other = copy.deepcopy(interval_net()).double(), copy.deepcopy(lipschitz_net()).double()
    with torch.no_grad():
        least = margins(net, *inside_box(x.double(), EPS_LINF), y)
        for seed in range(20):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            logits = net((x + EPS_LINF * noise.sign()).clamp(0, 1))
            assert ((logits.gather(1, y[:, None]) - logits >= least) | least.isinf()).all()
            step = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = other(x + step) - other(x.double())
            assert ((change[:, :, None] - change[:, None]).abs() <= lipschitz(other) + 1e-6).all()


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_robench_standard_breaks_no_certified_image(norm: str) -> None:
    net, proved, threat = CASES[norm]()
    hold(net, proved, threat, "robench-standard", LEAST)


@pytest.mark.slow
@pytest.mark.parametrize("norm", CASES)
def test_certified_images_fall_outside_the_ball_of_their_proof(norm: str) -> None:
    """The attack is alive: what it leaves inside, it breaks at four times the radius."""
    net, proved, threat = CASES[norm]()
    outside = threat.replace(
        str({"linf": EPS_LINF, "l2": EPS_L2}[norm]), str({"linf": 4 * EPS_LINF, "l2": 8 * EPS_L2}[norm])
    )
    assert falls(net, proved, outside) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("protocol", DEEP)
@pytest.mark.parametrize("norm", CASES)
def test_the_long_protocols_break_no_certified_image(norm: str, protocol: str) -> None:
    net, proved, threat = CASES[norm]()
    hold(net, proved, threat, protocol, 100)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["robench-standard", *DEEP])
def test_a_published_net_keeps_what_intervals_prove(shared_data, published, protocol: str) -> None:
    held = np.load(shared_data / "mnist" / "mnist.npz")
    x = torch.from_numpy(held["test_x"][:300]).float()[:, None] / 255
    y = torch.from_numpy(held["test_y"][:300]).long()
    model = published("kw_mnist_small_0.3")
    assert isinstance(model, Normalised)
    mean, std = float(model.mean), float(model.std)
    proved = certified_linf(model.net, x, y, eps=0.04, mean=mean, std=std)
    rows = proved.nonzero().flatten()[:100]
    assert len(rows) >= LEAST, len(rows)
    found = robench.attack(model, x[rows], y[rows], threat="linf(0.04)", protocol=protocol)
    assert set(found.rows["status"]) == {"ok"} and found.robust.all()
