"""What a task is to the judge and to an adversary: losses, a score in [0, 1], and when a sample counts as broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robench.errors import ConfigError, must, suggestion
from robench.ops import losses

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of problem; the judge and the metrics read only scores."""

    name: str
    losses: Mapping[str, Loss]
    """Per-sample losses that an attack maximises: (outputs, truth) → (N,)."""
    margin: Loss
    """Signed distance to failure in output units, (N,); at or below 0 the sample is broken."""
    score: Loss
    """Score per sample in [0, 1], (N,)."""
    predict: Callable[[Tensor], Tensor]
    """The prediction recorded per sample, int64 (N,)."""
    targeted: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = field(default_factory=dict)
    """Their targeted forms: (outputs, truth, target) → (N,)."""
    threshold: float = 1.0
    """A sample whose score is below this is broken."""

    def broken(self, score: Tensor) -> Tensor:
        """Whether each score counts as a failure, bool (N,)."""
        return score < self.threshold

    def loss(self, name: str, target: Tensor | None = None) -> Loss:
        """A loss by name, (outputs, truth) → (N,); with a target (N,) its targeted form.

        Raises:
            ConfigError: The task has no such loss.
        """
        known = self.losses if target is None else self.targeted
        if name not in known:
            what = f"a {'loss' if target is None else 'targeted loss'} of {self.name}"
            raise ConfigError(must(what, "a known one", name, suggestion(name, known)))
        if target is None:
            return self.losses[name]
        towards = self.targeted[name]
        return lambda outputs, truth: towards(outputs, truth, target)


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the label's logit is strictly the highest; a tie is no recognition, and NaN is not either."""
    return (losses.margin(logits, y) > 0).to(torch.float32)


CLASSIFICATION = Task(
    name="classification",
    losses={
        "ce": losses.cross_entropy,
        "margin": losses.negative_margin,
        "dlr": losses.dlr,
        "scaled_ce": losses.scaled_cross_entropy,
        "probability_margin": losses.probability_margin,
        "relative_margin": losses.relative_margin,
    },
    targeted={
        "ce": losses.targeted_cross_entropy,
        "margin": losses.targeted_margin,
        "dlr": losses.targeted_dlr,
    },
    margin=losses.margin,
    score=_correct,
    predict=lambda logits: logits.argmax(1),
)


def _short_of_target(logits: Tensor, target: Tensor) -> Tensor:
    """Highest other logit minus the target's, (N,); a tie is not yet the target, and stays above 0."""
    short = -losses.margin(logits, target)
    return torch.where(short == 0, torch.finfo(short.dtype).tiny, short)


TARGETED = Task(
    name="targeted classification",
    losses={
        "ce": lambda logits, target: -losses.cross_entropy(logits, target),
        "margin": losses.margin,
        "scaled_ce": lambda logits, target: -losses.scaled_cross_entropy(logits, target),
        "probability_margin": lambda logits, target: -losses.probability_margin(logits, target),
    },
    margin=_short_of_target,
    score=lambda logits, target: 1 - _correct(logits, target),
    predict=lambda logits: logits.argmax(1),
)
"""Classification where the truth is the class that an image is to be taken for: a sample is broken where it is predicted.

Source: Carlini & Wagner, S&P 2017, section II-D (targeted adversarial examples).
"""
