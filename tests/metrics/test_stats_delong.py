"""The area under the ROC curve beside scikit-learn, a loop over all pairs, and the variance's textbook sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from robench.errors import DataError
from robench.metrics import stats


def _slow(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """Area and DeLong's variance from the matrix of all pairs."""
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    variance = by_positive.var(ddof=1) / len(positives) + by_negative.var(ddof=1) / len(negatives)
    return float(wins.mean()), float(variance)


@pytest.mark.parametrize(("levels", "shift"), [(None, 1.0), (None, -0.5), (6, 1.0), (3, 2.0)])
def test_area_and_variance_equal_the_sums_over_pairs_and_scikit_learn(levels, shift):
    rng = np.random.default_rng(3)
    scores = [rng.normal(shift, 1, 40), rng.normal(0, 1, 70)]
    if levels:
        scores = [np.round(s * levels / 6) for s in scores]
    area, variance = _slow(*scores)
    ours = stats.delong(*scores)
    assert ours.value == pytest.approx(area, abs=1e-12) and ours.n == 110
    assert area == pytest.approx(roc_auc_score(np.repeat([1, 0], [40, 70]), np.concatenate(scores)), abs=1e-12)
    logit = math.log(area / (1 - area))
    reach = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    bounds = [1 / (1 + math.exp(-v)) for v in (logit - reach, logit + reach)]
    assert (ours.low, ours.high) == pytest.approx(bounds, abs=1e-12)


def test_swapping_the_classes_mirrors_value_and_interval():
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 50)
    there, back = stats.delong(a, b), stats.delong(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((1 - back.value, 1 - back.high, 1 - back.low))


def test_perfect_constant_and_single_scores_keep_an_interval():
    perfect = stats.delong(np.arange(10.0) + 100, np.arange(20.0))
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1.0, stats.wilson(10, 10).low, 1.0))
    tied = stats.delong(np.ones(10), np.ones(30))
    wilson = stats.wilson(5, 10)
    assert (tied.value, tied.low, tied.high) == pytest.approx((0.5, wilson.low, wilson.high))
    one = stats.delong([3.0], [1.0, 2.0, 4.0])
    assert one.value == pytest.approx(2 / 3) and one.low < 0.3 and one.high > 0.9
    assert stats.delong([], [1.0]).n == 0 and math.isnan(stats.delong([1.0], []).value)


def test_infinite_scores_are_ordered_and_nan_is_refused():
    assert stats.delong([math.inf, 2.0], [-math.inf, 1.0]).value == 1.0
    with pytest.raises(DataError, match="scores of negatives must be numbers, got '1 NaN among 2'"):
        stats.delong([1.0], [math.nan, 0.0])
