"""Ascent along gradients that are estimated from the losses at random points nearby."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.norms import steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

Move = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(points, estimates, rows) → the points one step further, all (n, ...)."""


@facts(version=1, norms=("linf", "l2"), access="score", randomness="per_sample", targeted=True)
def nes(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    queries: int = 1000,
    pairs: int = 25,
    sigma: float = 1e-3,
    step_size: float | None = None,
    momentum: float = 0.9,
    loss: str = "margin",
) -> Tensor:
    """The worst point of ascent along gradients that antithetic Gaussian pairs estimate, (N, ...) in [0, 1].

    Only images are queried: the points of a pair are clipped to the box, which halves the weight of features at its edge.

    Args:
        victim: The victim or a plain module; its outputs are asked, not its gradients.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness of the directions.
        queries: Forward passes per sample at most; the threat's own limit holds too.
        pairs: Pairs per estimate; every step looks at the new point besides.
        sigma: Standard deviation of a direction's features, in pixel units.
        step_size: In pixel units; None is 2.5·eps/steps.
        momentum: Weight of the earlier estimates.
        loss: ``margin``, ``ce`` or another of the task.

    Raises:
        ConfigError: Fewer than three queries or one pair, a size that is not positive, or a momentum not in [0, 1).

    Source: Ilyas et al., ICML 2018, section 2.1 and algorithm 1.
    """
    if not 0 <= momentum < 1:
        raise ConfigError(must("momentum", "in [0, 1)", momentum, "the default is 0.9"))
    plan = _plan(threat, queries=queries, pairs=pairs, width=sigma, size=step_size, loss=loss)
    victim = as_victim(victim, x, y, threat)
    reach = min(threat.eps, float(x[0].numel()) ** (0.0 if threat.norm == "linf" else 0.5))
    size = 2.5 * reach / len(plan.steps) if step_size is None else step_size
    memory = torch.zeros_like(x)

    def move(points: Tensor, estimate: Tensor, rows: Tensor) -> Tensor:
        memory[rows] = momentum * memory[rows] + (1 - momentum) * estimate
        return points + size * steepest(memory[rows], threat.norm)

    def draw(rows: Tensor, step: int) -> Tensor:
        return seeds[rows].normal("nes", x.shape[1:], step=step).to(x.dtype)

    return _ascend(victim, plan, draw=draw, move=move)


@facts(version=1, norms=("linf", "l2"), access="score", randomness="per_sample", targeted=True)
def spsa(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    queries: int = 1000,
    pairs: int = 32,
    delta: float = 0.01,
    rate: float = 0.01,
    loss: str = "margin",
) -> Tensor:
    """The worst point of Adam on gradients that pairs of opposite random signs estimate, (N, ...) in [0, 1].

    Only images are queried: the points of a pair are clipped to the box, which halves the weight of features at its edge.

    Args:
        victim: The victim or a plain module; its outputs are asked, not its gradients.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness of the directions.
        queries: Forward passes per sample at most; the threat's own limit holds too.
        pairs: Pairs per estimate; every step looks at the new point besides.
        delta: Size of a direction's features, in pixel units.
        rate: Adam's rate, in pixel units.
        loss: ``margin``, ``ce`` or another of the task.

    Raises:
        ConfigError: Fewer than three queries or one pair, or a size that is not positive.

    Source: Uesato et al., ICML 2018, section 4.2 and algorithm 1.
    """
    plan = _plan(threat, queries=queries, pairs=pairs, width=delta, size=rate, loss=loss)
    victim = as_victim(victim, x, y, threat)
    first, second, taken = torch.zeros_like(x), torch.zeros_like(x), [0]

    def move(points: Tensor, estimate: Tensor, rows: Tensor) -> Tensor:
        taken[0] += 1
        first[rows] = 0.9 * first[rows] + 0.1 * estimate
        second[rows] = 0.999 * second[rows] + 0.001 * estimate.square()
        size = (second[rows] / (1 - 0.999 ** taken[0])).sqrt() + 1e-8
        return points + rate / (1 - 0.9 ** taken[0]) * first[rows] / size

    def draw(rows: Tensor, step: int) -> Tensor:
        return seeds[rows].integers("spsa", x.shape[1:], 2, step=step).to(x.dtype) * 2 - 1

    return _ascend(victim, plan, draw=draw, move=move)


@dataclass(frozen=True)
class _Plan:
    steps: tuple[int, ...]
    """Pairs of each step."""
    width: float
    loss: str


def _plan(threat: ThreatModel, *, queries: int, pairs: int, width: float, size: float | None, loss: str) -> _Plan:
    """Steps of ``pairs`` pairs and one look each, as many as the queries allow; the last may have fewer pairs."""
    left = queries if threat.queries is None else min(queries, threat.queries)
    if left < 3:
        raise ConfigError(must("queries", "at least 3", left, "an estimate takes two and the new point one"))
    if pairs < 1 or not width > 0 or (size is not None and not size > 0):
        got = (pairs, width, size)
        raise ConfigError(must("pairs, width and step size", "at least 1 and above 0", got, "leave them out for defaults"))
    whole, rest = divmod(left, 2 * pairs + 1)
    return _Plan((pairs,) * whole + (((rest - 1) // 2,) if rest >= 3 else ()), width, loss)


def _ascend(victim: Victim, plan: _Plan, *, draw: Callable[[Tensor, int], Tensor], move: Move) -> Tensor:
    rows = victim.alive()
    points = victim.x[rows]
    for step, pairs in enumerate(plan.steps):
        first = step * plan.steps[0]
        estimate = estimated(
            victim, points, rows, draw=draw, draws=range(first, first + pairs), width=plan.width, loss=plan.loss
        )
        keep = ~victim.broken[rows]
        rows = rows[keep]
        if not len(rows):
            break
        points = victim.ball[rows].project(move(points[keep], estimate[keep], rows))
        victim.margins(points, rows)
        keep = ~victim.broken[rows]
        rows, points = rows[keep], points[keep]
    return victim.result()


def estimated(
    victim: Victim,
    points: Tensor,
    rows: Tensor,
    *,
    draw: Callable[[Tensor, int], Tensor],
    draws: range,
    width: float,
    loss: str,
) -> Tensor:
    """Gradients of the loss estimated from pairs of queries around the points, (n, ...).

    The mean of u·(f(p + w·u) − f(p − w·u)) / 2w over the directions u; what a query breaks asks no more.

    Args:
        victim: Who is asked.
        points: Points (n, ...).
        rows: Their positions (n,).
        draw: (rows, number) → directions (n, ...) of unit variance.
        draws: Numbers of the directions.
        width: w, in pixel units.
        loss: Name of the loss.
    """
    total = torch.zeros_like(points)
    part = torch.arange(len(rows), device=rows.device)
    for number in draws:
        part = part[~victim.broken[rows[part]]]
        if not len(part):
            break
        direction = draw(rows[part], number)
        above = _losses(victim, points[part] + width * direction, rows[part], loss)
        keep = ~victim.broken[rows[part]]
        part, direction = part[keep], direction[keep]
        if not len(part):
            break
        below = _losses(victim, points[part] - width * direction, rows[part], loss)
        slope = (above[keep] - below) / (2 * width * len(draws))
        total[part] += slope.reshape(-1, *[1] * (points.dim() - 1)) * direction
    return total


def _losses(victim: Victim, points: Tensor, rows: Tensor, name: str) -> Tensor:
    loss = victim.task.loss(name, None if victim.target is None else victim.target[rows])
    return loss(victim.logits(points.clamp(0, 1), rows), victim.y[rows])
