"""A compressed model beside the model that it was made from, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robench.registry import facts
from robench.scenarios.objects import Objects, columns
from robench.task import CLASSIFICATION


@facts(version=1)
def disagreement(objects: Objects, *, parent: str = "") -> list[dict[str, Any]]:
    """One row per sample: what both models predict, how right and how sure they are, and KL(parent || compressed).

    The further artifacts hold the predictions of the cell's model and of its parent on the cell's images; ``parent`` is the
    parent's condition.
    """
    own, first = objects.sharded(objects.extra(0)), objects.sharded(objects.extra(1))
    return columns(
        sample=own.ids,
        label=own.labels,
        parent=parent,
        pred=own.logits.argmax(1),
        pred_parent=first.logits.argmax(1),
        score=CLASSIFICATION.score(own.logits, own.labels),
        score_parent=CLASSIFICATION.score(first.logits, own.labels),
        confidence=own.logits.double().softmax(1).amax(1),
        confidence_parent=first.logits.double().softmax(1).amax(1),
        kl=divergence(first.logits, own.logits),
    )


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)) per row of two (N, K), float64 (N,) in nats, at least 0."""
    p, q = logits.double().log_softmax(1), other.double().log_softmax(1)
    return (torch.exp(p) * (p - q)).sum(1).clamp_min(0.0)
