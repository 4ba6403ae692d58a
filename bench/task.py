"""What a task is to the judge and to an adversary: losses, a score in [0, 1], and when a sample counts as broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.errors import ConfigError, must, suggestion
from robench.ops.losses import cross_entropy, margin, negative_margin

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of problem; the judge and the metrics read only scores."""

    name: str
    losses: Mapping[str, Loss]
    """Per-sample losses that an attack maximises: (outputs, targets) → (N,)."""
    margin: Loss
    """Signed distance to failure in output units, (N,); at or below 0 the sample is broken."""
    score: Loss
    """Score per sample in [0, 1], (N,)."""
    predict: Callable[[Tensor], Tensor]
    """The prediction recorded per sample, int64 (N,)."""
    threshold: float = 1.0
    """A sample whose score is below this is broken."""

    def broken(self, score: Tensor) -> Tensor:
        """Whether each score counts as a failure, bool (N,)."""
        return score < self.threshold

    def loss(self, name: str) -> Loss:
        """A loss by name.

        Raises:
            ConfigError: The task has no such loss.
        """
        if name not in self.losses:
            raise ConfigError(must(f"a loss of {self.name}", "a known one", name, suggestion(name, self.losses)))
        return self.losses[name]


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the label's logit is strictly the highest; a tie is no recognition, and NaN is not either."""
    return (margin(logits, y) > 0).to(torch.float32)


CLASSIFICATION = Task(
    name="classification",
    losses={"ce": cross_entropy, "margin": negative_margin},
    margin=margin,
    score=_correct,
    predict=lambda logits: logits.argmax(1),
)
