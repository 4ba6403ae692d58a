"""Predictions on corrupted images of five severities."""

from __future__ import annotations

from typing import Any

import torch

from robench.inference import predict, untouched
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.task import CLASSIFICATION


@facts(version=1)
def corruption(objects: Objects, *, corruption: str = "", table: str = "digits-v1") -> list[dict[str, Any]]:
    """One row per sample and severity; the images are the cell's first further artifact, shared by all models.

    Source: Hendrycks & Dietterich, ICLR 2019.
    """

    def scores(hold: Hold) -> list[dict[str, Any]]:
        logits = predict(objects.net, hold.x, width=hold.width)
        return columns(sample=hold.ids, label=hold.y, pred=logits.argmax(1), score=CLASSIFICATION.score(logits, hold.y))

    levels = objects.extra(0)
    index, count = objects.cell.shard
    with untouched(objects.net):
        clean = {row["sample"]: row["score"] for row in walk(objects.holds(), scores)}
        rows = []
        for severity, data in enumerate(levels, start=1):
            part = data.take(torch.arange(index, len(data), count))
            for row in walk(objects.holds(part), scores):
                facts_ = {"corruption": corruption, "severity": severity, "table": table}
                rows.append({**row, **facts_, "score_clean": clean[row["sample"]]})
    return rows
