from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, roc_auc_score

from robench.metrics import selective, weighted

METRICS = (
    selective.aurc, selective.e_aurc, selective.augrc, selective.risk_at_80_coverage, selective.risk_at_90_coverage,
)  # fmt: skip


def rows(confidence, score) -> pd.DataFrame:
    return pd.DataFrame({"score": score, "confidence": confidence})


def over_orders(confidence, score, statistic) -> float:
    """Mean of a statistic of the losses in falling confidence over every order of equal confidences."""
    found = []
    for order in itertools.permutations(range(len(score))):
        c = [confidence[i] for i in order]
        if all(a >= b for a, b in itertools.pairwise(c)):
            found.append(statistic([1 - score[i] for i in order]))
    return float(np.mean(found))


def slow_aurc(losses) -> float:
    return float(np.mean([sum(losses[:k]) / k for k in range(1, len(losses) + 1)]))


@pytest.mark.parametrize("seed", range(4))
def test_ties_are_the_mean_over_all_their_orders(seed):
    rng = np.random.default_rng(seed)
    confidence, score = rng.integers(1, 4, 6) / 4, rng.integers(0, 2, 6).astype(float)
    frame = rows(confidence, score)
    assert selective.aurc(frame).value == pytest.approx(over_orders(confidence, score, slow_aurc))
    assert selective.risk_at_80_coverage(frame).value == pytest.approx(
        over_orders(confidence, score, lambda losses: sum(losses[:5]) / 5)
    )
    grid = np.arange(7) / 6
    assert selective.augrc(frame).value == pytest.approx(
        over_orders(confidence, score, lambda losses: auc(grid, np.r_[0, np.cumsum(losses)] / 6))
    )


@pytest.mark.parametrize("decimals", [1, 8])
def test_augrc_is_its_closed_form_in_the_auroc_of_failures(decimals):
    rng = np.random.default_rng(3)
    score = (rng.uniform(size=200) < 0.8).astype(float)
    confidence = np.clip(0.4 + 0.2 * score + rng.normal(0, 0.15, 200), 0, 1).round(decimals)
    acc = score.mean()
    expected = (1 - roc_auc_score(score, confidence)) * acc * (1 - acc) + (1 - acc) ** 2 / 2
    assert selective.augrc(rows(confidence, score)).value == pytest.approx(expected)


def test_excess_is_zero_for_the_best_order_and_near_the_published_limit():
    n, errors = 2000, 300
    score = np.r_[np.ones(n - errors), np.zeros(errors)]
    best, worst = np.linspace(1, 0, n), np.linspace(0, 1, n)
    assert selective.e_aurc(rows(best, score)).value == pytest.approx(0, abs=1e-12)
    err = errors / n
    limit = err + (1 - err) * math.log(1 - err)
    assert selective.aurc(rows(best, score)).value == pytest.approx(limit, abs=1e-3)
    assert selective.e_aurc(rows(worst, score)).value > selective.e_aurc(rows(np.full(n, 0.5), score)).value > 0.1


def test_constant_confidence_is_the_error_rate_and_half_of_it():
    frame = rows([0.5] * 10, [1, 0, 1, 1, 0, 1, 1, 1, 1, 1])
    assert [m(frame).value for m in METRICS] == pytest.approx([0.2, 0.2 - slow_aurc([0] * 8 + [1] * 2), 0.1, 0.2, 0.2])
    assert selective.augrc(rows([0.5], [0.0])).value == 0.5


def test_risk_covers_enough_samples():
    frame = rows([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
    assert selective.risk_at(frame, 0.5).value == 0
    assert selective.risk_at(frame, 0.51).value == pytest.approx(1 / 3)
    assert selective.risk_at(frame, 1.0).value == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_one_sample_all_right_and_all_wrong(metric):
    assert metric(rows([], [])).n == 0
    assert metric(rows([0.5], [1.0])).value == 0 and math.isnan(metric(rows([0.5], [1.0])).low)
    assert metric(rows([0.5, 0.6], [1.0, 1.0])).value == 0
    all_wrong = {selective.augrc: 0.5, selective.e_aurc: 0.0}.get(metric, 1.0)
    assert metric(rows([0.5, 0.6], [0.0, 0.0])).value == all_wrong


@pytest.mark.parametrize("metric", METRICS)
def test_a_confidence_that_is_not_a_number_never_helps(metric):
    good = rows(np.linspace(0.5, 0.99, 40), [0.0] * 6 + [1.0] * 34)
    holed = good.copy()
    holed.loc[0, "confidence"] = math.nan
    holed.loc[30, "confidence"] = math.nan
    assert metric(holed).value > metric(good).value


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_equal_a_bootstrap_that_copies_samples(metric):
    rng = np.random.default_rng(8)
    score = (rng.uniform(size=25) < 0.7).astype(float)
    confidence = rng.uniform(0.3, 1, 25).round(1)
    frame = rows(confidence, score)
    drawn = weighted.draws(25, 1000)[:, :60].astype(float)
    by_weights = selective._area(selective.accepted(confidence, 1 - score, drawn))
    copied = [rows(np.repeat(confidence, w.astype(int)), np.repeat(score, w.astype(int))) for w in drawn.T]
    assert by_weights == pytest.approx([selective.aurc(c).value for c in copied])
    found = metric(frame)
    assert found.low <= found.value <= found.high and found == metric(frame)


@pytest.mark.parametrize("metric", METRICS)
def test_many_samples_are_resampled_in_parts_with_the_same_interval(metric, monkeypatch):
    rng = np.random.default_rng(1)
    frame = rows(rng.uniform(size=70).round(2), (rng.uniform(size=70) < 0.7).astype(float))
    whole = metric(frame)
    monkeypatch.setattr(weighted, "_KEPT", 70 * 300)
    assert len(weighted.parts(70, 1000)) == 4
    assert metric(frame) == whole


def test_weights_are_the_resamples_of_the_house_and_large_ones_are_not_kept(monkeypatch):
    from robench.metrics import stats

    index = next(iter(stats.resamples(40, replicates=50)))
    mine = next(weighted.weights(40, replicates=50))
    assert [np.bincount(row, minlength=40).tolist() for row in index] == mine.T.tolist()
    assert (next(weighted.weights(40, replicates=50, stream=1)) != mine).any()
    monkeypatch.setattr(weighted, "_KEPT", 0)
    monkeypatch.setattr(stats, "_CHUNK", 400)
    again = np.concatenate(list(weighted.weights(40, replicates=50)), axis=1)
    assert (again == mine).all() and again.flags.writeable is not mine.flags.writeable


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("metric", METRICS)
def test_where_all_is_right_or_wrong_the_interval_stays_open(metric, score):
    found = metric(rows(np.linspace(0.5, 0.99, 100), np.full(100, score)))
    assert 0.005 < found.high - found.low < 0.13 and found.low <= found.value <= found.high


def test_a_few_errors_among_the_accepted_have_at_least_the_binomial_interval():
    score = np.ones(300)
    score[:2] = 0
    found = selective.risk_at_80_coverage(rows(np.linspace(0.99, 0.5, 300), score))
    from robench.metrics import stats

    binomial = stats.wilson(2, 240)
    assert found.value == 2 / 240 and found.low <= binomial.low and found.high >= binomial.high
