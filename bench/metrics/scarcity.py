"""How accuracy grows with the share of training data."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robench.metrics import stats
from robench.metrics.clean import split
from robench.registry import facts
from robench.spec import Estimate


def by_fraction(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean score over trainings per sample (rows) and fraction of the training data (columns, increasing).

    Samples that were not measured at every fraction are left out.
    """
    rows = split(frame, "test")
    rows = rows[rows["fraction"].notna()] if "fraction" in rows else rows.iloc[:0].assign(fraction=0.0)
    return rows.pivot_table(index="sample", columns="fraction", values="score", aggfunc="mean").dropna()


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean", group="generalization")
def data_efficiency_auc(frame: pd.DataFrame) -> Estimate:
    """Area under test accuracy against log2 of the training fraction, divided by the range: in [0, 1].

    Args:
        frame: Clean rows of one model's scarcity conditions, with the column ``fraction``.

    Returns:
        The area of the mean over trainings, with an interval over images (not over trainings); empty below two fractions.
    """
    scores = by_fraction(frame)
    if scores.shape[1] < 2 or scores.empty:
        return stats.EMPTY
    return stats.area_interval(np.log2(scores.columns.to_numpy(np.float64)), scores)
