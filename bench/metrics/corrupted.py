"""Metrics of the ``corruption`` frame."""

from __future__ import annotations

import pandas as pd

from robench.metrics import stats
from robench.registry import facts
from robench.spec import Estimate


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="corruption", group="robustness")
def corrupted_accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the mean score over corruptions and severities, in [0, 1]; n counts images.

    The interval resamples images, because the corrupted versions of one image are not independent.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (unnormalised mean, as for CIFAR-C).
    """
    return stats.rate(frame.groupby("sample")["score"].mean())
