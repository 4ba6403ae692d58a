"""Adversarial images of a surrogate, tried on the victim."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.attacks._pgd import pgd
from robench.errors import AttackError, ConfigError, must
from robench.inference import predict
from robench.ops.norms import per_sample, steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

SMALLEST = 0.9
"""Part of its side to which an image is shrunk at most."""


@facts(version=1, norms=("linf", "l2"), access="transfer", randomness="per_sample", surrogate=True, targeted=True)
def transfer(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    surrogate: nn.Module | None = None,
    steps: int = 20,
    loss: str = "margin",
    mi: float = 0.0,
    di: float = 0.0,
    ti: int = 0,
    source: str = "",
) -> Tensor:
    """Points that a gradient attack on a surrogate leads to, tried on the victim, (N, ...) in [0, 1].

    The surrogate is attacked to the full number of steps: an image that only just crosses the surrogate's own
    boundary transfers poorly. Without ``mi``, ``di`` and ``ti`` these are the lowest-margin points of PGD; with any of
    them the last points of ``steps`` steps of eps/steps from x.

    Args:
        victim: The victim or a plain module; only its decisions are asked.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness.
        surrogate: Another model on the same images, given by the runner.
        steps: Gradient steps on the surrogate.
        loss: Loss on the surrogate.
        mi: Momentum of the gradients, each scaled to absolute values that sum to 1; the paper's is 1.0.
        di: Probability, per step and sample, that the surrogate sees the image shrunk to a random size of at least
            nine tenths and padded with zeros at a random place; the paper's is 0.5. Images (N, C, H, W) only.
        ti: Odd width of the Gaussian window that smooths the gradients, 7 or 15 in the paper; 0 for none.
        source: Name of the surrogate, for the tables.

    Raises:
        AttackError: No surrogate was given.
        ConfigError: A surrogate whose outputs have another shape than the victim's; mi below 0, di outside [0, 1], ti even.

    Source: Papernot et al., 2016 (transferability); Dong et al., CVPR 2018 (mi); Xie et al., CVPR 2019 (di); Dong et
    al., CVPR 2019 (ti).
    """
    if surrogate is None:
        raise AttackError(must("the surrogate", "a model", None, "name one, e.g. transfer(source='digits-standard')"))
    _require_numbers(mi, di, ti)
    victim = as_victim(victim, x, y, threat)
    _require_same_outputs(victim, surrogate)
    model = Relentless(surrogate, x, y, threat=threat, task=victim.task, width=victim.width)
    if mi or di or ti:
        points = _climb(model, seeds, steps=steps, loss=loss, mi=mi, di=di, ti=ti)
    else:
        pgd(model, x, y, threat=threat, seeds=seeds, steps=steps, loss=loss)
        points = model.result()
    rows = victim.alive()
    if len(rows):
        victim.misclassified(points[rows], rows)
    return victim.result()


class Relentless(Victim):
    """A victim that never counts as broken: the lowest-margin point is sought to the last step."""

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor, *told: bool) -> None:
        super()._record(points, rows, margin, *told)
        self.broken[:] = False


def _require_numbers(mi: float, di: float, ti: int) -> None:
    if not mi >= 0 or not 0 <= di <= 1:
        raise ConfigError(must("mi and di", "at least 0, and in [0, 1]", (mi, di), "e.g. mi=1.0 and di=0.5"))
    if ti < 0 or (ti and ti % 2 == 0):
        raise ConfigError(must("ti", "0 or an odd width", ti, "e.g. ti=7"))


def _require_same_outputs(victim: Victim, surrogate: nn.Module) -> None:
    shapes = [tuple(predict(m, victim.x[:1], width=victim.width).shape[1:]) for m in (surrogate, victim.model)]
    if shapes[0] != shapes[1]:
        remedy = "name a surrogate that was trained on the same classes"
        raise ConfigError(must("the surrogate's outputs per image", f"those of the model, {shapes[1]}", shapes[0], remedy))


def _climb(model: Relentless, seeds: Draws, *, steps: int, loss: str, mi: float, di: float, ti: int) -> Tensor:
    """The last points of iterated steps along gradients with momentum, input diversity and smoothing, (N, ...)."""
    if steps < 1:
        raise ConfigError(must("steps", "at least 1", steps, "noise() looks at points without a step"))
    x, threat = model.x, model.threat
    size = min(threat.eps, float(x[0].numel()) ** (0.0 if threat.norm == "linf" else 0.5)) / steps
    rows, points, memory = torch.arange(len(x), device=x.device), x, torch.zeros_like(x)
    for step in range(steps):
        maps = shrinkings(seeds, x, chance=di, step=step) if di else None
        seen = points if maps is None else maps[0] @ points @ maps[1].mT
        gradient = model.gradient(seen, rows, loss).gradient
        if maps is not None:
            gradient = maps[0].mT @ gradient @ maps[1]
        gradient = smoothed(gradient, ti) if ti else gradient
        total = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        memory = mi * memory + gradient / per_sample(total, gradient)
        points = model.ball.project(points + size * steepest(memory, threat.norm))
    return points


def shrinkings(seeds: Draws, x: Tensor, *, chance: float, step: int) -> tuple[Tensor, Tensor]:
    """Matrices (N, 1, H, H) and (N, 1, W, W) that shrink an image bilinearly and pad it: rows @ image @ columns.T.

    Drawn anew for every step and sample; with probability 1 - chance they are the identity.

    Raises:
        ConfigError: x is not (N, C, H, W).
    """
    if x.dim() != 4:
        raise ConfigError(must("images for di", "(N, C, H, W)", tuple(x.shape), "leave di out"))
    draws = seeds.uniform("transfer.di", (4,), step=step).double()
    left_alone = draws[:, 0] >= chance
    both = []
    for axis, side in enumerate(x.shape[2:]):
        least = -(-int(side * 1000 * SMALLEST) // 1000)
        size = least + torch.floor(draws[:, 1] * (side + 1 - least))
        size = torch.where(left_alone, torch.full_like(size, float(side)), size)
        offset = torch.floor(draws[:, 2 + axis] * (side + 1 - size))
        both.append(_shrinking(size, offset, side).to(x.dtype)[:, None])
    return both[0], both[1]


def _shrinking(size: Tensor, offset: Tensor, side: int) -> Tensor:
    """Bilinear weights (N, side, side) from ``side`` places to ``size`` (N,) of them from ``offset`` (N,) on."""
    place = torch.arange(side, device=size.device, dtype=torch.float64)
    inner = place - offset[:, None]
    source = ((inner + 0.5) * side / size[:, None] - 0.5).clamp(0, side - 1)
    weights = (1 - (source[:, :, None] - place).abs()).clamp_min(0)
    return weights * ((inner >= 0) & (inner < size[:, None]))[:, :, None]


def smoothed(gradient: Tensor, width: int) -> Tensor:
    """The gradient under a normalised Gaussian window of ``width`` places that reaches to three deviations, (N, ..., H, W).

    Summed shift by shift, so that no batch size changes a bit.
    """
    window = torch.exp(-torch.linspace(-3, 3, width, dtype=torch.float64).square() / 2) if width > 1 else torch.ones(1)
    weights = (window / window.sum()).tolist()
    for axis in (-2, -1):
        side = gradient.shape[axis]
        half = (width // 2, width // 2)
        wide = functional.pad(gradient, (*half, 0, 0) if axis == -1 else (0, 0, *half))
        gradient = torch.stack([w * wide.narrow(axis, k, side) for k, w in enumerate(weights)]).sum(0)
    return gradient
