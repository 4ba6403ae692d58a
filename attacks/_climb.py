"""The search loop of the cascade: one full batch of slots; a sample that breaks or ends leaves its slot to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robench.ops.norms import confine_l2, dual_size
from robench.victim import Victim

VERSION = 1
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

MOMENTUM = 0.75
"""Weight of the new step against the last movement, as in APGD."""

Begin = Callable[[Tensor], Tensor]
"""Positions (k,) among the samples of a climb → their starting points (k, ...), in the ball."""


@dataclass(frozen=True)
class Phase:
    """Some steps, each sample's with one loss."""

    sizes: Sequence[float]
    """Step sizes in pixel units, one per step."""
    losses: Sequence[str] = ("margin",)
    choice: Tensor | None = None
    """Which of the losses each sample climbs, int64 (n,); None where there is one."""
    weights: Tensor | None = None
    """Output weights (n, K) instead of a loss (output-diversified steps)."""
    widths: Sequence[float] = ()
    """Radius of the ball that each step ends in, in units of eps (l2); empty: 1 throughout. A start lies in the first."""


def cosine(steps: int, eps: float) -> list[float]:
    """Step sizes from 2·eps down to 0 along half a cosine."""
    return [eps * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]


def climb(victim: Victim, rows: Tensor, begin: Begin, phases: Sequence[Phase]) -> None:
    """Ascend from the starting points of the samples ``rows`` (n,); everything found is in the victim's books.

    The momentum is on positions: x' = P(x + 0.75 (P(x + s d) - x) + 0.25 (x - x_before)), d the steepest direction; the
    first step is a plain one. Success is read from the pass that gives the gradient. The slope of the margin at each
    sample's last point is left in ``victim.slope``. A sample costs one pass per step and one for its last point.

    Source: Croce & Hein, ICML 2020, equation (2) (the step); Tashiro et al., NeurIPS 2020 (output-diversified steps).
    """
    slots = _Slots(victim, rows, begin, phases)
    while slots.fill():
        slots.advance()


class _Slots:
    """The batch: at its front the samples under way, behind them leftovers that only fill it up."""

    def __init__(self, victim: Victim, rows: Tensor, begin: Begin, phases: Sequence[Phase]) -> None:
        self.victim, self.rows, self.begin, self.phases = victim, rows, begin, phases
        device, width = rows.device, victim.width
        self.sizes = torch.tensor([s for p in phases for s in p.sizes] + [0.0], device=device, dtype=victim.x.dtype)
        widths = [w for p in phases for w in (p.widths or [1.0] * len(p.sizes))]
        self.wide = max(widths, default=1.0) > 1
        self.widths = torch.tensor([*widths, 1.0], device=device, dtype=torch.float64)
        """Radius that the step from each point leads into; the last point's does not count."""
        self.ends = [sum(len(p.sizes) for p in phases[: k + 1]) for k in range(len(phases))]
        self.place = torch.zeros(0, dtype=torch.int64, device=device)
        self.step = torch.zeros(0, dtype=torch.int64, device=device)
        self.next = 0
        shape = (width, *victim.x.shape[1:])
        self.points, self.before = (torch.zeros(shape, device=device, dtype=victim.x.dtype) for _ in range(2))
        self.low, self.high, self.centre = torch.zeros_like(self.points), torch.ones_like(self.points), None
        if victim.threat.norm == "l2":
            self.centre = torch.zeros_like(self.points)

    @cached_property
    def last(self) -> int:
        """The step at which a sample's last point is looked at."""
        return len(self.sizes) - 1

    def fill(self) -> bool:
        """Drop what has ended, give its slots to the next samples; whether anything is under way."""
        keep = (~self.victim.broken[self.rows[self.place]] & (self.step <= self.last)).nonzero()[:, 0]
        held = len(self.place)
        if len(keep) < held:
            self.place, self.step = self.place[keep], self.step[keep]
            for buffer in self._buffers():
                buffer[: len(keep)] = buffer[keep]
        while len(self.place) < self.victim.width and self.next < len(self.rows):
            self._admit(self.victim.width - len(self.place))
        return len(self.place) > 0

    def _buffers(self) -> list[Tensor]:
        return [b for b in (self.points, self.before, self.low, self.high, self.centre) if b is not None]

    def _admit(self, count: int) -> None:
        """The next samples that are still unbroken, from their starting points."""
        new = torch.arange(self.next, min(self.next + count, len(self.rows)), device=self.rows.device)
        self.next += len(new)
        new = new[~self.victim.broken[self.rows[new]]]
        if not len(new):
            return
        a, b = len(self.place), len(self.place) + len(new)
        chosen = self.rows[new]
        self.points[a:b] = self.begin(new)
        self.before[a:b] = self.points[a:b]
        if self.centre is None:
            self.low[a:b], self.high[a:b] = self.victim.ball[chosen].bounds()
        else:
            self.centre[a:b] = self.victim.x[chosen]
        self.place = torch.cat([self.place, new])
        self.step = torch.cat([self.step, torch.zeros_like(new)])

    def advance(self) -> None:
        """One pass over the batch, its books, and one step of every sample."""
        rows, count = self.rows[self.place], len(self.place)
        gradient = self.victim.pull(self.points, rows, self._weigh, inside=self._inside())
        ended = self.step == self.last
        if bool(ended.any()):
            self.victim.slope[rows[ended]] = dual_size(gradient[:count][ended], self.victim.threat.norm)
        self._move(gradient, count)
        self.step += 1

    def _inside(self) -> Tensor | None:
        """Which slots' points lie within eps, bool (n,); None where all do."""
        if not self.wide:
            return None
        return self.widths[(self.step - 1).clamp_min(0)] <= 1

    def _weigh(self, outputs: Tensor) -> Tensor:
        """Weights of the outputs whose gradient each slot climbs, (n, K); a last look takes the margin's."""
        weights = self._of("margin", outputs, self.place)
        start = 0
        for phase, end in zip(self.phases, self.ends, strict=True):
            now = (self.step >= start) & (self.step < end)
            if phase.weights is not None:
                chosen = now.nonzero()[:, 0]
                weights[chosen] = phase.weights[self.place[chosen]]
            for number, loss in enumerate(phase.losses if phase.weights is None else ()):
                if loss != "margin":
                    theirs = now if phase.choice is None else now & (phase.choice[self.place] == number)
                    chosen = theirs.nonzero()[:, 0]
                    weights[chosen] = self._of(loss, outputs[chosen], self.place[chosen])
            start = end
        return weights

    def _of(self, loss: str, outputs: Tensor, place: Tensor) -> Tensor:
        """Gradient of a loss with respect to the outputs, (n, K)."""
        rows, victim = self.rows[place], self.victim
        function = victim.task.loss(loss, None if victim.target is None else victim.target[rows])
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            return torch.autograd.grad(function(leaf, victim.y[rows]).sum(), leaf)[0]

    def _move(self, gradient: Tensor, count: int) -> None:
        """The step in place; ``gradient`` is used up."""
        points, before, shape = self.points, self.before, (-1, *[1] * (self.points.dim() - 1))
        size = torch.zeros(len(points), device=points.device, dtype=points.dtype)
        size[:count] = self.sizes[self.step]
        gradient.nan_to_num_(0.0, 0.0, 0.0)
        if self.centre is None:
            gradient.sign_()
        else:
            norms = torch.linalg.vector_norm(gradient.flatten(1), 2, dim=1)
            size = torch.where(norms > 0, size / norms, 0.0)
        radius = self._radius(count)
        moved = self._project(gradient.mul_(size.view(shape)).add_(points), radius)
        first = torch.ones(len(points), device=points.device, dtype=torch.bool)
        first[:count] = self.step == 0
        moved.mul_(torch.where(first, 1.0, MOMENTUM).view(shape))
        moved.addcmul_(points, torch.where(first, 0.0, 2 * (1 - MOMENTUM)).view(shape))
        moved.addcmul_(before, torch.where(first, 0.0, MOMENTUM - 1).view(shape))
        self.points, self.before = self._project(moved, radius), points

    def _radius(self, count: int) -> Tensor | float:
        """Radius of every slot's ball after this step."""
        eps = self.victim.threat.eps
        if not self.wide:
            return eps
        radius = torch.full((len(self.points),), eps, device=self.points.device, dtype=torch.float64)
        radius[:count] *= self.widths[self.step]
        return radius

    def _project(self, points: Tensor, radius: Tensor | float) -> Tensor:
        if self.centre is None:
            return torch.clamp(points, self.low, self.high, out=points)
        return confine_l2(points, self.centre, radius)
