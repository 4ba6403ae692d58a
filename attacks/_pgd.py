"""Projected gradient ascent with restarts, momentum and per-sample books."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.norms import steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=2, norms=("linf", "l2"), access="white", randomness="per_sample", targeted=True)
def pgd(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "ce",
    momentum: float = 0.0,
    random_start: bool = True,
) -> Tensor:
    """The worst point of projected gradient ascent per sample, (N, ...) in [0, 1].

    Success is read from the pass that gave the gradient, and a broken sample leaves at that step; the last point of
    a run is looked at without a gradient.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness of the starts.
        steps: Gradient steps per restart.
        step_size: In pixel units; None is 2.5·eps/steps, so that a run can cross the ball.
        restarts: Independent runs over the samples that are still unbroken.
        loss: ``ce``, ``margin``, ``dlr``, ``scaled_ce`` or ``probability_margin``.
        momentum: Weight of the previous direction (gradients l1-normalised), 0 for none.
        random_start: Start at a random point of the ball instead of x.

    Raises:
        ConfigError: Fewer than one step or restart, or a step size that is not positive.

    Source: Madry et al., ICLR 2018, section 2.1; momentum as in Dong et al., CVPR 2018, algorithm 1.
    """
    _require(steps, restarts, step_size)
    victim = as_victim(victim, x, y, threat)
    eps = min(threat.eps, float(x[0].numel()) ** (0.0 if threat.norm == "linf" else 0.5))
    size = 2.5 * eps / steps if step_size is None else step_size
    for restart in range(restarts):
        rows = victim.alive()
        points = victim.ball[rows].random(seeds[rows], "pgd.start", step=restart) if random_start else x[rows]
        memory, ball = torch.zeros_like(points), victim.ball[rows]
        for _ in range(steps):
            if not len(rows):
                break
            gradient = victim.gradient(points, rows, loss, inside=True).gradient
            keep = (~victim.broken[rows]).nonzero()[:, 0]
            if len(keep) < len(rows):
                rows, memory, gradient, points = (v[keep] for v in (rows, memory, gradient, points))
                ball = ball[keep]
            memory = _direction(gradient, memory, momentum)
            points = ball.confine(steepest(memory, threat.norm).mul_(size).add_(points))
        if len(rows):
            victim.margins(points, rows, inside=True)
    return victim.ball.project(victim.result())


def _require(steps: int, restarts: int, step_size: float | None) -> None:
    if steps < 1:
        raise ConfigError(must("steps", "at least 1", steps, "noise() looks at points without a step"))
    if restarts < 1 or (step_size is not None and not step_size > 0):
        got = (restarts, step_size)
        raise ConfigError(must("restarts and step_size", "at least 1 and above 0", got, "else nothing is attacked"))


def _direction(gradient: Tensor, memory: Tensor, momentum: float) -> Tensor:
    """The gradient, or its running sum with l1-normalised terms; a zero gradient adds nothing."""
    if momentum == 0:
        return gradient
    total = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return momentum * memory + gradient / total.reshape(-1, *[1] * (gradient.dim() - 1))
