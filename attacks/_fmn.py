"""Fast minimum-norm attack: normalised gradient steps in a ball whose radius follows the decision boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, cosine, direction, farthest, require_positive, size, within
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Pass, Victim, as_victim

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@facts(version=1, norms=("linf", "l2", "l1", "l0"), access="white", randomness="per_sample", targeted=True)
def fmn(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    step_size: float | None = None,
    gamma: float = 0.05,
    stop: bool = False,
) -> Tensor:
    """The nearest success that FMN visits per sample, (N, ...) in [0, 1], or the best point in the ball.

    Until the first success the radius is the linearised distance to the boundary; then it shrinks on success and
    grows on failure. Unlike the paper's, it also grows by that factor at least before the first success: the linear
    estimate alone can stay just below the boundary for ever. A zero gradient is replaced by a random direction.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf, l2, l1 or l0; with eps ``inf`` the smallest distance is what is sought.
        seeds: Per-sample randomness of the directions where the gradient is zero.
        steps: Gradient steps.
        step_size: First step in l2, in pixel units, falling to a hundredth by a cosine; None is 10 for linf, else 1.
        gamma: First relative change of the radius per step, falling to 0.001 by a cosine.
        stop: Leave a sample at its first success in the ball instead of searching for a nearer one.

    Raises:
        ConfigError: Steps, a step size or gamma that is not positive.

    Source: Pintor et al., NeurIPS 2021, algorithm 1 and section 3; the last values of the schedules as in their code.
    """
    first = (10.0 if threat.norm == "linf" else 1.0) if step_size is None else step_size
    require_positive(steps=steps, step_size=first, gamma=gamma)
    victim = as_victim(victim, x, y, threat)
    closest, rows = Closest(victim), torch.arange(len(x), device=x.device)
    points, limit = x.clone(), farthest(x, threat.norm)
    radius = torch.full_like(limit, 1.0 if threat.norm == "l0" else math.inf)
    rows = rows[closest.wanted(rows, stop=stop)]
    for step in range(steps):
        if not len(rows):
            break
        found = victim.gradient(points[rows], rows, "margin")
        far = closest.book(points[rows], rows, found.margin <= 0)
        change = cosine(gamma, 0.001, step, steps)
        grown = _radius(radius[rows], far, closest.distance[rows], found=found, change=change, norm=threat.norm)
        radius[rows] = torch.minimum(grown, limit[rows])
        towards = direction(found.gradient, seeds[rows], "fmn.flat", step=step)
        delta = points[rows].double() - x[rows].double() + cosine(first, first / 100, step, steps) * towards
        moved = x[rows].double() + within(delta, radius[rows], threat.norm)
        points[rows] = moved.clamp(0, 1).to(x.dtype)
        rows = rows[closest.wanted(rows, stop=stop)]
    if len(rows):
        closest.book(points[rows], rows, victim.margins(points[rows], rows) <= 0)
    return closest.result()


def _radius(radius: Tensor, far: Tensor, best: Tensor, *, found: Pass, change: float, norm: str) -> Tensor:
    """Each sample's next radius, from the last one, the point's distance and the nearest success's, (n,) float64."""
    success = found.margin <= 0
    if norm == "l0":
        less = torch.minimum(radius - 1, (radius * (1 - change)).floor())
        more = torch.maximum(radius + 1, (radius * (1 + change)).floor())
        return torch.where(success, torch.minimum(less, best), more).clamp_min(1)
    steepness = size(found.gradient, _DUAL[norm])
    gap = found.loss.double().abs() / steepness
    larger = radius * (1 + change)
    aimed = torch.where(radius.isinf(), 0.0, larger).maximum(far + gap.nan_to_num(math.inf))
    outside = torch.where(best.isfinite(), larger, aimed)
    return torch.where(success, torch.minimum(radius * (1 - change), best), outside)
