"""Decoupled direction and norm: a minimum-norm l2 attack whose radius grows outside and shrinks inside the success."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, cosine, direction, farthest, require_positive, size
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("l2",), access="white", randomness="per_sample", targeted=True)
def ddn(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    init_norm: float = 1.0,
    gamma: float = 0.05,
    step_size: float = 1.0,
    loss: str = "ce",
    stop: bool = False,
) -> Tensor:
    """The nearest success that DDN visits per sample, (N, ...) in [0, 1], or the best point in the ball.

    A zero gradient is replaced by a random direction, and the radius never leaves the box behind. The paper's last
    step, rounding to 256 levels, is left out: what counts here are floats.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l2; with eps ``inf`` the smallest distance is what is sought.
        seeds: Per-sample randomness of the directions where the gradient is zero.
        steps: Gradient steps.
        init_norm: First radius, in pixel units.
        gamma: Relative change of the radius per step.
        step_size: First step, in pixel units; it falls to a hundredth by a cosine.
        loss: ``ce``, or ``margin``.
        stop: Leave a sample at its first success in the ball instead of searching for a nearer one.

    Raises:
        ConfigError: Steps, a radius or a step size that is not positive.

    Source: Rony et al., CVPR 2019, algorithm 1 and section 4.1.
    """
    require_positive(steps=steps, init_norm=init_norm, step_size=step_size, gamma=gamma)
    victim = as_victim(victim, x, y, threat)
    closest, rows = Closest(victim), torch.arange(len(x), device=x.device)
    points, limit = x.clone(), farthest(x, "l2")
    radius = torch.full_like(limit, init_norm)
    rows = rows[closest.wanted(rows, stop=stop)]
    for step in range(steps):
        if not len(rows):
            break
        found = victim.gradient(points[rows], rows, loss)
        success = found.margin <= 0
        closest.book(points[rows], rows, success)
        radius[rows] = torch.minimum(radius[rows] * (1 + gamma * (1 - 2 * success.double())), limit[rows])
        move = cosine(step_size, step_size / 100, step, steps)
        towards = direction(found.gradient, seeds[rows], "ddn.flat", step=step)
        delta = points[rows].double() - x[rows].double() + move * towards
        points[rows] = _on_sphere(x[rows], delta, radius[rows])
        rows = rows[closest.wanted(rows, stop=stop)]
    if len(rows):
        closest.book(points[rows], rows, victim.margins(points[rows], rows) <= 0)
    return closest.result()


def _on_sphere(x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
    """x plus the change stretched or shrunk to the radius, cut to the box."""
    scale = radius / size(delta, "l2").clamp_min(1e-300)
    return (x.double() + delta * per_sample(scale, delta)).clamp(0, 1).to(x.dtype)
