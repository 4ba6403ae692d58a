"""Fewest changed features by gradient descent on a smooth count of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.norms import distance, per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("l0",), access="white", randomness="none", targeted=True)
def sigma_zero(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 300,
    rate: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    factor: float = 0.01,
    polish: bool = True,
    stop: bool = True,
) -> Tensor:
    """Misclassified points with few changed features, (N, ...) in [0, 1]; the lowest-margin point where there is none.

    Adam on the margin plus the smooth count, the gradient scaled to unit linf norm; after every step the changes
    below a threshold are undone, which rises while the point is misclassified and falls while it is not.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l0, counted in features (channels count apart).
        seeds: Not used: nothing is drawn.
        steps: Gradient steps.
        rate: Adam's first rate; falls along a cosine to a tenth.
        sigma: Smoothness of the count Σδ²/(δ²+σ), in squared pixel units.
        threshold: First threshold, in pixel units.
        factor: What the threshold moves by per step, as a part of the rate.
        polish: Bisect at the end how few features suffice at the box's edge, in order of their first-order gain.
        stop: A sample leaves with its first success within a finite eps; else its smallest is sought to the last step.

    Raises:
        ConfigError: Fewer than one step; a rate or sigma that is not positive; a negative threshold or factor.

    Source: Cinà et al., ICLR 2025, algorithm 1 and section 2.2; the last search is ours.
    """
    if steps < 1 or not (rate > 0 and sigma > 0):
        got = (steps, rate, sigma)
        raise ConfigError(must("steps, rate and sigma", "at least 1 and above 0", got, "defaults are 300, 1.0 and 1e-3"))
    if not (threshold >= 0 and factor >= 0):
        raise ConfigError(must("threshold and factor", "at least 0", (threshold, factor), "defaults are 0.3 and 0.01"))
    victim = as_victim(victim, x, y, threat)
    stop = stop and not math.isinf(threat.eps)
    found = _Smallest(victim)
    last = _descend(victim, found, steps=steps, rate=rate, sigma=sigma, threshold=threshold, factor=factor, stop=stop)
    _look_inside(victim, found, last)
    if polish:
        _polish(victim, found, stop=stop)
    return found.result()


class _Smallest:
    """Each sample's misclassified point with the fewest changes among all that were looked at."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.points = victim.x.clone()
        self.count = torch.full((len(victim.x),), torch.inf, dtype=torch.float64, device=victim.x.device)

    def offer(self, points: Tensor, rows: Tensor, wrong: Tensor) -> None:
        count = distance(self.victim.x[rows], points, "l0")
        better = wrong & (count < self.count[rows])
        self.points[rows[better]], self.count[rows[better]] = points[better], count[better]

    def result(self) -> Tensor:
        """The smallest successes within eps; the victim's own result elsewhere."""
        within = self.count <= self.victim.threat.eps
        return torch.where(per_sample(within, self.points), self.points, self.victim.result())


def _descend(
    victim: Victim,
    found: _Smallest,
    *,
    steps: int,
    rate: float,
    sigma: float,
    threshold: float,
    factor: float,
    stop: bool,
) -> Tensor:
    """Run the descent, offering every point to ``found``; returns each sample's last point, (N, ...)."""
    last, rows = victim.x.clone(), victim.alive()
    state = _State.new(victim.x[rows], threshold)
    for step in range(steps):
        if not len(rows):
            break
        seen = victim.gradient(state.points, rows, "margin")
        wrong = seen.margin <= 0
        found.offer(state.points, rows, wrong)
        gradient = _gradient(seen.gradient, wrong, state.points - victim.x[rows], sigma)
        state = state.moved(gradient, victim.x[rows], step=step, rate=_cosine(rate, step, steps))
        state.threshold += torch.where(wrong, 1.0, -1.0) * factor * _cosine(rate, step + 1, steps)
        state.threshold.clamp_(0, 1)
        state.filtered(victim.x[rows])
        last[rows] = state.points
        if stop:
            keep = ~victim.broken[rows]
            rows, state = rows[keep], state[keep]
    return last


@dataclass
class _State:
    """Adam's memories, the points and the thresholds of the samples still searched."""

    points: Tensor
    first: Tensor
    second: Tensor
    threshold: Tensor

    @staticmethod
    def new(x: Tensor, threshold: float) -> _State:
        level = torch.full((len(x),), threshold, dtype=x.dtype, device=x.device)
        return _State(x.clone(), torch.zeros_like(x), torch.zeros_like(x), level)

    def __getitem__(self, keep: Tensor) -> _State:
        return _State(self.points[keep], self.first[keep], self.second[keep], self.threshold[keep])

    def moved(self, gradient: Tensor, x: Tensor, *, step: int, rate: float) -> _State:
        """One step of Adam (0.9, 0.999, 1e-8) within the box."""
        first = 0.9 * self.first + 0.1 * gradient
        second = 0.999 * self.second + 0.001 * gradient.square()
        size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        points = (self.points - rate / (1 - 0.9 ** (step + 1)) * first / size).clamp(0, 1)
        return _State(points, first, second, self.threshold)

    def filtered(self, x: Tensor) -> None:
        small = (self.points - x).abs() < per_sample(self.threshold, x)
        self.points = torch.where(small, x, self.points)


def _gradient(ascent: Tensor, wrong: Tensor, delta: Tensor, sigma: float) -> Tensor:
    """Gradient of the clipped margin plus the smooth count, scaled to unit linf norm."""
    count = 2 * sigma * delta / (delta.square() + sigma).square() / delta[0].numel()
    total = count - torch.where(per_sample(wrong, delta), torch.zeros_like(ascent), ascent)
    return total / per_sample(total.abs().flatten(1).amax(1).clamp_min(1e-12), total)


def _cosine(rate: float, step: int, steps: int) -> float:
    """Rate at a step: a cosine from ``rate`` to a tenth of it."""
    return rate * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)


def _look_inside(victim: Victim, found: _Smallest, last: Tensor) -> None:
    """Look at the largest changes within eps of the smallest success, or of the last point where there is none."""
    rows = victim.alive()
    if math.isinf(victim.threat.eps):
        rows = rows[found.count[rows].isinf()]
    if len(rows):
        some = per_sample(found.count[rows].isfinite(), victim.x)
        points = victim.ball[rows].project(torch.where(some, found.points[rows], last[rows]))
        found.offer(points, rows, victim.margins(points, rows) <= 0)


def _polish(victim: Victim, found: _Smallest, *, stop: bool) -> None:
    """Bisect how few features suffice at the box's edge, those of the largest first-order gain first."""
    rows = (found.count.isfinite() & (found.count > 1)).nonzero()[:, 0]
    if stop:
        rows = rows[~victim.broken[rows]]
    if not len(rows):
        return
    x = victim.x[rows]
    gradient = victim.gradient(found.points[rows], rows, "margin").gradient
    gain = torch.maximum(gradient * (1 - x), -gradient * x).flatten(1)
    place = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    edge = (gradient > 0).to(x.dtype)
    low, high = torch.zeros_like(found.count[rows]), found.count[rows].clone()
    while True:
        part = ((high - low > 1) & ~(victim.broken[rows] & stop)).nonzero()[:, 0]
        if not len(part):
            break
        middle = ((low[part] + high[part]) / 2).floor()
        kept = (place[part] < middle[:, None]).view_as(x[part])
        trial = torch.where(kept, edge[part], x[part])
        wrong = victim.margins(trial, rows[part]) <= 0
        found.offer(trial, rows[part], wrong)
        high[part] = torch.where(wrong, middle, high[part])
        low[part] = torch.where(wrong, low[part], middle)
