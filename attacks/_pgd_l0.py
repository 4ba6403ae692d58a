"""Projected gradient ascent on the few features that an l0 threat may change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("l0",), access="white", randomness="per_sample", targeted=True)
def pgd_l0(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 50,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "margin",
    random_start: bool = True,
) -> Tensor:
    """The worst point of gradient ascent with at most eps changed features per sample, (N, ...) in [0, 1].

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l0, counted in features (channels count apart); the part of eps after the point is lost.
        seeds: Per-sample randomness of the starts.
        steps: Gradient steps per restart.
        step_size: Factor of the gradient, whose absolute values sum to 1; None is ten times the number of features,
            so that features are chosen by gradient times room, and changed ones go to the box's edge.
        restarts: Independent runs over the samples that are still unbroken.
        loss: ``margin``, ``ce`` or another of the task.
        random_start: Start at the projection of a random image instead of x.

    Raises:
        ConfigError: Fewer than one step or restart, or a step size that is not positive.

    Source: Croce & Hein, ICCV 2019, section 3 (PGD_0).
    """
    if steps < 1 or restarts < 1:
        raise ConfigError(must("steps and restarts", "at least 1", (steps, restarts), "else nothing is attacked"))
    if step_size is not None and not step_size > 0:
        raise ConfigError(must("step_size", "above 0", step_size, "leave it out for ten times the number of features"))
    victim = as_victim(victim, x, y, threat)
    features = x[0].numel()
    size = 10.0 * features if step_size is None else step_size
    budget = int(min(threat.eps, features))
    for restart in range(restarts):
        rows = victim.alive()
        points = x[rows]
        if random_start:
            noise = seeds[rows].uniform("pgd_l0.start", x.shape[1:], step=restart).to(x.dtype)
            points = nearest(x[rows], noise, budget)
        for _ in range(steps):
            if not len(rows):
                break
            found = victim.gradient(points, rows, loss)
            keep = ~victim.broken[rows]
            rows = rows[keep]
            points = nearest(x[rows], points[keep] + size * _unit(found.gradient[keep]), budget)
        if len(rows):
            victim.margins(points, rows)
    return victim.result()


def nearest(x: Tensor, points: Tensor, budget: int) -> Tensor:
    """Nearest points (l2) of the box that differ from x in at most ``budget`` features, (N, ...).

    A feature's change saves δ² of the distance, less what the box cuts off of it; the largest savings are kept.

    Source: Croce & Hein, ICCV 2019, section 3 (projection onto the l0 ball and the box).
    """
    inside = points.clamp(0, 1)
    saved = ((points - x).double().square() - (points - inside).double().square()).flatten(1)
    kept = saved.topk(budget, dim=1).indices
    mask = torch.zeros_like(saved, dtype=torch.bool).scatter(1, kept, True)
    return torch.where(mask.view_as(x), inside, x)


def _unit(gradient: Tensor) -> Tensor:
    """The gradient with absolute values that sum to 1; zero where it is zero."""
    total = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_sample(total, gradient)
