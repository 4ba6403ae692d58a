"""What the minimum-norm attacks share: the nearest success of each sample, radii per sample, and the search for c."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.errors import ConfigError, must
from robench.ops.norms import distance, per_sample
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.victim import Victim


class Closest:
    """The nearest success of each sample so far, wherever it lies in the box.

    A success that was known before the attack (in the victim's book) is where the search starts.
    """

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.points = victim.best.clone()
        self.distance = distance(victim.x, victim.best, victim.threat.norm)
        self.distance[~(victim.best_margin <= 0)] = math.inf
        self.score = self.distance.clone()
        """What is minimised, (N,): the distance, or what the attack gives instead."""

    def book(self, points: Tensor, rows: Tensor, success: Tensor, *, score: Tensor | None = None) -> Tensor:
        """Keep the successes that are nearer than the known ones; returns the distance of every point, (n,) float64."""
        far = distance(self.victim.x[rows], points, self.victim.threat.norm)
        score = far if score is None else score
        inside = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        nearer = success & inside & (score < self.score[rows])
        kept = rows[nearer]
        self.points[kept] = points[nearer]
        self.distance[kept], self.score[kept] = far[nearer], score[nearer]
        return far

    def part(self, victim: Victim) -> Closest:
        """What is known of the samples of a part, for a search of its own."""
        own, rows = Closest(victim), victim.parents
        own.points, own.distance, own.score = self.points[rows], self.distance[rows], self.score[rows]
        return own

    def wanted(self, rows: Tensor, *, stop: bool) -> Tensor:
        """Whether each sample is still to be searched, bool (n,): not at distance 0, nor broken where that is enough."""
        wanted = self.distance[rows] > 0
        return wanted & ~self.victim.broken[rows] if stop else wanted

    def result(self) -> Tensor:
        """The nearest success where it lies in the victim's ball, else the victim's own best point, (N, ...).

        The victim's best points are replaced by the nearest successes, so that others find them there.
        """
        inside = self.distance.isfinite() & self.victim.ball.contains(self.points) & (self.victim.best_margin <= 0)
        self.victim.best[inside] = self.points[inside]
        return self.victim.result()


def size(delta: Tensor, norm: str) -> Tensor:
    """Norm of each row of (N, ...), (N,) float64, whatever the company."""
    if norm == "linf":
        return delta.double().abs().flatten(1).amax(1)
    if norm == "l2":
        return row_sums(delta.double() ** 2).sqrt()
    return row_sums(delta.double().abs() if norm == "l1" else (delta != 0).double())


def farthest(x: Tensor, norm: str) -> Tensor:
    """Distance of the farthest point of the box from each x, (N,) float64."""
    return size(torch.maximum(x, 1 - x), norm)


def within(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The nearest change (N, ...) whose norm is at most each sample's ``radius`` (N,); float64.

    Source: linf and l2 in closed form; l1 by Duchi et al., ICML 2008, figure 1; l0 keeps the largest changes.
    """
    flat, limit = delta.double().flatten(1), radius.double()[:, None]
    if norm == "linf":
        shrunk = torch.minimum(torch.maximum(flat, -limit), limit)
    elif norm == "l2":
        shrunk = flat * (limit / size(delta, "l2")[:, None].clamp_min(1e-300)).clamp(max=1)
    elif norm == "l1":
        shrunk = _within_l1(flat, limit)
    else:
        rank = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        shrunk = torch.where(rank < limit, flat, 0.0)
    return shrunk.view_as(delta)


def _within_l1(flat: Tensor, limit: Tensor) -> Tensor:
    ordered = flat.abs().sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - limit) / torch.arange(1, flat.shape[1] + 1, device=flat.device)
    kept = (ordered > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = excess.gather(1, kept - 1).clamp_min(0)
    return flat.sign() * (flat.abs() - threshold).clamp_min(0)


def direction(gradient: Tensor, seeds: Draws, stage: str, *, step: int) -> Tensor:
    """The gradient at unit l2 norm, (N, ...) float64; a random direction where it is zero or not finite."""
    finite = gradient.flatten(1).isfinite().all(1)
    gradient = torch.where(per_sample(finite, gradient), gradient, 0.0).double()
    flat = gradient.flatten(1).abs().amax(1) == 0
    if bool(flat.any()):
        gradient[flat] = seeds[flat].normal(stage, gradient.shape[1:], step=step).double()
    peak = per_sample(gradient.flatten(1).abs().amax(1), gradient)
    scaled = gradient / peak
    return scaled / per_sample(size(scaled, "l2"), scaled)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing from ``first`` at step 0 towards ``last`` at ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def require_positive(**values: float) -> None:
    """Refuse counts and sizes that are not positive.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(must(name.replace("_", " "), "above 0", value, "else nothing is attacked"))


@dataclass
class Constant:
    """Each sample's own search for the smallest weight c of the classification term that still gives a success.

    Tenfold until the first success, then by halving the interval.

    Source: Carlini & Wagner, S&P 2017, section V-B; the bounds as in their code.
    """

    value: Tensor
    """c, (N,) float64."""
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, count: int, first: float, like: Tensor) -> Constant:
        """The search of ``count`` samples that starts at ``first``."""
        full = torch.full((count,), first, dtype=torch.float64, device=like.device)
        return cls(full, torch.zeros_like(full), torch.full_like(full, math.inf))

    def update(self, rows: Tensor, success: Tensor) -> None:
        """Move the samples ``rows`` on by what their last value gave, bool (n,)."""
        value = self.value[rows]
        low = torch.where(success, self.low[rows], torch.maximum(self.low[rows], value))
        high = torch.where(success, torch.minimum(self.high[rows], value), self.high[rows])
        self.low[rows], self.high[rows] = low, high
        self.value[rows] = torch.where(high.isinf(), value * 10, (low + high) / 2)


@dataclass
class Progress:
    """Each sample's own early stop: no more than 0.01 % less loss in a tenth of the steps."""

    last: Tensor
    """Loss at the last look, (N,) float64."""

    def stalled(self, rows: Tensor, loss: Tensor) -> Tensor:
        """Whether each sample's loss no longer falls, bool (n,)."""
        stalled = ~(loss <= 0.9999 * self.last[rows])
        self.last[rows] = loss
        return stalled


def lightest(
    closest: Closest,
    descend: Callable[[Tensor, Tensor], Tensor],
    *,
    constant: float,
    searches: int,
    confidence: float,
    stop: bool,
) -> Tensor:
    """The nearest successes (N, ...) of descents whose weight of the classification term each sample searches for itself.

    Args:
        closest: What is known, and where successes are booked; x itself is looked at first.
        descend: (weights (N,), rows) → whether each sample succeeded with its weight, bool (N,).
        constant: First weight.
        searches: Weights tried.
        confidence: Margin by which the label must lose.
        stop: Leave a sample at its first success in the ball.
    """
    victim = closest.victim
    rows = torch.arange(len(victim.x), device=victim.x.device)
    rows = rows[closest.wanted(rows, stop=stop)]
    if len(rows):
        closest.book(victim.x[rows], rows, victim.margins(victim.x[rows], rows) <= -confidence)
    weight = Constant.of(len(victim.x), constant, victim.x)
    for _ in range(searches):
        rows = rows[closest.wanted(rows, stop=stop)]
        if not len(rows):
            break
        weight.update(rows, descend(weight.value, rows)[rows])
    return closest.result()
