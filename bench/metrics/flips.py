"""Metrics of the ``flips`` frame: how often predictions change along a sequence of slight perturbations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from robench.metrics import stats
from robench.metrics.rows import Metric, each
from robench.registry import facts
from robench.spec import Estimate


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="flips", group="robustness")
def flip_rate(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the share of frames whose prediction differs from that of the frame compared with, in [0, 1].

    Not divided by AlexNet's rate. Frames of noise are compared with the first frame, all others with the frame before.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (flip probability), and ``ImageNet-P/test.py``.
    """
    return stats.rate(frame.groupby("sample")["flips"].mean())


_FLIPS: dict[str, Metric] = {"flip_rate": flip_rate}


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """The tidy table's lines of one model, data set and condition: each perturbation, and the mean over all."""
    source = " + ".join(sorted(rows["source"].unique()))
    yield from each(_FLIPS, rows, threat="mean", attack=source)
    for (name, compared), part in rows.groupby(["perturbation", "compared"]):
        yield from each(_FLIPS, part, threat=name, attack=f"{source}, beside {compared} frame")
