from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from robench.metrics import ood, weighted

METRICS = (ood.auroc, ood.aupr_in, ood.aupr_out, ood.fpr_at_95_tpr_id_positive)


def rows(inside, outside) -> pd.DataFrame:
    return pd.DataFrame({"score": [*inside, *outside], "is_id": [True] * len(inside) + [False] * len(outside)})


def values(inside, outside) -> list[float]:
    return [metric(rows(inside, outside)).value for metric in METRICS]


@pytest.mark.parametrize("decimals", [0, 1, 8], ids=["many ties", "ties", "no ties"])
@pytest.mark.parametrize("seed", range(3))
def test_all_equal_scikit_learn_with_and_without_ties(seed, decimals):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 137).round(decimals), rng.normal(0, 2, 81).round(decimals)
    own, scores = np.r_[np.ones(137), np.zeros(81)], np.r_[inside, outside]
    fpr, tpr, _ = roc_curve(own, scores, drop_intermediate=False)
    assert values(inside, outside) == pytest.approx(
        [
            roc_auc_score(own, scores),
            average_precision_score(own, scores),
            average_precision_score(1 - own, -scores),
            fpr[np.argmax(tpr >= 0.95)],
        ]
    )


def test_all_equal_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    rng = np.random.default_rng(5)
    inside, outside = rng.uniform(0.2, 1, 90).round(2), rng.uniform(0, 0.8, 70).round(2)
    scores, own = torch.tensor(np.r_[inside, outside]), torch.tensor([1] * 90 + [0] * 70)
    found = values(inside, outside)
    assert found[0] == pytest.approx(float(binary_auroc(scores, own)), abs=1e-6)
    assert found[1] == pytest.approx(float(binary_average_precision(scores, own)), abs=1e-6)
    assert found[2] == pytest.approx(float(binary_average_precision(1 - scores, 1 - own)), abs=1e-6)


def test_false_positive_rate_equals_a_slow_twin_and_id_is_the_positive():
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    best = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert ood.fpr_at_95_tpr_id_positive(rows(inside, outside)).value == (outside >= best).mean()
    other = max(t for t in -outside if (-outside >= t).mean() >= 0.95)
    assert (-inside >= other).mean() != (outside >= best).mean()


def test_perfect_and_inverted_detectors():
    assert values([3, 4, 5], [0, 1]) == [1, 1, 1, 0]
    assert values([0, 1], [3, 4, 5])[0] == 0 and values([0, 1], [3, 4, 5])[3] == 1


def test_constant_scores_are_chance_never_perfect():
    found = values([2.0] * 30, [2.0] * 10)
    assert found == pytest.approx([0.5, 30 / 40, 10 / 40, 1.0])


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_on_one_side_is_no_measurement(metric):
    for frame in (rows([], [1.0]), rows([1.0], []), rows([], [])):
        assert metric(frame).n == 0 and math.isnan(metric(frame).value)


@pytest.mark.parametrize("metric", METRICS)
def test_one_image_a_side_has_a_value_and_no_interval(metric):
    found = metric(rows([1.0], [0.0]))
    assert found.n == 1 and not math.isnan(found.value) and (metric is ood.auroc or math.isnan(found.low))


def test_a_score_that_is_not_a_number_counts_against_the_detector():
    assert values([math.nan, math.nan], [1.0, 1.0]) == values([0.0, 0.0], [1.0, 1.0])
    assert values([1.0, 1.0], [math.nan, math.nan]) == values([0.0, 0.0], [1.0, 1.0])
    assert values([math.nan] * 3, [math.nan] * 3)[0] == 0
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    good = values(inside, outside)
    inside[3], outside[4] = math.nan, math.nan
    bad = values(inside, outside)
    assert bad[0] < good[0] and bad[1] < good[1] and bad[2] < good[2] and bad[3] >= good[3]


def test_infinite_scores_are_scores():
    assert values([math.inf, 2.0], [-math.inf, 1.0])[0] == 1


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_the_value_are_repeatable_and_do_not_depend_on_order_of_sources(metric):
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(1, 1, 120), rng.normal(0, 1, 90)
    first = metric(rows(inside, outside))
    assert first.low < first.value < first.high and first.n == 90
    assert metric(rows(inside, outside)) == first
    assert 0.05 < first.high - first.low < 0.35


@pytest.mark.parametrize("metric", METRICS)
def test_many_images_are_resampled_in_parts_with_the_same_interval(metric, monkeypatch):
    rng = np.random.default_rng(4)
    frame = rows(rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 50).round(1))
    whole = metric(frame)
    monkeypatch.setattr(weighted, "_KEPT", 110 * 300)
    assert metric(frame) == whole


def test_a_perfect_result_on_few_images_has_a_wide_interval():
    for n, lowest in ((5, 0.4), (300, 0.98)):
        found = ood.auroc(rows(np.arange(n) + 1.0, -np.arange(n) - 1.0))
        assert found.value == 1 == found.high and lowest < found.low < 1
        rate = ood.fpr_at_95_tpr_id_positive(rows(np.arange(n) + 1.0, -np.arange(n) - 1.0))
        assert rate.value == 0 == rate.low and rate.high > 1 / n
    worst = ood.auroc(rows([-1.0, -2.0], [1.0, 2.0]))
    assert worst.value == 0 == worst.low and worst.high > 0.2


def test_precisions_near_one_of_unequal_numbers_keep_their_width():
    """A resample is never cut off further from 1 than two images can bring it."""
    rng = np.random.default_rng(5)
    inside, outside = rng.normal(5.0, 1, 1000), rng.normal(0, 1, 300)
    found = ood.aupr_in(rows(inside, outside))
    assert 1 - found.value < 1 / 1200 and found.low < found.value < found.high < 1


def test_a_false_positive_rate_of_a_few_images_is_no_narrower_than_the_binomial_one():
    from robench.metrics import stats

    outside = np.r_[np.full(2, 9.0), np.linspace(-2, -1, 298)]
    found = ood.fpr_at_95_tpr_id_positive(rows(np.linspace(0, 1, 300), outside))
    binomial = stats.wilson(2, 300)
    assert found.value == 2 / 300 and found.low <= binomial.low and found.high >= binomial.high
