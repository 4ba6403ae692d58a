"""Predictions on images as they are: accuracy, generalization gap and confidence come from these rows."""

from __future__ import annotations

from typing import Any

import torch

from robench.registry import facts
from robench.scenarios.objects import Objects, columns
from robench.task import CLASSIFICATION


@facts(version=3)
def clean(objects: Objects, *, split: str = "test") -> list[dict[str, Any]]:
    """One row per sample: prediction, score, confidence, Brier and log loss, margin, and how the model was made.

    The first further artifact holds the model's predictions on the cell's images.
    """
    seen = objects.sharded(objects.extra(0))
    probabilities = seen.logits.double().softmax(1)
    target = torch.nn.functional.one_hot(seen.labels, seen.logits.shape[1])
    own = probabilities.gather(1, seen.labels[:, None])[:, 0]
    return columns(
        sample=seen.ids,
        label=seen.labels,
        split=split,
        pred=seen.logits.argmax(1),
        score=CLASSIFICATION.score(seen.logits, seen.labels),
        confidence=probabilities.amax(1),
        p_label=own,
        brier=(probabilities - target).square().sum(1),
        nll=-own.clamp_min(1e-12).log(),
        margin=CLASSIFICATION.margin(seen.logits, seen.labels),
        **objects.model.made,
    )
