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


@dataclass(frozen=True)
class Pass:
    """What one fused forward and backward pass returned for n points."""

    loss: Tensor
    """The attack's loss, (n,)."""
    margin: Tensor
    """Signed distance to failure in output units, (n,); at or below 0 the point is misclassified."""
    gradient: Tensor
    """Gradient of the loss with respect to the points, (n, ...)."""


class Victim:
    """A model on N samples, as an adversary meets it.

    It counts the passes each sample was charged, keeps each sample's first success or else its lowest-margin point
    among those in the ball and in the box, and refuses what the access level does not grant. ``rows`` are int64
    positions of the queried points among the N samples.
    """

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
    ) -> None:
        if access not in _LEVELS:
            raise ConfigError(must("a victim's access", "one of " + ", ".join(_LEVELS), access, suggestion(access, _LEVELS)))
        self.model, self.x, self.y = model, x, y
        self.threat, self.task, self.width, self.access = threat, task, width, access
        self.ball = Ball(x, threat)
        count = len(x)
        self.broken = torch.zeros(count, dtype=torch.bool, device=x.device)
        self.best = x.clone()
        self.best_margin = torch.full((count,), torch.inf, device=x.device, dtype=x.dtype)
        self.forwards = torch.zeros(count, dtype=torch.int64, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        self.zero_gradients = torch.zeros_like(self.forwards)
        self.nonfinite_gradients = torch.zeros_like(self.forwards)
        self.nonfinite_outputs = torch.zeros_like(self.forwards)

    def alive(self) -> Tensor:
        """Positions of the samples that no query has broken yet, int64."""
        return (~self.broken).nonzero()[:, 0]

    def margins(self, points: Tensor, rows: Tensor) -> Tensor:
        """Margins of the points, (n,): one forward pass each (score access)."""
        self.require("score")
        with torch.no_grad():
            found = [self.task.margin(out, self.y[rows[a:b]]) for out, a, b in self._outputs(points)]
        margin = torch.cat(found)
        self._record(points, rows, margin)
        return margin

    def misclassified(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether each point is misclassified, bool (n,): one forward pass each (decision access)."""
        with torch.no_grad():
            margin = torch.cat([self.task.margin(out, self.y[rows[a:b]]) for out, a, b in self._outputs(points)])
        self._record(points, rows, margin)
        return margin <= 0

    def gradient(self, points: Tensor, rows: Tensor, loss: str = "ce") -> Pass:
        """Loss, margin and input gradient of the points from one fused pass (white-box access).

        Raises:
            NoGradientError: The model returned no gradient for its input.
        """
        self.require("white")
        function = self.task.loss(loss)
        parts = [self._fused(points[a:b], self.y[rows[a:b]], function) for a, b in chunks(len(points), self.width)]
        result = Pass(*(torch.cat(column) for column in zip(*parts, strict=True)))
        self._record(points, rows, result.margin)
        self._inspect(result.gradient, rows)
        return result

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

    def _fused(self, points: Tensor, y: Tensor, loss) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            leaf = padded(points, self.width).detach().requires_grad_(True)
            outputs = self.model(leaf)[: len(points)]
            losses = loss(outputs, y)
            gradient = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)[0] if losses.requires_grad else None
        if gradient is None:
            remedy = "attack it without gradients, or give it a substitute gradient"
            raise NoGradientError(must("the model's input gradient", "a tensor", None, remedy))
        return losses.detach(), self.task.margin(outputs.detach(), y), gradient[: len(points)]

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor) -> None:
        self.forwards[rows] += 1
        self.nonfinite_outputs[rows] += ~margin.isfinite()
        better = self.ball[rows].contains(points) & (margin < self.best_margin[rows]) & ~self.broken[rows]
        kept = rows[better]
        self.best[kept] = points[better].detach()
        self.best_margin[kept] = margin[better].to(self.best_margin.dtype)
        self.broken[kept] = margin[better] <= 0

    def _inspect(self, gradient: Tensor, rows: Tensor) -> None:
        flat = gradient.flatten(1)
        self.backwards[rows] += 1
        self.zero_gradients[rows] += (flat == 0).all(1)
        self.nonfinite_gradients[rows] += ~flat.isfinite().all(1)


def as_victim(victim: Victim | nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Victim:
    """The victim itself, or a white-box victim around a plain module."""
    return victim if isinstance(victim, Victim) else Victim(victim, x, y, threat=threat)
