"""Carlini & Wagner's l2 attack: Adam in tanh space, with a search for the weight of the classification term."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, Progress, lightest, require_positive
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Pass, Victim, as_victim

_BETAS = (0.9, 0.999)
_TINY = 1e-8


@facts(version=1, norms=("l2",), access="white", randomness="none", targeted=True)
def cw(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    searches: int = 9,
    step_size: float = 0.01,
    constant: float = 1e-3,
    confidence: float = 0.0,
    shrink: float = 0.9,
    abort: bool = True,
    stop: bool = False,
) -> Tensor:
    """The nearest success of the Carlini-Wagner l2 attack per sample, (N, ...) in [0, 1], or the best point in the ball.

    Pixels are 0.5 + tanh(w) / (2·shrink), cut to the box, so that 0 and 1 have a finite w with a slope: with the
    0.999999 of the authors' code saturated pixels need hundreds of steps to move at all, which is why that code takes
    up to 10 000 and a hundred do here. Every sample searches its own weight and stops by its own loss.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l2; with eps ``inf`` the smallest distance is what is sought.
        seeds: Unused: nothing is random.
        steps: Adam steps per weight.
        searches: Weights tried, each from x.
        step_size: Of Adam, in units of w.
        constant: First weight; tenfold until the first success, then halving.
        confidence: Margin by which the label must lose.
        shrink: How near to the ends of tanh the pixels 0 and 1 lie, in (0, 1).
        abort: Leave a weight when a tenth of the steps brought less than 0.01 % (per sample).
        stop: Leave a sample at its first success in the ball instead of searching for a nearer one.

    Raises:
        ConfigError: Counts or sizes that are not positive, or a shrink outside (0, 1).

    Source: Carlini & Wagner, S&P 2017, section V (f6, change of variable, search of c); constants as in their code.
    """
    require_positive(steps=steps, searches=searches, step_size=step_size, constant=constant)
    require_positive(shrink=shrink, one_minus_shrink=1 - shrink)
    victim = as_victim(victim, x, y, threat)
    closest = Closest(victim)

    def descend(weight: Tensor, rows: Tensor) -> Tensor:
        run = _Descent(victim, closest, weight=weight, shrink=shrink, confidence=confidence)
        return run.descend(rows, steps=steps, step_size=step_size, abort=abort, stop=stop)

    return lightest(closest, descend, constant=constant, searches=searches, confidence=confidence, stop=stop)


class _Descent:
    """Adam from x with one weight per sample."""

    def __init__(self, victim: Victim, closest: Closest, *, weight: Tensor, shrink: float, confidence: float) -> None:
        self.victim, self.closest = victim, closest
        self.weight, self.shrink, self.confidence = weight, shrink, confidence
        self.w = torch.atanh((victim.x.double() * 2 - 1) * shrink)
        self.first, self.second = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.won = torch.zeros_like(victim.broken)
        self.progress = Progress(torch.full_like(weight, math.inf))

    def descend(self, rows: Tensor, *, steps: int, step_size: float, abort: bool, stop: bool) -> Tensor:
        """Whether each sample succeeded with its weight, bool (N,)."""
        every = math.ceil(steps / 10)
        for step in range(steps):
            if not len(rows):
                break
            tanh = self.w[rows].tanh()
            points = (0.5 + tanh / (2 * self.shrink)).clamp(0, 1).to(self.victim.x.dtype)
            found = self.victim.gradient(points, rows, "margin")
            success = found.margin <= -self.confidence
            self.won[rows] |= success
            self.closest.book(points, rows, success)
            loss, slope = self._objective(points, rows, found)
            self._adam(rows, slope * (1 - tanh**2) / (2 * self.shrink), step=step, step_size=step_size)
            keep = self.closest.wanted(rows, stop=stop)
            if abort and step % every == 0:
                keep &= ~self.progress.stalled(rows, loss)
            rows = rows[keep]
        return self.won

    def _objective(self, points: Tensor, rows: Tensor, found: Pass) -> tuple[Tensor, Tensor]:
        """Squared distance plus c times the hinge on the margin, (n,), and its gradient in pixels; float64."""
        delta = points.double() - self.victim.x[rows].double()
        hinge = (self.confidence - found.loss.double()).clamp_min(0)
        push = torch.where(hinge > 0, self.weight[rows], 0.0)
        slope = torch.where(found.gradient.isfinite(), found.gradient, 0.0).double()
        return row_sums(delta**2) + self.weight[rows] * hinge, 2 * delta - per_sample(push, slope) * slope

    def _adam(self, rows: Tensor, gradient: Tensor, *, step: int, step_size: float) -> None:
        first = self.first[rows] * _BETAS[0] + gradient * (1 - _BETAS[0])
        second = self.second[rows] * _BETAS[1] + gradient**2 * (1 - _BETAS[1])
        self.first[rows], self.second[rows] = first, second
        mean, spread = first / (1 - _BETAS[0] ** (step + 1)), second / (1 - _BETAS[1] ** (step + 1))
        self.w[rows] -= step_size * mean / (spread.sqrt() + _TINY)
