"""What a model's outputs and gradients are worth, measured: shared by the sentinel and by attacks that escalate."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.ops.norms import per_sample, steepest
from robench.ops.random import Draws
from robench.victim import Victim

RANDOM_REACH, GRADIENT_REACH = 1e-2, 5e-4
"""Root mean square change of a pixel in a finite difference: along random directions, where logits change little, long
enough to step over the plateaus of 8-bit activations; along the gradient short enough for curved networks."""

FORWARDS = 5
"""Passes over the same batch that must agree."""


def differ(first: Tensor, other: Tensor) -> Tensor:
    """Whether two looks at the same images disagree by more than rounding, bool (N,)."""
    return (first - other).abs().amax(1) > 1e-4 * first.norm(dim=1).clamp_min(1e-6)


def slopes(victim: Victim, points: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Slopes of the margin as differences measure them and as the gradient claims them, along four directions.

    Returns:
        ``gradient_error``, the relative error in [0, 1] over the gradient's and two random directions; ``slope`` and
        ``slope_claimed`` along the first random one; ``hidden``, the estimated share of the squared gradient that lies on
        pixels where it is claimed to be zero, in [0, 1]; ``evenness`` of the classes' gradients, in [0, 1]; (N,) each.
    """
    rows = torch.arange(len(points), device=points.device)
    gradient = victim.gradient(points, rows, "margin").gradient
    inside = (points > 0.04) & (points < 0.96)
    first, second = (draws.normal("sentinel.slope", tuple(points.shape[1:]), step=i).to(points) for i in range(2))
    pairs = []
    for direction, reach in ((first, RANDOM_REACH), (second, RANDOM_REACH), (gradient, GRADIENT_REACH)):
        unit = steepest(direction * inside, "l2")
        pairs.append((_measured(victim, points, unit, reach), (gradient * unit).flatten(1).sum(1)))
    a, b = (torch.stack(side).double().nan_to_num() for side in zip(*pairs, strict=True))
    total = (a.norm(dim=0) + b.norm(dim=0)).clamp_min(1e-12)
    hidden = _hidden(victim, points, gradient, first * inside)
    found = {"gradient_error": (a - b).norm(dim=0) / total, "slope": a[0], "slope_claimed": b[0], "hidden": hidden}
    return {**found, "evenness": _evenness(victim, points)}


def _measured(victim: Victim, points: Tensor, unit: Tensor, reach: float) -> Tensor:
    """Slope of the loss (minus the margin) along unit vectors, from differences ``reach`` per pixel to either side, (N,)."""
    rows, length = torch.arange(len(points), device=points.device), reach * points[0].numel() ** 0.5
    ahead, behind = (victim.margins(points + sign * length * unit, rows) for sign in (1, -1))
    return (behind - ahead) / (2 * length)


def _hidden(victim: Victim, points: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
    """Share of the squared gradient that lies on pixels where it is claimed to be zero, in [0, 1], (N,).

    Along a random unit vector u of d pixels the mean of (g·u)² is |g|²/d, so one measured slope estimates |g|².
    """
    flat = gradient.flatten(1)
    blank = (gradient.abs() <= 1e-6 * per_sample(flat.abs().amax(1), gradient)) & (direction != 0)
    slope = _measured(victim, points, steepest(direction * blank, "l2"), RANDOM_REACH).double().nan_to_num()
    power = slope**2 * blank.flatten(1).sum(1)
    return power / (power + flat.double().square().sum(1)).clamp_min(1e-24)


def _evenness(victim: Victim, points: Tensor) -> Tensor:
    """How far the gradients of two gaps to the label, the highest and the lowest class's, differ in size, in [0, 1], (N,).

    The smaller over the larger norm. Outputs that saturate (a tanh, a sigmoid) lose the gradient of some classes and keep
    that of others, which then lead every search astray. Gaps do not feel what is added to all logits, as log-softmax does.
    """
    rows = torch.arange(len(points), device=points.device)
    logits, label = victim.clean_logits(), victim.y[:, None]
    highest, lowest = logits.scatter(1, label, -torch.inf).argmax(1), logits.scatter(1, label, torch.inf).argmin(1)
    _, gradients = victim.class_gradients(points, rows, torch.stack([highest, lowest], 1))
    sizes = gradients.flatten(2).double().norm(dim=2)
    even = sizes.amin(1) / sizes.amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(sizes.amax(1) > 0, even, 1.0)
