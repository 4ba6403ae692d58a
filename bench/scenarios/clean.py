"""Predictions on images as they are: accuracy, generalization gap and calibration come from these rows."""

from __future__ import annotations

from typing import Any

import torch

from robench.inference import predict, untouched
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.task import CLASSIFICATION


@facts(version=1)
def clean(objects: Objects, *, split: str = "test") -> list[dict[str, Any]]:
    """One row per sample: prediction, score, confidence, Brier and log loss, margin, and how the model was made."""
    made = {k: v for k, v in objects.model.made.items() if k != "train_seed"}

    def measure(hold: Hold) -> list[dict[str, Any]]:
        logits = predict(objects.net, hold.x, width=hold.width)
        probabilities = logits.double().softmax(1)
        target = torch.nn.functional.one_hot(hold.y, logits.shape[1])
        own = probabilities.gather(1, hold.y[:, None])[:, 0]
        return columns(
            sample=hold.ids,
            label=hold.y,
            split=split,
            pred=logits.argmax(1),
            score=CLASSIFICATION.score(logits, hold.y),
            confidence=probabilities.amax(1),
            p_label=own,
            brier=(probabilities - target).square().sum(1),
            nll=-own.clamp_min(1e-12).log(),
            margin=CLASSIFICATION.margin(logits, hold.y),
            **made,
        )

    with untouched(objects.net):
        return walk(objects.holds(), measure)
