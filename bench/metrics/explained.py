"""Metrics of the ``explanation`` frame: rows of one explainer on one model."""

from __future__ import annotations

import pandas as pd

from robench.metrics import stats
from robench.registry import facts
from robench.spec import Estimate


@facts(version=1, unit="rate", higher_is_better=True, bounds=(-2, 2), needs="explanation", group="interpretability")
def insertion_deletion_gap(frame: pd.DataFrame) -> Estimate:
    """Insertion area minus deletion area, less the same of a random map; 0 is chance.

    A degenerate map (constant or not finite) explains nothing and counts as chance, it is not dropped.

    Source: Petsiuk et al., BMVC 2018, section 3.2 (insertion and deletion).
    """
    gain = frame["gap"] - frame["gap_random"]
    return stats.mean_interval(gain.where(~frame["degenerate"].astype(bool), 0.0).dropna())


@facts(version=1, unit="score", higher_is_better=False, bounds=(0, None), needs="explanation", group="interpretability")
def infidelity(frame: pd.DataFrame) -> Estimate:
    """Mean infidelity, at least 0, over the samples on which it is defined (n says how many).

    Source: Yeh et al., NeurIPS 2019, definition 2.1.
    """
    return stats.mean_interval(frame["infidelity"].dropna())


@facts(version=1, unit="score", higher_is_better=False, bounds=(0, None), needs="explanation", group="interpretability")
def max_sensitivity(frame: pd.DataFrame) -> Estimate:
    """Mean of the largest relative change of the map under small noise, at least 0, where defined (n says how many).

    Source: Yeh et al., NeurIPS 2019, definition 3.1.
    """
    return stats.mean_interval(frame["max_sensitivity"].dropna())
