"""What a model says of images as they are, corrupted and attacked, with a temperature fitted beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from robench.builders.attacked import Attacked
from robench.builders.predictions import Predictions
from robench.errors import DataError
from robench.metrics.calibration import fit_temperature
from robench.registry import facts
from robench.scenarios.objects import Objects, columns


@facts(version=1)
def calibration(
    objects: Objects, *, split: str = "validation", sources: tuple[str, ...] = ("clean",)
) -> list[dict[str, Any]]:
    """One row per sample and source: label, logits (a list), and the temperature that was fitted on ``split``.

    The first further artifact holds the predictions on that split's images, the others those on the sources. A sample of
    which an attack says nothing is ``unknown`` (the column tells why) and has logits of NaN, which the metrics count as
    sure and wrong. Where the outputs on the split are not finite there is no temperature (NaN), and ``error`` says so.

    Source: Guo et al., ICML 2017, section 4.2 (temperature scaling).
    """
    fit: Predictions = objects.extra(0)
    temperature, error = _temperature(fit)
    told: dict[str, Any] = {"split": split, "fit_n": len(fit), "temperature": temperature, "error": error}
    rows = []
    for position, source in enumerate(sources, start=1):
        found = objects.extra(position)
        seen = objects.sharded(found.seen if isinstance(found, Attacked) else found)
        unknown = _unknown(objects, found, len(seen))
        lost = torch.tensor([bool(why) for why in unknown])
        logits = torch.where(lost[:, None], torch.nan, seen.logits.double())
        rows += columns(sample=seen.ids, label=seen.labels, source=source, logits=logits.tolist(), unknown=unknown, **told)
    return rows


def _unknown(objects: Objects, found: Any, count: int) -> list[str]:
    """Per sample of the cell why an attack says nothing of it; empty where it does, and where there is no attack."""
    if not isinstance(found, Attacked):
        return [""] * count
    index, of = objects.cell.shard
    return [found.error if failed else "" for failed in found.failed[index::of].tolist()]


def _temperature(fit: Predictions) -> tuple[float, str]:
    try:
        return fit_temperature(fit.logits.double().numpy(), fit.labels.numpy().astype(np.int64)), ""
    except DataError as error:
        return math.nan, str(error)
