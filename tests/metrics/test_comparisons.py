"""Ranks and sample sizes beside published numbers, loops over pairs, statsmodels and scipy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power_het, normal_sample_size_one_tail

from robench.errors import ConfigError, DataError
from robench.metrics import comparisons, stats


def binary(*rates: float, n: int = 400, seed: int = 0) -> np.ndarray:
    """Scores of models on shared samples: each sample has one difficulty for all, and every model its own noise."""
    rng = np.random.default_rng(seed)
    own = 0.7 * rng.random((len(rates), n)) + 0.3 * rng.random(n)
    return (own < np.asarray(rates)[:, None]).astype(float)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 15), (15, 5), (7, 7), (30, 28)])
def test_mid_p_is_half_of_the_observed_outcome_less(b, c):
    pmf = [binom.pmf(k, b + c, 0.5) for k in range(b + c + 1)]
    slow = 2 * sum(pmf[: min(b, c)]) + (pmf[min(b, c)] if b + c else 1.0)
    assert stats.mcnemar_mid_p(b, c) == pytest.approx(min(slow, 1.0))


def test_paired_p_value_is_mid_p_for_binary_and_students_for_graded_scores():
    a, b = binary(0.8, 0.7)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    exact = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    observed = binom.pmf(min(only_a, only_b), only_a + only_b, 0.5)
    assert comparisons.paired_p_value(a, b) == pytest.approx(exact - observed)
    graded = np.random.default_rng(1).random((2, 50))
    assert comparisons.paired_p_value(*graded) == pytest.approx(ttest_rel(*graded).pvalue)


def test_paired_p_value_of_ties_single_samples_and_constant_differences():
    assert comparisons.paired_p_value([0.3, 0.5], [0.3, 0.5]) == 1.0
    assert comparisons.paired_p_value([0.9], [0.1]) == pytest.approx(0.5)
    assert comparisons.paired_p_value([], []) == 1.0
    assert comparisons.paired_p_value(np.full(10, 0.75), np.full(10, 0.5)) == pytest.approx(0.5**10)
    with pytest.raises(DataError, match="scores of models must be numbers"):
        comparisons.paired_p_value([math.nan], [0.0])
    with pytest.raises(DataError, match="scores of models must be a matrix"):
        comparisons.paired_p_value([1.0], [0.0, 1.0])


def _slow_ranks(scores: np.ndarray) -> list[tuple[int, int]]:
    models = len(scores)
    pairs = list(combinations(range(models), 2))
    raw = []
    for i, j in pairs:
        b, c = int((scores[i] > scores[j]).sum()), int((scores[j] > scores[i]).sum())
        raw.append(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5) - binom.pmf(min(b, c), b + c, 0.5)))
    reject = multipletests(raw, alpha=0.05, method="holm")[0]
    better = {
        (i, j) if scores[i].mean() > scores[j].mean() else (j, i) for (i, j), r in zip(pairs, reject, strict=True) if r
    }
    return [(1 + sum(w == m for _, w in better), models - sum(b == m for b, _ in better)) for m in range(models)]


@pytest.mark.parametrize("rates", [(0.8, 0.8, 0.8), (0.9, 0.75, 0.6, 0.58, 0.3), (0.5, 0.6)])
def test_rank_intervals_equal_a_loop_with_statsmodels_holm(rates):
    scores = binary(*rates)
    ours = comparisons.rank_intervals(scores)
    assert [(e.low, e.high) for e in ours] == _slow_ranks(scores)
    assert [e.value for e in ours] == [1 + int((scores.mean(1) > m).sum()) for m in scores.mean(1)]
    assert all(e.low <= e.value <= e.high for e in ours)


def test_rank_intervals_of_one_model_equal_models_and_no_samples():
    assert [(e.value, e.low, e.high) for e in comparisons.rank_intervals([[1.0, 0.0]])] == [(1, 1, 1)]
    same = comparisons.rank_intervals(np.ones((3, 20)))
    assert [(e.value, e.low, e.high) for e in same] == [(1, 1, 3)] * 3
    assert [e.n for e in comparisons.rank_intervals(np.ones((2, 0)))] == [0, 0]
    with pytest.raises(DataError, match="scores of models must be a matrix"):
        comparisons.rank_intervals([1.0, 0.0])


def test_bootstrap_ranks_equal_ranks_of_the_resamples_one_by_one():
    scores = binary(0.8, 0.78, 0.6, n=60)
    index = np.concatenate(list(stats.resamples(60)))
    for model, ours in enumerate(comparisons.bootstrap_ranks(scores)):
        sums = scores[:, index].sum(axis=2)
        best = sorted(1 + sum(sums[other] > sums[model] for other in range(3)))
        last = sorted(sum(sums[other] >= sums[model] for other in range(3)))
        assert (ours.low, ours.high) == (best[math.ceil(0.025 * 2000) - 1], last[math.ceil(0.975 * 2000) - 1])
    assert [(e.low, e.high) for e in comparisons.bootstrap_ranks(np.ones((2, 9)))] == [(1, 2), (1, 2)]
    assert comparisons.bootstrap_ranks(np.ones((1, 0)))[0].n == 0


@pytest.mark.parametrize(
    ("discordant", "difference", "n"),
    [(0.02, 0.01, 1568), (0.03, 0.01, 2353), (0.04, 0.02, 783), (0.06, 0.02, 1175), (0.10, 0.05, 312)],
)
def test_samples_for_mcnemar_are_the_published_numbers(discordant, difference, n):
    assert comparisons.mcnemar_n(discordant, difference) == n
    assert comparisons.mcnemar_n(discordant, -difference) == n
    null, alternative = math.sqrt(discordant), math.sqrt(discordant - difference**2)
    theirs = normal_sample_size_one_tail(difference, 0.8, 0.025, std_null=null, std_alternative=alternative)
    assert math.ceil(theirs) == n


@pytest.mark.parametrize(("difference", "n"), [(0.02, 9812), (0.05, 1570)])
def test_samples_for_unpaired_proportions_are_the_published_numbers(difference, n):
    assert comparisons.unpaired_n(difference) == n
    theirs = normal_power_het(difference, n, 0.05, std_null=math.sqrt(0.5), alternative="two-sided")
    assert theirs == pytest.approx(0.8, abs=1e-3)


def test_the_exact_power_of_mcnemar_at_that_size_is_about_as_asked():
    """Sum over the number of discordant samples of the chance that the mid-p test rejects."""
    n, power = comparisons.mcnemar_n(0.1, 0.05), 0.0
    for m in range(10, 60):
        hits = [b for b in range(m + 1) if stats.mcnemar_mid_p(b, m - b) <= 0.05]
        power += binom.pmf(m, n, 0.1) * binom.pmf(hits, m, 0.75).sum()
    assert power == pytest.approx(0.8, abs=0.02)


def test_impossible_sample_sizes_are_refused():
    for pair in ((0.01, 0.02), (0.1, 0.0), (1.2, 0.1)):
        with pytest.raises(ConfigError, match="difference and discordant share must be"):
            comparisons.mcnemar_n(*pair)
    with pytest.raises(ConfigError, match="difference and p must be"):
        comparisons.unpaired_n(0.0)
    with pytest.raises(ConfigError, match="power and level must be"):
        comparisons.unpaired_n(0.1, power=1.0)
