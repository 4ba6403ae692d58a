from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, poisson, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from robench.errors import DataError
from robench.metrics import stats

COUNTS = [(0, 1), (0, 10), (3, 10), (10, 10), (37, 100), (999, 1000)]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 10), (3, 10), (10, 10), (37, 100), (4, 100), (996, 1000), (1000, 1000)])
def test_wilson_equals_statsmodels_and_scipy_but_for_a_few_successes_or_failures(k, n):
    ours = stats.wilson(k, n)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    other = binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((other.low, other.high), abs=1e-12)
    assert ours.value == k / n and ours.n == n


@pytest.mark.parametrize(("k", "n"), [(1, 10), (2, 50), (3, 51), (1, 1000), (2, 300), (3, 100)])
def test_after_a_few_successes_the_lower_end_is_the_one_sided_poisson_limit(k, n):
    ours, mirror = stats.wilson(k, n), stats.wilson(n - k, n)
    plain = proportion_confint(k, n, method="wilson")
    assert poisson.sf(k - 1, n * ours.low) == pytest.approx(0.05) and ours.low < plain[0]
    assert ours.high == pytest.approx(plain[1], abs=1e-12)
    assert (mirror.low, mirror.high) == pytest.approx((1 - ours.high, 1 - ours.low), abs=1e-12)
    assert n * ours.low == pytest.approx({1: 0.0513, 2: 0.3554, 3: 0.8177}[k], abs=1e-4)


@pytest.mark.parametrize(("k", "n"), [(3, 50), (4, 51), (1, 1), (2, 3)])
def test_more_successes_and_tiny_samples_have_wilsons_own_ends(k, n):
    ours = stats.wilson(k, n)
    assert ours.low == pytest.approx(proportion_confint(k, n, method="wilson")[0], abs=1e-12)


def test_a_share_need_not_be_of_whole_numbers():
    whole, between = stats.wilson(2, 100), stats.share_bounds(2.5 / 100, 100)
    assert stats.share_bounds(0.02, 100) == (whole.low, whole.high)
    assert whole.low < between[0] < stats.wilson(3, 100).low and whole.high < between[1] < stats.wilson(3, 100).high


@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_clopper_pearson_equals_scipy(k, n):
    other = binomtest(k, n).proportion_ci(method="exact")
    ours = stats.clopper_pearson(k, n)
    assert (ours.low, ours.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_half_widths_of_the_published_table():
    widths = {(500, 1000): 3.1, (450, 500): 2.6, (5000, 10000): 1.0}
    for (k, n), points in widths.items():
        e = stats.wilson(k, n)
        assert 50 * (e.high - e.low) == pytest.approx(points, abs=0.06)


def test_counts_are_checked():
    with pytest.raises(DataError, match=r"successes must be in 0\.\.3, got 4"):
        stats.wilson(4, 3)
    assert math.isnan(stats.wilson(0, 0).value)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 15), (15, 5), (1, 0), (30, 28)])
def test_mcnemar_equals_statsmodels(b, c):
    expected = mcnemar([[0, b], [c, 0]], exact=True).pvalue if b + c else 1.0
    assert stats.mcnemar_exact(b, c) == pytest.approx(min(expected, 1.0))


def test_mcnemar_example():
    assert stats.mcnemar_exact(5, 15) == pytest.approx(0.0414, abs=5e-5)


def test_holm_example_and_statsmodels():
    assert stats.holm([0.01, 0.02, 0.04]) == pytest.approx([0.03, 0.04, 0.04])
    p = [0.2, 0.001, 0.04, 0.04, 0.9, 0.011]
    assert stats.holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert stats.holm([]) == []


@pytest.mark.parametrize("counts", [(9, 10, 3, 10), (56, 70, 48, 80), (0, 10, 0, 20), (1000, 1000, 950, 1000)])
def test_newcombe_equals_statsmodels(counts):
    ours = stats.newcombe(*counts)
    assert (ours.low, ours.high) == pytest.approx(confint_proportions_2indep(*counts, method="newcomb"), abs=1e-9)


def _slow_tango(b: int, c: int, n: int) -> tuple[float, float]:
    """Invert the score test with the restricted likelihood maximised numerically instead of by Tango's formula."""

    def scale(delta: float) -> float:
        lowest, highest = max(0.0, -delta), (1 - delta) / 2

        def loss(q: float) -> float:
            pairs = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in pairs if k)

        q = minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
        return math.sqrt(max(n * (2 * q + delta - delta**2), 0.0))

    z, value = 1.959963984540054, (b - c) / n
    low = brentq(lambda d: b - c - n * d - z * scale(d), -0.9999, value - 1e-9)
    high = brentq(lambda d: b - c - n * d + z * scale(d), value + 1e-9, 0.9999)
    return low, high


@pytest.mark.parametrize(("b", "c", "n"), [(5, 15, 100), (15, 5, 100), (1, 0, 20), (12, 30, 60)])
def test_tango_equals_its_slow_twin(b, c, n):
    ours = stats.tango(b, c, n)
    assert (ours.low, ours.high) == pytest.approx(_slow_tango(b, c, n), abs=1e-5)


def test_tango_without_discordant_samples_has_the_closed_form():
    """With b = c = 0 the score equation gives n·d² = z²·d·(1 - d), so d = z²/(n + z²)."""
    e, z2 = stats.tango(0, 0, 50), 1.959963984540054**2
    assert (e.low, e.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)


def test_tango_is_antisymmetric_and_handles_the_corners():
    a, b = stats.tango(3, 9, 40), stats.tango(9, 3, 40)
    assert (a.low, a.high) == pytest.approx((-b.high, -b.low))
    assert stats.tango(10, 0, 10).high == 1.0
    assert stats.tango(0, 10, 10).low == -1.0


def test_tango_covers_about_95_percent():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        b, c, _ = rng.multinomial(80, [0.15, 0.05, 0.8])
        e = stats.tango(int(b), int(c), 80)
        hits += e.low <= 0.1 <= e.high
    assert 0.92 <= hits / 400 <= 0.98


def test_paired_difference_uses_pairs_not_margins():
    a, b = np.array([1.0] * 60 + [0.0] * 40), np.array([1.0] * 50 + [0.0] * 50)
    paired, same = stats.paired_difference(a, b), stats.tango(10, 0, 100)
    assert (paired.value, paired.low, paired.high) == (same.value, same.low, same.high)
    assert paired.low > 0
    assert stats.newcombe(60, 100, 50, 100).low < 0


def test_paired_difference_of_graded_scores_and_bad_shapes():
    a = np.linspace(0, 1, 50)
    e = stats.paired_difference(a, a - 0.1)
    assert (e.value, e.low, e.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(DataError, match="paired scores must be two vectors of one length"):
        stats.paired_difference(a, a[:10])


def test_bootstrap_is_fixed_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    first, second = stats.mean_interval(values), stats.mean_interval(values)
    assert first == second
    half = 1.96 * values.std() / 20
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)


def test_resamples_are_uniform_and_independent_of_the_chunking():
    chunks = np.concatenate(list(stats.resamples(7)))
    assert chunks.shape == (stats.REPLICATES, 7)
    assert np.bincount(chunks.ravel(), minlength=7) == pytest.approx(np.full(7, 2000), rel=0.1)
    large = list(stats.resamples(3000))
    assert len(large) > 1 and sum(len(c) for c in large) == stats.REPLICATES


def test_mean_of_one_sample_has_no_interval():
    e = stats.mean_interval([0.3])
    assert e.value == 0.3 and math.isnan(e.low)
    assert stats.rate([]).n == 0


def test_area_of_known_curves():
    e = stats.area_interval([0.0, 1.0, 3.0], [[1.0, 1.0, 0.0]] * 5)
    assert e.value == pytest.approx((1 + 1) / 3)
    assert e.low == pytest.approx(e.high)
    with pytest.raises(DataError, match="curve positions must be two or more increasing numbers"):
        stats.area_interval([0.0, 0.0], [[1.0, 1.0]])


def test_the_hierarchical_bootstrap_draws_trainings_then_images():
    scores = np.random.default_rng(3).random((4, 9)).round(1)
    images = np.concatenate(list(stats.resamples(9)))
    trainings = np.concatenate(list(stats.resamples(4, key=stats._KEY + 1)))
    slow = [np.mean([scores[s][i].mean() for s in drawn]) for drawn, i in zip(trainings, images, strict=True)]
    e = stats.hierarchical_bootstrap(scores)
    assert (e.value, e.n) == (pytest.approx(scores.mean()), 9)
    assert (e.low, e.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_a_single_training_or_image_says_nothing_about_others():
    for shape in ((1, 5), (5, 1)):
        e = stats.hierarchical_bootstrap(np.ones(shape))
        assert e.value == 1.0 and math.isnan(e.low)
    assert stats.hierarchical_bootstrap(np.ones((3, 0))).n == 0
    with pytest.raises(DataError, match="scores of trainings must be a matrix"):
        stats.hierarchical_bootstrap([1.0, 0.0])


def test_nan_is_refused_where_it_would_be_taken_for_a_loss_and_told_where_it_is_a_mean():
    for call in (
        lambda: stats.paired_difference([1.0, math.nan], [1.0, 0.0]),
        lambda: stats.holm([0.1, math.nan]),
        lambda: stats.hierarchical_bootstrap([[1.0, math.nan], [1.0, 0.0]]),
    ):
        with pytest.raises(DataError, match=r"must be numbers, got '1 NaN among \d'"):
            call()
    e = stats.mean_interval([0.5, math.nan, 1.0])
    assert math.isnan(e.value) and math.isnan(e.low) and e.n == 3
    with pytest.raises(DataError, match=r"p-values must be in \[0, 1\]"):
        stats.holm([0.1, 1.2])


def test_a_skewed_mean_is_students_without_skew_and_leans_towards_the_long_tail_with_it():
    even = np.r_[np.zeros(20), np.ones(20)]
    found = stats.skewed_mean(even)
    low, high = t.interval(0.95, 39, 0.5, even.std(ddof=1) / math.sqrt(40))
    assert (found.value, found.low, found.high, found.n) == (0.5, pytest.approx(low), pytest.approx(high), 40)
    tailed = stats.skewed_mean(np.r_[np.zeros(90), np.full(10, 5.0)])
    assert tailed.high - tailed.value > 1.2 * (tailed.value - tailed.low) > 0
    mirrored = stats.skewed_mean(-np.r_[np.zeros(90), np.full(10, 5.0)])
    assert (mirrored.low, mirrored.high) == (pytest.approx(-tailed.high), pytest.approx(-tailed.low))


def test_the_transform_of_a_skewed_mean_is_halls():
    values = np.random.default_rng(0).exponential(size=60)
    found, n = stats.skewed_mean(values), 60
    skew = ((values - values.mean()) ** 3).mean() / values.std(ddof=1) ** 3
    for end, side in ((found.low, 1), (found.high, -1)):
        u = (values.mean() - end) / values.std(ddof=1)
        transformed = math.sqrt(n) * (u + skew * u**2 / 3 + skew**2 * u**3 / 27 + skew / (6 * n))
        assert transformed == pytest.approx(side * t.ppf(0.975, n - 1))


def test_a_skewed_mean_of_nothing_one_constant_and_nan():
    assert stats.skewed_mean([]).n == 0 and math.isnan(stats.skewed_mean([2.0]).low)
    assert stats.skewed_mean([2.0, 2.0]).low == stats.skewed_mean([2.0, 2.0]).high == 2
    assert math.isnan(stats.skewed_mean([1.0, math.nan, 2.0]).value)
