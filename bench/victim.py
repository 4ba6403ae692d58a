"""What an adversary may ask of a model, and the book that is kept while it asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.errors import AttackError, ConfigError, NoGradientError, must, suggestion
from robench.inference import chunks, padded
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
    ) -> None:
        if access not in _LEVELS:
            raise ConfigError(must("a victim's access", "one of " + ", ".join(_LEVELS), access, suggestion(access, _LEVELS)))
        self.model, self.x, self.y = model, x, y
        self.threat, self.task, self.width, self.access = threat, task, width, access
        self.target = target
        self.slope = torch.ones(len(x), device=x.device, dtype=x.dtype)
        self.clean: Tensor | None = None
        self.order: Tensor | None = None
        self.ball = Ball(x, threat)
        self.parents, self._copies = torch.arange(len(x), device=x.device), False
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best = x.clone()
        self.best_margin = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        for name in BOOKS:
            setattr(self, name, torch.zeros(len(x), dtype=torch.int64, device=x.device))

    def part(self, rows: Tensor, *, target: Tensor | None = None) -> Victim:
        """A victim of the samples ``rows`` (n,), which may repeat, with books of its own and the best points so far.

        Copies of one sample are broken together, so that several targets share a batch. ``absorb`` gives back what was
        found.
        """
        told = {"threat": self.threat, "task": self.task, "width": self.width, "access": self.access}
        part = Victim(self.model, self.x[rows], self.y[rows], target=target, **told)
        part.parents, part.broken = rows, self.broken[rows].clone()
        part._copies = len(rows.unique()) < len(rows)
        part.slope = self.slope[rows].clone()
        part.clean = None if self.clean is None else self.clean[rows]
        part.order = None if self.order is None else self.order[rows]
        part.best, part.best_margin = self.best[rows].clone(), self.best_margin[rows].clone()
        return part

    def absorb(self, part: Victim) -> None:
        """Take over a part's books, and its points where they are better."""
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

    def alive(self) -> Tensor:
        """Positions of the samples that no query has broken yet, int64."""
        return (~self.broken).nonzero()[:, 0]

    def logits(self, points: Tensor, rows: Tensor, *, inside: bool = False) -> Tensor:
        """Outputs at the points, (n, ...): one forward pass each (score access)."""
        self.require("score")
        with torch.no_grad():
            outputs = torch.cat([out for out, _, _ in self._outputs(points)])
        self._record(points, rows, self.task.margin(outputs, self.y[rows]), inside)
        return outputs

    def margins(self, points: Tensor, rows: Tensor, *, inside: bool = False) -> Tensor:
        """Margins of the points, (n,): one forward pass each (score access)."""
        return self.task.margin(self.logits(points, rows, inside=inside), self.y[rows])

    def misclassified(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether each point is misclassified, bool (n,): one forward pass each (decision access)."""
        with torch.no_grad():
            margin = torch.cat([self.task.margin(out, self.y[rows[a:b]]) for out, a, b in self._outputs(points)])
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
        parts = [
            self._fused(points[a:b], rows[a:b], loss, None if weights is None else weights[a:b])
            for a, b in chunks(len(points), self.width)
        ]
        result = Pass(*(torch.cat(column) for column in zip(*parts, strict=True)))
        self._record(points, rows, result.margin, inside)
        self._inspect(result.gradient, rows)
        return result

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
        found = [self._products(points[a:b], rows[a:b], classes[a:b]) for a, b in chunks(len(points), self.width)]
        outputs, gradients = (torch.cat(column) for column in zip(*found, strict=True))
        self._record(points, rows, self.task.margin(outputs, self.y[rows]))
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

    def _outputs(self, points: Tensor):  # type: ignore[no-untyped-def]
        for a, b in chunks(len(points), self.width):
            yield self.model(padded(points[a:b], self.width))[: b - a], a, b

    def _fused(
        self, points: Tensor, rows: Tensor, loss: str, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = self.y[rows]
        function = self.task.loss(loss, None if self.target is None else self.target[rows])
        with torch.enable_grad():
            leaf = padded(points, self.width).detach().requires_grad_(True)
            outputs = self.model(leaf)[: len(points)]
            losses = function(outputs, y) if weights is None else (outputs * weights).flatten(1).sum(1)
        gradient = _gradient(losses, leaf)[: len(points)]
        return losses.detach(), self.task.margin(outputs.detach(), y), gradient, outputs.detach()

    def _products(self, points: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = padded(points, self.width).detach().requires_grad_(True)
            outputs = self.model(leaf)[: len(points)]
            gaps = outputs.gather(1, classes) - outputs.gather(1, self.y[rows][:, None])
        last = gaps.shape[1] - 1
        found = [_gradient(gaps[:, k], leaf, keep=k < last)[: len(points)] for k in range(last + 1)]
        return outputs.detach(), torch.stack(found, 1)

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor, inside: bool = False) -> None:
        self.forwards[rows] += 1
        self.nonfinite_outputs[rows] += ~margin.isfinite()
        better = (margin < self.best_margin[rows]) & ~self.broken[rows]
        if not inside:
            better &= self.ball[rows].contains(points)
        kept = rows[better]
        self.best[kept] = points[better].detach()
        self.best_margin[kept] = margin[better].to(self.best_margin.dtype)
        self.broken[kept] = margin[better] <= 0
        if self._copies:
            fallen = torch.zeros(int(self.parents.max()) + 1, dtype=torch.bool, device=points.device)
            fallen[self.parents[self.broken]] = True
            self.broken |= fallen[self.parents]

    def _inspect(self, gradient: Tensor, rows: Tensor) -> None:
        flat = gradient.flatten(1)
        self.backwards[rows] += 1
        self.zero_gradients[rows] += (flat == 0).all(1)
        self.nonfinite_gradients[rows] += ~flat.isfinite().all(1)


def _gradient(values: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """Gradient of the values' sum with respect to the leaf."""
    found = None
    if values.requires_grad:
        found = torch.autograd.grad(values.sum(), leaf, allow_unused=True, retain_graph=keep)[0]
    if found is None:
        remedy = "attack it without gradients, or give it a substitute gradient"
        raise NoGradientError(must("the model's input gradient", "a tensor", None, remedy))
    return found


def as_victim(victim: Victim | nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Victim:
    """The victim itself, or a white-box victim around a plain module."""
    return victim if isinstance(victim, Victim) else Victim(victim, x, y, threat=threat)
