"""Shifted test sets, groups of samples, and attacks on training images: what accuracy on one test set does not say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robench.builders.predictions import Predictions
from robench.data.dataset import Dataset
from robench.data.subsets import positions
from robench.metrics.groups import UNGROUPED
from robench.registry import facts
from robench.scenarios.evasion import evasion
from robench.scenarios.objects import Objects, columns
from robench.task import CLASSIFICATION


@facts(version=1)
def shift(
    objects: Objects, *, name: str = "", line: tuple[float, float, int] | None = None, baseline: str = ""
) -> list[dict[str, Any]]:
    """One row per image of the shifted set (split ``shifted``) and of the clean test set's same classes (``clean``).

    Where the shifted set has a part of the classes, logits are masked to these by name, on both sets. The further
    artifacts are the model's predictions on the shifted and on the clean images, and the shifted images.

    Args:
        objects: The cell's.
        name: Name of the shift.
        line: Slope, intercept and size of the reference population's line (``robench.metrics.shifts.reference_line``).
        baseline: Model that relative robustness is taken against.

    Raises:
        DataError: A class of the shifted set that the data set lacks, or fewer than two classes.

    Source: Taori et al., NeurIPS 2020, section 3; Hendrycks et al., ICCV 2021 (masked classes).
    """
    images: Dataset = objects.extra(2)
    kept = torch.tensor(positions(images.spec.classes, objects.data.spec.classes, of=name))
    told: dict[str, Any] = {"shift": name, "masked": len(objects.data.spec.classes) - len(kept), "baseline": baseline}
    if line is not None:
        told |= dict(zip(("slope", "intercept", "references"), line, strict=True))
    shifted, clean = (objects.sharded(objects.extra(i)) for i in (0, 1))
    rows = _masked(shifted, kept, kept[shifted.labels])
    rows = [{**row, "split": "shifted", **told} for row in rows]
    within = clean.take(torch.isin(clean.labels, kept).nonzero()[:, 0])
    return rows + [{**row, "split": "clean", **told} for row in _masked(within, kept, within.labels)]


def _masked(seen: Predictions, kept: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Rows of predictions among the classes ``kept``; labels (N,) and predictions count as in the data set."""
    local = torch.full((int(kept.max()) + 1,), -1, dtype=torch.int64)
    local[kept] = torch.arange(len(kept))
    logits, own = seen.logits[:, kept], local[labels]
    score = CLASSIFICATION.score(logits, own)
    return columns(sample=seen.ids, label=labels, pred=kept[logits.argmax(1)], score=score) if len(seen) else []


@facts(version=1)
def groups(objects: Objects) -> list[dict[str, Any]]:
    """One row per test sample with its group, ``(no group)`` where the user's file names none.

    The further artifacts are the model's predictions and the groups.
    """
    seen: Predictions = objects.sharded(objects.extra(0))
    named: dict[int, str] = objects.extra(1)
    return columns(
        sample=seen.ids,
        label=seen.labels,
        group=[named.get(i, UNGROUPED) for i in seen.ids.tolist()],
        pred=seen.logits.argmax(1),
        score=CLASSIFICATION.score(seen.logits, seen.labels),
    )


@facts(version=1)
def evasion_train(objects: Objects, *, attack: str = "pgd", threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """The rows of ``evasion`` on training images, kept apart because their ids are those of another split."""
    return evasion(objects, attack=attack, threat=threat)
