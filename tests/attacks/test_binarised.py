"""Small binarised networks: what the attack finds against the complete answer of a mixed-integer program."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

import robench
from robench.models.exported import Exported

EPS = 0.05
SIDE = 8


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0].abs() <= 1)


STYLES = {
    "sign": torch.sign,
    "where": lambda h: torch.where(h >= 0, 1.0, -1.0),
    "float": lambda h: (h >= 0).float() * 2 - 1,
    "product": lambda h: (h >= 0) * torch.full_like(h, 2.0) - 1,
    "filled": lambda h: torch.ones_like(h).masked_fill(h < 0, -1.0),
}


class Binarised(nn.Module):
    """Linear layers of 8 x 8 pixels with activations -1 and 1."""

    def __init__(self, widths: tuple[int, ...], style: str) -> None:
        super().__init__()
        sizes = [SIDE * SIDE, *widths]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b)) for a, b in pairwise(sizes))
        self.out, self.style = nn.Linear(widths[-1], 10), style

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1) * 2 - 1
        for layer in self.layers:
            h = _Step.apply(layer(h)) if self.training else STYLES[self.style](layer(h))
        return self.out(h) / self.out.in_features**0.5


def images() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)


@lru_cache
def trained(widths: tuple[int, ...], seed: int) -> Binarised:
    x, y = (part[:1300] for part in images())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Binarised(widths, "sign")
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(25):
            for rows in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                noisy = (x[rows] + 0.1 * torch.randn_like(x[rows])).clamp(0, 1)
                nn.functional.cross_entropy(net(noisy), y[rows]).backward()
                optimiser.step()
    return net.eval()


def correct(net: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    x, y = (part[1300:] for part in images())
    with torch.no_grad():
        rows = (net(x).argmax(1) == y).nonzero()[:count, 0]
    return x[rows], y[rows]


def affine(layer: nn.Sequential) -> tuple[np.ndarray, np.ndarray]:
    linear, norm = layer
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    bias = (linear.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    return (linear.weight.double() * scale[:, None]).detach().numpy(), bias.detach().numpy()


def vulnerable(net: Binarised, x: Tensor, y: int) -> bool:
    """Whether the ball around an image holds an adversarial example (activations kept 1e-5 away from 0)."""
    return any(_reaches(net, x, y, target) for target in range(10) if target != y)


def _reaches(net: Binarised, x: Tensor, y: int, target: int) -> bool:
    pixels = x.flatten().double().numpy()
    low, high = np.maximum(0, pixels - EPS), np.minimum(1, pixels + EPS)
    layers = [affine(layer) for layer in net.layers]
    size = len(pixels) + sum(len(bias) for _, bias in layers)
    rows, lower, upper = [], [], []
    start, before, least, most = len(pixels), slice(0, len(pixels)), 2 * low - 1, 2 * high - 1
    for weight, bias in layers:
        for j, (w, c) in enumerate(zip(weight, bias, strict=True)):
            bottom, top = np.minimum(w * least, w * most).sum() + c, np.maximum(w * least, w * most).sum() + c
            on, off = np.zeros(size), np.zeros(size)
            on[before] = off[before] = 2 * w  # activations and scaled pixels are 2 v - 1
            on[start + j], off[start + j] = bottom - 1e-5 - 1, -(top + 1e-5 + 1)
            rows += [on, off]
            lower += [bottom - 1 - c + w.sum(), -np.inf]
            upper += [np.inf, -1e-5 - c + w.sum()]
        before, start = slice(start, start + len(bias)), start + len(bias)
        least, most = -np.ones(len(bias)), np.ones(len(bias))
    gap = (net.out.weight[target] - net.out.weight[y]).double().detach().numpy()
    last = np.zeros(size)
    last[before] = 2 * gap
    rows.append(last)
    lower.append(1e-6 - float(net.out.bias[target] - net.out.bias[y]) + gap.sum())
    upper.append(np.inf)
    binary = np.r_[np.zeros(len(pixels)), np.ones(size - len(pixels))]
    bounds = Bounds(np.r_[low, np.zeros(size - len(pixels))], np.r_[high, np.ones(size - len(pixels))])
    rules = LinearConstraint(np.array(rows), lower, upper)
    found = milp(np.zeros(size), constraints=rules, integrality=binary, bounds=bounds)
    assert found.status in (0, 2)  # solved, or shown to have no solution
    if found.status == 2:
        return False
    witness = torch.tensor(found.x[: len(pixels)], dtype=torch.float32).view(1, 1, SIDE, SIDE)
    with torch.no_grad():
        assert int(net(witness).argmax(1)) != y
    return True


@lru_cache
def truth(widths: tuple[int, ...], seed: int, count: int) -> Tensor:
    net = trained(widths, seed)
    x, y = correct(net, count)
    return torch.tensor([vulnerable(net, a, int(b)) for a, b in zip(x, y, strict=True)])


def in_form(net: Binarised, form: str, x: Tensor) -> nn.Module:
    if form == "exported":
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
        return Exported(program.module(check_guards=False), (1, SIDE, SIDE)).eval()
    return nn.Sequential(torch.jit.trace(net, x)).eval() if form == "traced" else net


def check(widths: tuple[int, ...], seed: int, style: str, form: str, count: int, least: float) -> None:
    known = truth(widths, seed, count)
    net = trained(widths, seed)
    net.style = style
    x, y = correct(net, count)
    found = robench.attack(in_form(net, form, x), x, y, threat=f"linf({EPS})")
    assert not (~found.robust & ~known).any()  # nothing that the program excludes
    assert int((~found.robust).sum()) >= least * int(known.sum()) and known.any()
    assert found.validity.status != "sound"


DEAR = (("sign", "module"), ("float", "traced"))
FORMS = [("where", "exported"), *(pytest.param(*told, marks=pytest.mark.slow) for told in DEAR)]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("style", "form"), FORMS)
def test_one_binary_layer_falls_in_every_form(style, form):
    check((24,), 0, style, form, 6, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["module", "exported", "traced"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("widths", "seed"), [((32,), 2), ((32,), 3), ((32, 24), 2)])
def test_most_of_what_a_complete_search_finds_is_found(widths, seed, style, form):
    check(widths, seed, style, form, 20, 0.75)
