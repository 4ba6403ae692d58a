"""Predictions on corrupted images of five severities."""

from __future__ import annotations

from typing import Any

from robench.registry import facts
from robench.scenarios.objects import Objects, columns
from robench.task import CLASSIFICATION


@facts(version=3)
def corruption(
    objects: Objects,
    *,
    corruption: str = "",
    table: str = "digits-v1",
    family: str = "",
    source: str = "",
    reference: str = "",
) -> list[dict[str, Any]]:
    """One row per sample and severity.

    The cell's further artifacts are the model's predictions on the five severities and on the clean images.

    Args:
        objects: The cell's objects.
        corruption: Name of the corruption.
        table: The severity table, or the published folder.
        family: noise, blur, weather, digital, ...
        source: What the images are called: ``robench-C (regenerated, TABLE)`` or ``published(FOLDER)``.
        reference: Model beside whose errors these are put.

    Source: Hendrycks & Dietterich, ICLR 2019.
    """
    clean = objects.sharded(objects.extra(1))
    before = CLASSIFICATION.score(clean.logits, clean.labels)
    rows = []
    for severity, whole in enumerate(objects.extra(0), start=1):
        seen = objects.sharded(whole)
        rows += columns(
            sample=seen.ids,
            label=seen.labels,
            pred=seen.logits.argmax(1),
            score=CLASSIFICATION.score(seen.logits, seen.labels),
            corruption=corruption,
            severity=severity,
            table=table,
            family=family,
            source=source,
            reference=reference,
            classes=seen.logits.shape[1],
            score_clean=before,
        )
    return rows
