"""What an adversary may ask of a model, and the book that is kept while it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import AttackError, ConfigError, NoGradientError, must, suggestion
from robench.inference import asked, chunks, padded
from robench.ops.chance import seeded
from robench.ops.norms import Ball
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, Task

_LEVELS = {"transfer": 0, "decision": 0, "noise": 1, "score": 1, "white": 2}


BOOKS = ("forwards", "backwards", "zero_gradients", "nonfinite_gradients", "nonfinite_outputs")
"""Per-sample counts that a victim keeps, int64 (N,) each."""


@dataclass(frozen=True)
class Pass:
    """What one fused forward and backward pass returned for n points."""

    loss: Tensor
    """The attack's loss, (n,)."""
    margin: Tensor
    """Signed distance to failure in output units, (n,); at or below 0 the point is misclassified."""
    gradient: Tensor
    """Gradient of the loss with respect to the points, (n, ...)."""
    outputs: Tensor
    """The model's outputs at the points, (n, ...)."""


class Victim:
    """A model on N samples, as an adversary meets it.

    It counts the passes each sample was charged, keeps each sample's first success or else its lowest-margin point
    among those in the ball and in the box, and refuses what the access level does not grant. ``rows`` are int64
    positions of the queried points among the N samples, each at most once in a call.

    With ``target`` (N,) every loss is the targeted one of its name; success stays any misclassification.

    With ``samples`` the model is a randomised one: every query looks at it that often, under the global generators'
    states that ``seed`` and a count of the looks give, and is charged for all of them. Losses, outputs and gradients are
    then means over the draws (EOT: Athalye et al., ICML 2018, section 4.2), margins an upper quartile: a sample is left
    as broken where at most a quarter of the draws recognise it, so that luck alone ends few searches. Whether the half
    does, ``judge_repeatedly`` decides with fresh draws.
    """

    forwards: Tensor
    backwards: Tensor
    zero_gradients: Tensor
    nonfinite_gradients: Tensor
    nonfinite_outputs: Tensor

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel,
        task: Task = CLASSIFICATION,
        width: int = 64,
        access: str = "white",
        target: Tensor | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        if samples is not None and samples < 1:
            raise ConfigError(must("samples", "at least 1, or None", samples, "None is a model without randomness"))
        if access not in _LEVELS:
            raise ConfigError(must("a victim's access", "one of " + ", ".join(_LEVELS), access, suggestion(access, _LEVELS)))
        self.model, self.x, self.y = model, x, y
        self.threat, self.task, self.width, self.access = threat, task, width, access
        self.target = target
        self.samples, self.seed, self.looks = samples, seed, 0
        self.channels_last = False
        """Whether the model is asked with images that lie channels-last in memory."""
        self.slope = torch.ones(len(x), device=x.device, dtype=x.dtype)
        self.clean: Tensor | None = None
        self.order: Tensor | None = None
        self.ball = Ball(x, threat)
        self.parents = torch.arange(len(x), device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best = x.clone()
        self.best_margin = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        for name in BOOKS:
            setattr(self, name, torch.zeros(len(x), dtype=torch.int64, device=x.device))

    def part(self, rows: Tensor, *, target: Tensor | None = None) -> Victim:
        """A victim of the samples ``rows`` (n,), which may repeat, with books of its own and the best points so far.

        Copies let several targets of a sample share a batch; each goes on whatever happens to the others, so that what is
        found does not depend on which of them are under way together. ``absorb`` gives back what was found.
        """
        told: dict[str, Any] = {"threat": self.threat, "task": self.task, "width": self.width, "access": self.access}
        part = Victim(self.model, self.x[rows], self.y[rows], target=target, **told)
        part.samples, part.seed, part.looks = self.samples, self.seed, self.looks
        part.channels_last = self.channels_last
        part.parents, part.broken = rows, self.broken[rows].clone()
        part.slope = self.slope[rows].clone()
        part.clean = None if self.clean is None else self.clean[rows]
        part.order = None if self.order is None else self.order[rows]
        part.best, part.best_margin = self.best[rows].clone(), self.best_margin[rows].clone()
        return part

    def absorb(self, part: Victim) -> None:
        """Take over a part's books, and its points where they are better."""
        self.looks = part.looks
        for name in BOOKS:
            getattr(self, name).index_add_(0, part.parents, getattr(part, name))
        order = part.best_margin.argsort(stable=True)
        order = order[part.parents[order].argsort(stable=True)]
        rows = part.parents[order]
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        chosen, rows = order[first], rows[first]
        better = (part.best_margin[chosen] < self.best_margin[rows]) & ~self.broken[rows]
        chosen, rows = chosen[better], rows[better]
        self.best[rows], self.best_margin[rows] = part.best[chosen], part.best_margin[chosen]
        self.broken[rows] = part.best_margin[chosen] <= 0
        self.slope[rows] = part.slope[chosen]

    @property
    def separable(self) -> bool:
        """Whether a sample's answers do not depend on what else is asked at the same time."""
        return self.samples is None

    def alive(self) -> Tensor:
        """Positions of the samples that no query has broken yet, int64."""
        return (~self.broken).nonzero()[:, 0]

    def logits(self, points: Tensor, rows: Tensor, *, inside: bool = False) -> Tensor:
        """Outputs at the points, (n, ...): one forward pass each (score access)."""
        return self._scored(points, rows, inside)[1]

    def margins(self, points: Tensor, rows: Tensor, *, inside: bool = False) -> Tensor:
        """Margins of the points, (n,): one forward pass each (score access)."""
        return self._scored(points, rows, inside)[0]

    def race(self, points: Tensor, rows: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ask for several points of a sample one after another, until a margin falls below its bound (score access).

        The model sees all of them at once, as it would the filling of a batch; but those behind the first success count
        as never asked: they are charged to nobody, nothing of them is kept, and their margins are not told.

        Args:
            points: (m, ...), from the ball's own projection; those of a sample stand together, in the order of asking.
            rows: Their samples, (m,), which may repeat.
            bounds: A margin (m,) that a success must be below, at least the lowest one of its sample so far.

        Returns:
            Which points were asked, int64 (m,) of 0 and 1, positions of the successes among the points, (w,), and the
            margins there, (w,).
        """
        self.require("score")
        margin, _ = self._looked(points, rows)
        below = margin < bounds
        asked = _until_first(below, rows)
        won = (below & (asked > 0)).nonzero()[:, 0]
        self._count(rows, margin, asked)
        self._keep(points[won], rows[won], margin[won])
        return asked, won, margin[won]

    def misclassified(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether each point is misclassified, bool (n,): one forward pass each (decision access)."""
        margin, _ = self._looked(points, rows)
        self._record(points, rows, margin)
        return margin <= 0

    def gradient(
        self, points: Tensor, rows: Tensor, loss: str = "ce", *, weights: Tensor | None = None, inside: bool = False
    ) -> Pass:
        """Loss, margin and input gradient of the points from one fused pass (white-box access).

        Args:
            points: (n, ...).
            rows: Their samples, (n,).
            loss: A loss of the task.
            weights: Instead of the loss, the sum of the outputs with these weights, (n, K).
            inside: The points come from the ball's own projection and are not looked at again here; the judge does.

        Raises:
            NoGradientError: The model returned no gradient for its input.
        """
        self.require("white")
        margin, value, gradient, outputs = self._chunked(
            lambda a, b: self._fused(points[a:b], rows[a:b], loss, None if weights is None else weights[a:b]), len(points)
        )
        result = Pass(value, margin, gradient, outputs)
        self._record(points, rows, result.margin, inside)
        self._inspect(result.gradient, rows)
        return result

    def pull(
        self, points: Tensor, rows: Tensor, weigh: Callable[[Tensor], Tensor], *, inside: Tensor | None = None
    ) -> Tensor:
        """Gradient (width, ...) of the outputs, weighted as ``weigh`` has it, for one full batch (white-box access).

        Args:
            points: (width, ...), from the ball's own projection; the first n count, the others fill the batch.
            rows: Samples of the first n, (n,).
            weigh: Outputs (n, K) → their weights (n, K).
            inside: Which of the first n lie in the ball, bool (n,), where some are looked at outside; None is all.

        Raises:
            NoGradientError: The model returned no gradient for its input.
        """
        self.require("white")
        count = len(rows)
        with torch.enable_grad():
            leaf = self._laid(points.detach()).requires_grad_(True)
            outputs = self.model(leaf)
        seen = outputs.detach()[:count]
        weights = torch.zeros_like(outputs, requires_grad=False)
        weights[:count] = weigh(seen)
        with torch.enable_grad():
            pulled = outputs * weights
        gradient = _gradient(pulled, leaf)
        margin = self.task.margin(seen, self.y[rows])
        self._count(rows, margin)
        self._keep(points[:count], rows, margin if inside is None else margin.masked_fill(~inside, torch.inf))
        self._inspect(gradient[:count], rows)
        return gradient

    def clean_logits(self) -> Tensor:
        """Outputs at the clean images, (N, ...), asked for once."""
        if self.clean is None:
            self.clean = self.logits(self.x, torch.arange(len(self.x), device=self.x.device), inside=True)
        return self.clean

    def class_gradients(self, points: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (n, K), and gradients (n, T, ...) of each class's logit minus the label's (white-box access).

        One forward pass each, and one backward pass per class: ``classes`` is int64 (n, T).

        Raises:
            NoGradientError: The model returned no gradient for its input.
        """
        self.require("white")
        margin, outputs, gradients = self._chunked(
            lambda a, b: self._products(points[a:b], rows[a:b], classes[a:b]), len(points)
        )
        self._record(points, rows, margin)
        for k in range(classes.shape[1]):
            self._inspect(gradients[:, k], rows)
        return outputs, gradients

    def result(self) -> Tensor:
        """The first success of each sample, else its lowest-margin point, else x itself, (N, ...)."""
        return self.best

    def require(self, level: str) -> None:
        """Refuse what the access level does not grant.

        Raises:
            AttackError: The victim is less open than ``level``.
        """
        if _LEVELS[self.access] < _LEVELS[level]:
            raise AttackError(must("the attack's access", f"at most {self.access!r}", level, "choose another threat model"))

    def _scored(self, points: Tensor, rows: Tensor, inside: bool) -> tuple[Tensor, Tensor]:
        self.require("score")
        margin, outputs = self._looked(points, rows)
        self._record(points, rows, margin, inside)
        return margin, outputs

    def _looked(self, points: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._chunked(lambda a, b: self._forward(points[a:b], rows[a:b]), len(points))

    def _chunked(self, look: Callable[[int, int], tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
        """What a look returns, margins first, for all of ``count`` points, in chunks of the protocol's width."""
        parts = [self._averaged(partial(look, a, b)) for a, b in chunks(count, self.width)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _averaged(self, look: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """A look itself, or of a randomised model a quartile of its first column and the means of the others."""
        if self.samples is None:
            return look()
        self.looks, found = self.looks + 1, []
        for draw in range(self.samples):
            with seeded(self.seed, "victim", step=self.looks, draw=draw, device=self.x.device):
                found.append(look())
        margins, *others = (torch.stack(column) for column in zip(*found, strict=True))
        quartile = margins.kthvalue(self.samples - self.samples // 4, dim=0).values
        return quartile + 0 * margins.sum(0), *(column.mean(0) for column in others)

    def _forward(self, points: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        outputs = asked(self.model, self._laid(padded(points, self.width)))[: len(points)]
        return self.task.margin(outputs, self.y[rows]), outputs

    def _fused(self, points: Tensor, rows: Tensor, loss: str, weights: Tensor | None) -> tuple[Tensor, ...]:
        y = self.y[rows]
        function = self.task.loss(loss, None if self.target is None else self.target[rows])
        with torch.enable_grad():
            leaf = self._laid(padded(points, self.width).detach()).requires_grad_(True)
            outputs = self.model(leaf)[: len(points)]
            losses = function(outputs, y) if weights is None else (outputs * weights).flatten(1).sum(1)
            gradient = _gradient(losses, leaf)[: len(points)]
        return self.task.margin(outputs.detach(), y), losses.detach(), gradient, outputs.detach()

    def _products(self, points: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        y = self.y[rows]
        with torch.enable_grad():
            leaf = self._laid(padded(points, self.width).detach()).requires_grad_(True)
            outputs = self.model(leaf)[: len(points)]
            gaps = outputs.gather(1, classes) - outputs.gather(1, y[:, None])
            last = gaps.shape[1] - 1
            found = [_gradient(gaps[:, k], leaf, keep=k < last)[: len(points)] for k in range(last + 1)]
        return self.task.margin(outputs.detach(), y), outputs.detach(), torch.stack(found, 1)

    def _laid(self, points: Tensor) -> Tensor:
        return points.contiguous(memory_format=torch.channels_last) if self.channels_last else points

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor, inside: bool = False) -> None:
        self._count(rows, margin)
        self._keep(points, rows, margin, inside=inside)

    def _count(self, rows: Tensor, margin: Tensor, asked: Tensor | None = None) -> None:
        """Charge a look to every one of ``rows``, or to those that were ``asked``, (n,) of 0 and 1."""
        asked = torch.ones_like(rows) if asked is None else asked
        self.forwards.index_add_(0, rows, asked if self.samples is None else asked * self.samples)
        self.nonfinite_outputs.index_add_(0, rows, asked * (margin - margin != 0))  # not 0 for NaN and infinities

    def _keep(self, points: Tensor, rows: Tensor, margin: Tensor, *, inside: bool = True) -> None:
        better = (margin < self.best_margin[rows]) & ~self.broken[rows]
        if not inside:
            better &= self.ball[rows].contains(points)
        chosen = better.nonzero()[:, 0]
        if not len(chosen):
            return
        kept, lowest = rows[chosen], margin[chosen]
        self.best[kept] = points[chosen].detach()
        self.best_margin[kept] = lowest.to(self.best_margin.dtype)
        self.broken[kept] = lowest <= 0

    def _inspect(self, gradient: Tensor, rows: Tensor) -> None:
        largest = gradient.flatten(1).abs().amax(1)
        cost = self.samples or 1
        self.backwards[rows] += cost
        self.zero_gradients[rows] += (largest == 0) * cost
        self.nonfinite_gradients[rows] += ~largest.isfinite() * cost


def _until_first(true: Tensor, rows: Tensor) -> Tensor:
    """1 for each entry up to the first true one of its run of equal ``rows``, 0 behind it, int64 (m,)."""
    fresh = torch.ones_like(true)
    torch.ne(rows[1:], rows[:-1], out=fresh[1:])
    if bool(fresh.all()):
        return fresh.long()
    earlier = true.cumsum(0) - true.long()
    return (earlier == earlier[fresh][fresh.cumsum(0) - 1]).long()


def _gradient(values: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """Gradient of the values' sum with respect to the leaf."""
    found = None
    if values.requires_grad:
        found = torch.autograd.grad(values.sum(), leaf, allow_unused=True, retain_graph=keep)[0]
    if found is None:
        remedy = "attack it without gradients, or give it a substitute gradient"
        raise NoGradientError(must("the model's input gradient", "a tensor", None, remedy))
    return found.clone() if 0 in found.stride() else found.contiguous()


def as_victim(victim: Victim | nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Victim:
    """The victim itself, or a white-box victim around a plain module."""
    return victim if isinstance(victim, Victim) else Victim(victim, x, y, threat=threat)
