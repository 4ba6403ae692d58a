"""Elastic-net attack: FISTA on an l1 and an l2 penalty, with a search for the weight of the classification term."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, Progress, lightest, require_positive
from robench.errors import ConfigError, must
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("l1",), access="white", randomness="none", targeted=True)
def ead(
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
    beta: float = 1e-2,
    confidence: float = 0.0,
    rule: str = "L1",
    abort: bool = True,
    stop: bool = False,
) -> Tensor:
    """The best success of the elastic-net attack per sample, (N, ...) in [0, 1], or the best point in the ball.

    Every sample searches its own weight and stops by its own loss. The paper takes 1000 steps and beta from 1e-3; a
    beta of 1e-2 gives smaller l1 distances in a tenth of the steps. FISTA's extrapolated points are cut to the box,
    where alone a model is defined.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l1; with eps ``inf`` the smallest distance is what is sought.
        seeds: Unused: nothing is random.
        steps: FISTA steps per weight: a gradient and a forward pass each.
        searches: Weights tried, each from x.
        step_size: First step, falling by a square root to 0.
        constant: First weight; tenfold until the first success, then halving.
        beta: Weight of the l1 penalty, and threshold of the shrinkage, in pixel units.
        confidence: Margin by which the label must lose.
        rule: Which success is the best: ``L1`` by l1 distance, ``EN`` by the elastic net.
        abort: Leave a weight when a tenth of the steps brought less than 0.01 % (per sample).
        stop: Leave a sample at its first success in the ball instead of searching for a nearer one.

    Raises:
        ConfigError: Counts or sizes that are not positive, or an unknown rule.

    Source: Chen et al., AAAI 2018, equations 6 to 8 and algorithm 1; decay of the step and constants as in their code.
    """
    require_positive(steps=steps, searches=searches, step_size=step_size, constant=constant)
    if rule not in ("L1", "EN"):
        raise ConfigError(must("rule", "'L1' or 'EN'", rule, "choose one of them"))
    victim = as_victim(victim, x, y, threat)
    closest = Closest(victim)
    if rule == "EN":
        closest.score = elastic(closest.points, x, beta).where(closest.distance.isfinite(), closest.score)

    def descend(weight: Tensor, rows: Tensor) -> Tensor:
        run = _Fista(victim, closest, weight=weight, beta=beta, confidence=confidence, rule=rule)
        return run.descend(rows, steps=steps, step_size=step_size, abort=abort, stop=stop)

    return lightest(closest, descend, constant=constant, searches=searches, confidence=confidence, stop=stop)


def elastic(points: Tensor, x: Tensor, beta: float) -> Tensor:
    """beta·‖points - x‖₁ + ‖points - x‖₂², (N,) float64."""
    delta = points.double() - x.double()
    return row_sums(beta * delta.abs() + delta**2)


def shrunk(moved: Tensor, x: Tensor, beta: float) -> Tensor:
    """Each pixel moved back towards x by beta, at most to x, and cut to the box (equation 8)."""
    delta = moved - x
    return (x + delta.sign() * (delta.abs() - beta).clamp_min(0)).clamp(0, 1)


class _Fista:
    """Projected accelerated shrinkage-thresholding from x with one weight per sample."""

    def __init__(
        self, victim: Victim, closest: Closest, *, weight: Tensor, beta: float, confidence: float, rule: str
    ) -> None:
        self.victim, self.closest, self.weight = victim, closest, weight
        self.beta, self.confidence, self.rule = beta, confidence, rule
        self.points, self.ahead = victim.x.clone(), victim.x.clone()
        self.won = torch.zeros_like(victim.broken)
        self.progress = Progress(torch.full_like(weight, math.inf))

    def descend(self, rows: Tensor, *, steps: int, step_size: float, abort: bool, stop: bool) -> Tensor:
        """Whether each sample succeeded with its weight, bool (N,)."""
        every = math.ceil(steps / 10)
        for step in range(steps):
            if not len(rows):
                break
            loss, slope = self._objective(rows)
            self._move(rows, slope, size=step_size * math.sqrt(1 - step / steps), pull=step / (step + 3))
            points = self.points[rows]
            success = self.victim.margins(points, rows) <= -self.confidence
            self.won[rows] |= success
            self._book(points, rows, success)
            keep = self.closest.wanted(rows, stop=stop)
            if abort and step % every == 0:
                keep &= ~self.progress.stalled(rows, loss)
            rows = rows[keep]
        return self.won

    def _objective(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Elastic net plus c times the hinge at the extrapolated points, (n,), and its smooth part's gradient; float64."""
        ahead, x = self.ahead[rows], self.victim.x[rows]
        found = self.victim.gradient(ahead, rows, "margin")
        self._book(ahead, rows, found.margin <= -self.confidence)
        hinge = (self.confidence - found.loss.double()).clamp_min(0)
        push = torch.where(hinge > 0, self.weight[rows], 0.0)
        slope = torch.where(found.gradient.isfinite(), found.gradient, 0.0).double()
        smooth = 2 * (ahead.double() - x.double()) - per_sample(push, slope) * slope
        return elastic(ahead, x, self.beta) + self.weight[rows] * hinge, smooth

    def _move(self, rows: Tensor, slope: Tensor, *, size: float, pull: float) -> None:
        x, before = self.victim.x[rows].double(), self.points[rows].double()
        after = shrunk(self.ahead[rows].double() - size * slope, x, self.beta)
        self.points[rows] = after.to(self.points.dtype)
        self.ahead[rows] = (after + pull * (after - before)).clamp(0, 1).to(self.points.dtype)

    def _book(self, points: Tensor, rows: Tensor, success: Tensor) -> None:
        score = elastic(points, self.victim.x[rows], self.beta) if self.rule == "EN" else None
        self.closest.book(points, rows, success, score=score)
