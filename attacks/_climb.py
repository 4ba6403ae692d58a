"""The search loop of the cascade: steps that shrink, momentum, and samples that leave as soon as they break."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.ops.norms import dual_size, steepest
from robench.victim import Victim

MOMENTUM = 0.75
"""Weight of the new step against the last movement, as in APGD."""


@dataclass(frozen=True)
class Phase:
    """Some steps with one loss."""

    sizes: Sequence[float]
    """Step sizes in pixel units, one per step."""
    loss: str = "margin"
    weights: Tensor | None = None
    """Output weights (n, K) instead of the loss (output-diversified steps)."""


def cosine(steps: int, eps: float, *, last: float = 0.0) -> list[float]:
    """Step sizes from 2·eps down to ``last``·eps along half a cosine."""
    low = last * eps
    return [low + (2 * eps - low) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]


def climb(victim: Victim, rows: Tensor, points: Tensor, phases: Sequence[Phase]) -> None:
    """Ascend from the points (n, ...) of the samples ``rows`` (n,); everything found is in the victim's books.

    The momentum is on positions: x' = P(x + 0.75 (P(x + s d) - x) + 0.25 (x - x_before)), d the steepest direction.
    Success is read from the pass that gives the gradient; the last point is looked at without a gradient. The slope of
    the margin at each sample's last point is left in ``victim.slope``.

    Source: Croce & Hein, ICML 2020, equation (2) (the step); Tashiro et al., NeurIPS 2020 (output-diversified steps).
    """
    ball, before = victim.ball[rows], points
    place = torch.arange(len(rows), device=rows.device)
    norm = victim.threat.norm
    for phase in phases:
        for size in phase.sizes:
            weights = None if phase.weights is None else phase.weights[place]
            found = victim.gradient(points, rows, phase.loss, weights=weights, inside=True)
            direction = steepest(found.gradient, norm)
            moved = ball.quick(points + size * direction)
            blend = moved if before is points else points + MOMENTUM * (moved - points) + (1 - MOMENTUM) * (points - before)
            before, points = points, ball.quick(blend)
            keep = ~victim.broken[rows]
            if not bool(keep.all()):
                rows, points, before, place = rows[keep], points[keep], before[keep], place[keep]
                ball = victim.ball[rows]
            if not len(rows):
                return
        if phase.loss == "margin" and phase.weights is None:
            victim.slope[rows] = dual_size(found.gradient, norm)[keep]
    victim.margins(points, rows, inside=True)
