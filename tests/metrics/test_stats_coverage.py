"""How often the intervals hold the truth: binomial ones by exact summation, the others by simulation.

The quick runs are small; the slow ones make 5000 replications each. A planted interval of 90 % fails the same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, ndtr
from scipy.stats import binom

from robench.metrics import comparisons, crossed, shifts, stats
from robench.spec import Estimate

N = 300
LOW, HIGH = 0.93, 0.97
Simulation = Callable[[int, float], float]


# --- binomial, exactly ----------------------------------------------------------------------------------------------


def exact_coverage(interval: Callable[..., Estimate], n: int, p: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Probability under each p that the interval of k of n holds p: a sum over all k."""
    found = [interval(k, n, level=level) for k in range(n + 1)]
    low, high = (np.array([getattr(e, end) for e in found])[:, None] for end in ("low", "high"))
    return (binom.pmf(np.arange(n + 1)[:, None], n, p) * ((low <= p) & (p <= high))).sum(axis=0)


def corners(interval: Callable[..., Estimate], n: int) -> np.ndarray:
    """Both sides of every bound: between them coverage is smooth and concave enough, so that its minimum is at one."""
    found = [interval(k, n) for k in range(n + 1)]
    bounds = np.array([[e.low, e.high] for e in found]).ravel()
    sides = np.concatenate([bounds - 1e-9, bounds + 1e-9])
    return sides[(sides > 0) & (sides < 1)]


GRID = np.linspace(0.02, 0.98, 1921)
EVERYWHERE = np.linspace(1e-5, 1 - 1e-5, 4001)


def check_mean(n: int, level: float = 0.95) -> None:
    mean = exact_coverage(stats.wilson, n, GRID, level).mean()
    assert abs(mean - 0.95) <= 0.005, mean


def least(interval: Callable[..., Estimate], n: int) -> float:
    """Least coverage over all p in (0, 1)."""
    return float(exact_coverage(interval, n, np.concatenate([corners(interval, n), EVERYWHERE])).min())


@pytest.mark.parametrize("n", [100, 101, 300, pytest.param(1000, marks=pytest.mark.slow)])
def test_modified_wilson_covers_95_percent_on_average_and_92_at_least_everywhere(n):
    check_mean(n)
    assert least(stats.wilson, n) >= 0.92


def plain_wilson(k: int, n: int, *, level: float = 0.95) -> Estimate:
    """Wilson's own interval."""
    return Estimate(k / n, *stats._score_bounds(k / n, n, stats.z_value(level)), n)


@pytest.mark.parametrize("n", [100, 300])
def test_wilsons_own_interval_fails_near_0_and_1_and_the_modified_one_differs_nowhere_else(n):
    """At p = 0.18/n its interval of k = 1 just leaves p out, and k > 0 has a probability of 16 %."""
    lowest = least(plain_wilson, n)
    assert 0.835 <= lowest <= 0.845
    assert exact_coverage(plain_wilson, n, np.array([0.1765 / n]))[0] == pytest.approx(lowest, abs=0.003)
    both = [(stats.wilson(k, n), plain_wilson(k, n)) for k in range(n + 1)]
    differ = [k for k, (ours, own) in enumerate(both) if max(abs(ours.low - own.low), abs(ours.high - own.high)) > 1e-12]
    assert differ == [1, 2, 3, n - 3, n - 2, n - 1]


@pytest.mark.parametrize("n", [1, 2, 20, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_clopper_pearson_covers_95_percent_everywhere(n):
    assert least(stats.clopper_pearson, n) >= 0.95


def test_a_planted_90_percent_interval_fails_the_binomial_checks():
    with pytest.raises(AssertionError):
        check_mean(300, level=0.9)
    assert exact_coverage(stats.wilson, 300, GRID, 0.9).min() < 0.92
    assert exact_coverage(stats.clopper_pearson, 100, GRID, 0.9).min() < 0.95


# --- by simulation --------------------------------------------------------------------------------------------------


def graded(draws: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Mean scores over 15 corrupted versions of images of different difficulty, whose mean is 0.6 exactly."""
    return draws.binomial(15, draws.beta(1.5, 1.0, size)) / 15


def bootstrap_bounds(values: np.ndarray, level: float) -> np.ndarray:
    """Percentile bounds of every column of (N, R): the same resamples as the library's, all columns at once."""
    means = stats.resample_counts(len(values)) @ values / len(values)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)


def test_the_simulated_bootstrap_is_the_librarys():
    values = graded(np.random.default_rng(5), (N, 3))
    bounds = bootstrap_bounds(values, 0.95)
    for column in range(3):
        ours = stats.mean_interval(values[:, column])
        assert (ours.low, ours.high) == pytest.approx(tuple(bounds[:, column]), abs=1e-12)


def mean_of_graded_scores(reps: int, level: float) -> float:
    low, high = bootstrap_bounds(graded(np.random.default_rng(0), (N, reps)), level)
    return float(((low <= 0.6) & (high >= 0.6)).mean())


def paired_graded_scores(reps: int, level: float) -> float:
    """Differences of two models whose scores share the image's difficulty: 3/5 and 1/2 of the versions."""
    draws = np.random.default_rng(1)
    easy = draws.beta(1.5, 1.0, (N, reps))
    first, second = draws.binomial(15, easy) / 15, draws.binomial(15, easy * 5 / 6) / 15
    low, high = bootstrap_bounds(first - second, level)
    return float(((low <= 0.1) & (high >= 0.1)).mean())


def tango(reps: int, level: float, *, only_first: float = 0.12, only_second: float = 0.07) -> float:
    interval = lru_cache(None)(stats.tango)
    counts = np.random.default_rng(2).multinomial(N, [only_first, only_second, 1 - only_first - only_second], reps)
    found = [interval(int(b), int(c), N, level=level) for b, c, _ in counts]
    return float(np.mean([e.low <= only_first - only_second <= e.high for e in found]))


def rare_tango(reps: int, level: float) -> float:
    return tango(reps, level, only_first=0.03, only_second=0.02)


def area(reps: int, level: float, *, shift: float = 1.0, positives: int = 150) -> float:
    draws, truth = np.random.default_rng(3), ndtr(shift / np.sqrt(2))
    hits = 0
    for _ in range(reps):
        e = stats.delong(draws.normal(shift, 1, positives), draws.normal(0, 1, N - positives), level=level)
        hits += e.low <= truth <= e.high
    return hits / reps


def high_area_of_unequal_classes(reps: int, level: float) -> float:
    return area(reps, level, shift=2.3, positives=60)


@lru_cache(None)
def true_mean(by_image: float, by_training: float) -> float:
    """Mean of expit(1.5 + images + trainings) by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float((expit(1.5 + np.hypot(by_image, by_training) * nodes) * weights).sum() / weights.sum())


def trained_scores(draws: np.random.Generator, trainings: int, by_training: float) -> np.ndarray:
    """0/1 scores (S, N): logits of images and of trainings add, and chance is left in each."""
    logits = 1.5 + 1.5 * draws.normal(size=N) + by_training * draws.normal(size=(trainings, 1))
    return (draws.random((trainings, N)) < expit(logits)).astype(float)


def trainings(reps: int, level: float, *, count: int = 3, by_training: float = 0.4, naive: bool = False) -> float:
    draws, truth = np.random.default_rng(4), true_mean(1.5, by_training)
    interval = stats.hierarchical_bootstrap if naive else crossed.rate
    found = [interval(trained_scores(draws, count, by_training), level=level) for _ in range(reps)]
    return float(np.mean([e.low <= truth <= e.high for e in found]))


def five_trainings(reps: int, level: float) -> float:
    return trainings(reps, level, count=5, by_training=0.3)


def ranks(reps: int, level: float, *, models: int = 4) -> float:
    """Equal models, the hardest case: the intervals hold the truth only where each reaches from 1 to M."""
    draws, hits = np.random.default_rng(6), 0
    for _ in range(reps):
        own = 0.5 * draws.random((models, N)) + 0.5 * draws.random(N)
        found = comparisons.rank_intervals((own < 0.6).astype(float), level=level)
        hits += all(e.low == 1 and e.high == models for e in found)
    return hits / reps


def graded_ranks(reps: int, level: float) -> float:
    draws, hits = np.random.default_rng(7), 0
    for _ in range(reps):
        easy = draws.beta(1.5, 1.0, N)
        found = comparisons.rank_intervals(draws.binomial(15, easy, (3, N)) / 15, level=level)
        hits += all(e.low == 1 and e.high == 3 for e in found)
    return hits / reps


def two_bootstrap_ranks(reps: int, level: float) -> float:
    """Two equal models: an interval that leaves out a rank claims an order that is not there."""
    draws, hits = np.random.default_rng(8), 0
    for _ in range(reps):
        scores = (0.5 * draws.random((2, N)) + 0.5 * draws.random(N) < 0.6).astype(float)
        hits += all((e.low, e.high) == (1, 2) for e in comparisons.bootstrap_ranks(scores, level=level))
    return hits / reps


SIMULATIONS: tuple[Simulation, ...] = (
    mean_of_graded_scores, paired_graded_scores, tango, rare_tango, area, high_area_of_unequal_classes, trainings,
    five_trainings, ranks, graded_ranks, two_bootstrap_ranks,
)  # fmt: skip


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not depend on the replication is made once."""
    monkeypatch.setattr(stats, "resample_counts", lru_cache(None)(stats.resample_counts))
    monkeypatch.setattr(comparisons, "resample_counts", stats.resample_counts)
    monkeypatch.setattr(comparisons, "mcnemar_mid_p", lru_cache(None)(stats.mcnemar_mid_p))


def check(simulation: Simulation, reps: int, level: float = 0.95) -> None:
    share = simulation(reps, level)
    assert LOW <= share <= HIGH, share


@pytest.mark.parametrize("simulation", [mean_of_graded_scores, tango, area, trainings, ranks], ids=lambda s: s.__name__)
def test_intervals_cover_93_to_97_percent_in_a_few_replications(simulation):
    check(simulation, 1500)
    with pytest.raises(AssertionError):
        check(simulation, 1500, level=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("simulation", SIMULATIONS, ids=lambda s: s.__name__)
def test_intervals_cover_93_to_97_percent(simulation):
    check(simulation, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("simulation", SIMULATIONS, ids=lambda s: s.__name__)
def test_a_planted_90_percent_interval_fails_the_same_check(simulation):
    with pytest.raises(AssertionError):
        check(simulation, 5000, level=0.9)


@pytest.mark.slow
def test_resampling_few_trainings_covers_too_seldom():
    assert trainings(600, 0.95, by_training=1.0, naive=True) < 0.85
    assert trainings(600, 0.95, count=20, by_training=0.4, naive=True) > LOW


@pytest.mark.slow
@pytest.mark.parametrize(("count", "by_training"), [(3, 0.2), (3, 1.0), (5, 0.2), (5, 1.0), (10, 0.3)])
def test_trainings_that_differ_cover_93_to_97_percent_however_much(count, by_training):
    check(lambda reps, level: trainings(reps, level, count=count, by_training=by_training), 5000)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "by_training"), [(3, 0.0), (3, 0.1), (5, 0.0)])
def test_trainings_that_hardly_differ_cover_somewhat_more_since_their_number_limits_what_they_tell(count, by_training):
    share = trainings(5000, 0.95, count=count, by_training=by_training)
    assert LOW <= share <= 0.98, share


@pytest.mark.slow
@pytest.mark.parametrize("models", [2, 8])
def test_simultaneous_ranks_of_equal_models_hold_for_other_numbers_of_models(models):
    assert LOW <= ranks(2000, 0.95, models=models) <= 0.98


@pytest.mark.slow
def test_simultaneous_ranks_of_models_that_differ_hold_too():
    """Two equal models above two equal ones: true ranks are 1 to 2 and 3 to 4."""
    draws, hits = np.random.default_rng(9), 0
    for _ in range(2000):
        own = 0.5 * draws.random((4, N)) + 0.5 * draws.random(N)
        found = comparisons.rank_intervals((own < np.array([[0.6], [0.6], [0.52], [0.52]])).astype(float))
        hits += all(e.low <= 1 + 2 * (i > 1) and e.high >= 2 + 2 * (i > 1) for i, e in enumerate(found))
    assert hits / 2000 > LOW


@pytest.mark.slow
def test_bootstrap_ranks_of_several_equal_models_are_too_narrow_and_the_docstring_says_so():
    draws, hits = np.random.default_rng(10), 0
    for _ in range(500):
        own = 0.5 * draws.random((6, N)) + 0.5 * draws.random(N)
        hits += all((e.low, e.high) == (1, 6) for e in comparisons.bootstrap_ranks((own < 0.6).astype(float)))
    assert hits / 500 < 0.5
    assert "promises no coverage" in (comparisons.bootstrap_ranks.__doc__ or "")


@pytest.mark.slow
@pytest.mark.parametrize(("clean", "shifted"), [(0.9, 0.7), (0.6, 0.3), (0.97, 0.9)])
def test_effective_robustness_covers_95_percent_of_the_images(clean, shifted):
    line = (0.8, -0.6, 25)
    truth = shifted - shifts.expected_accuracy(line, clean, 10**9)
    draws, parts = np.random.default_rng(11), np.repeat(["clean", "shifted"], N)
    told, hits = {"slope": line[0], "intercept": line[1], "references": line[2]}, 0
    for _ in range(1500):
        scores = np.concatenate([draws.random(N) < clean, draws.random(N) < shifted]).astype(float)
        e = shifts.effective_robustness(pd.DataFrame({"split": parts, "score": scores, **told}))
        hits += e.low <= truth <= e.high
    assert LOW <= hits / 1500 <= HIGH, hits / 1500
