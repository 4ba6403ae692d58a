"""Intervals and paired tests. All intervals are 95 % unless ``level`` says otherwise.

Several models at once, and how many samples a comparison needs: ``robench.metrics.comparisons``.

Randomness: numpy's Philox counter with a fixed key and raw words, because metrics import no torch; the words are part
of numpy's stable stream, so an interval is the same on every run and machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as distributions

from robench.errors import DataError, must
from robench.spec import Estimate

LEVEL = 0.95
REPLICATES = 2000
_CHUNK, _REMEMBERED = 2_000_000, 1_000_000
"""Indices that are drawn at a time, and up to how many of all replicates are kept from one call to the next."""
_KEY = 20240607
_FEW_OF_MANY, _MANY, _NONE = 3, 50, 1e-9
"""Counts whose ends ``wilson`` changes, above how many samples (one count fewer below), and what counts as none."""

Floats = NDArray[np.float64]
EMPTY = Estimate(math.nan, math.nan, math.nan, 0)
"""What a metric returns when there is nothing to measure."""


@cache
def z_value(level: float = LEVEL) -> float:
    """Two-sided standard normal quantile of ``level``."""
    return float(distributions.norm.ppf(0.5 + level / 2))


def wilson(k: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Proportion k/n in [0, 1] with the modified Wilson interval.

    Wilson's score interval, except that a lower end after 1 to 3 successes (up to n = 50: 1 or 2) is the one-sided Poisson
    limit, and an upper end after so few failures its mirror. Wilson's own covers 83.8 % at p = 0.18/n; this one at
    least 92.6 % at every p from n = 51 on (91.6 % with n = 20 to 50), and as often as Wilson's away from 0 and 1.

    Raises:
        DataError: k is not in 0..n.

    Source: Brown, Cai & DasGupta, Statistical Science 2001 (16:101), section 4.1.1; Wilson, JASA 1927.
    """
    _check_counts(k, n)
    return Estimate(k / n, *share_bounds(k / n, n, level=level), n) if n else EMPTY


def share_bounds(p: float, n: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Ends of ``wilson`` for a share p in [0, 1] of n samples; neither p n nor n need be whole (effective numbers)."""
    low, high = _score_bounds(p, n, z_value(level))
    return min(low, _poisson_end(p * n, n, level)), max(high, 1 - _poisson_end((1 - p) * n, n, level))


def _poisson_end(k: float, n: float, level: float) -> float:
    """One-sided lower end after a few successes; 1, which binds nothing, after more."""
    few = min(_FEW_OF_MANY if n > _MANY else _FEW_OF_MANY - 1, n / 2)
    if k <= _NONE:
        return 0.0
    return float(distributions.chi2.ppf(1 - level, 2 * k)) / (2 * n) if k <= few + _NONE else 1.0


def _score_bounds(p: float, n: float, z: float) -> tuple[float, float]:
    """Ends of Wilson's own interval."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def clopper_pearson(k: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Proportion k/n in [0, 1] with the exact (conservative) interval.

    Raises:
        DataError: k is not in 0..n.

    Source: Clopper & Pearson, Biometrika 1934.
    """
    _check_counts(k, n)
    if n == 0:
        return EMPTY
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(distributions.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(distributions.beta.ppf(1 - tail, k + 1, n - k))
    return Estimate(k / n, low, high, n)


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise DataError(must("successes", f"in 0..{n}", k, "count each sample once"))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value in [0, 1] of equal accuracies, from the discordant counts (only A right, only B right).

    Source: McNemar, Psychometrika 1947; exact binomial form.
    """
    return 1.0 if b + c == 0 else float(distributions.binomtest(min(b, c), b + c, 0.5).pvalue)


def mcnemar_mid_p(b: int, c: int) -> float:
    """As ``mcnemar_exact``, with half of the observed outcome's probability: less conservative, seldom above its level.

    Source: Fagerland, Lydersen & Laake, BMC Medical Research Methodology 2013 (13:91), equation 3.
    """
    if b + c == 0:
        return 1.0
    observed = float(distributions.binom.pmf(min(b, c), b + c, 0.5))
    return 1.0 if b == c else mcnemar_exact(b, c) - observed


def tango(b: int, c: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Difference (b - c)/n of two paired proportions, in [-1, 1], with Tango's score interval.

    Args:
        b: Samples on which only the first is right.
        c: Samples on which only the second is right.
        n: All samples.

    Raises:
        DataError: b + c is not in 0..n.

    Source: Tango, Statistics in Medicine 1998, section 3 (equation for the restricted estimate).
    """
    _check_counts(b + c, n)
    if n == 0:
        return EMPTY
    z, value = z_value(level), (b - c) / n

    def excess(delta: float) -> float:
        return b - c - n * delta - math.copysign(z, value - delta) * _tango_scale(b, c, n, delta)

    low = -1.0 if c == n else optimize.brentq(excess, -1.0, value - 1e-12, xtol=1e-12)
    high = 1.0 if b == n else optimize.brentq(excess, value + 1e-12, 1.0, xtol=1e-12)
    return Estimate(value, float(low), float(high), n)


def _tango_scale(b: int, c: int, n: int, delta: float) -> float:
    """Standard deviation of b - c when the difference is ``delta``, at the restricted likelihood's maximum."""
    linear = -b - c + (2 * n - b + c) * delta
    root = math.sqrt(max(linear * linear + 8 * n * c * delta * (1 - delta), 0.0))
    only_second = (root - linear) / (4 * n)
    return math.sqrt(max(n * (2 * only_second + delta * (1 - delta)), 0.0))


def newcombe(k1: int, n1: int, k2: int, n2: int) -> Estimate:
    """Difference k1/n1 - k2/n2 of two independent proportions, in [-1, 1]; n is the smaller sample.

    Source: Newcombe, Statistics in Medicine 1998 (17:873), method 10.
    """
    _check_counts(k1, n1)
    _check_counts(k2, n2)
    if min(n1, n2) == 0:
        return EMPTY
    first, second, z = k1 / n1, k2 / n2, z_value()
    (low1, high1), (low2, high2) = _score_bounds(first, n1, z), _score_bounds(second, n2, z)
    value = first - second
    low = value - math.hypot(first - low1, high2 - second)
    high = value + math.hypot(high1 - first, second - low2)
    return Estimate(value, low, high, min(n1, n2))


def paired_difference(a: Any, b: Any, *, level: float = LEVEL) -> Estimate:
    """Mean of a minus mean of b over the same samples, in [-1, 1], with a paired interval.

    Args:
        a: Scores in [0, 1], shape (N,).
        b: Scores of the same samples in the same order, shape (N,).
        level: Coverage of the interval.

    Returns:
        Tango's interval for scores that are 0 or 1, else a bootstrap over samples.

    Raises:
        DataError: The two have different lengths, or a NaN.
    """
    first, second = known("paired scores", a), known("paired scores", b)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(must("paired scores", "two vectors of one length", (first.shape, second.shape), "align by sample"))
    if is_binary(first) and is_binary(second):
        only_first, only_second = int((first > second).sum()), int((second > first).sum())
        return tango(only_first, only_second, len(first), level=level)
    return mean_interval(first - second, level=level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order that control the family-wise error.

    Raises:
        DataError: One is not in [0, 1].

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = known("p-values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise DataError(must("p-values", "in [0, 1]", p_values, "give probabilities"))
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(v) for v in adjusted]


def known(what: str, values: Any) -> Floats:
    """The values as float64, of any shape.

    Raises:
        DataError: One of them is NaN, which a comparison would silently take for a loss or a win.
    """
    data = np.asarray(values, dtype=np.float64)
    if np.isnan(data).any():
        got = f"{int(np.isnan(data).sum())} NaN among {data.size}"
        raise DataError(must(what, "numbers", got, "count what could not be measured against the model"))
    return data


def is_binary(scores: Floats) -> bool:
    """Whether every score is exactly 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def rate(scores: Any) -> Estimate:
    """Mean of scores in [0, 1]: the modified Wilson interval when all are 0 or 1, else a bootstrap over samples."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) and is_binary(values):
        return wilson(int(values.sum()), len(values))
    return mean_interval(values)


def widened(found: Estimate, *others: Estimate) -> Estimate:
    """An estimate whose interval holds those of others too: of the same number with unknown samples counted otherwise."""
    low = float(np.fmin.reduce([found.low, *(other.low for other in others)]))
    high = float(np.fmax.reduce([found.high, *(other.high for other in others)]))
    return Estimate(found.value, low, high, found.n)


def resamples(n: int, *, replicates: int = REPLICATES, key: int = _KEY) -> Iterator[NDArray[np.int64]]:
    """Chunks of bootstrap indices, each int64 (R, n) with values in [0, n); the same on every call."""
    return iter(_remembered(n, replicates, key)) if replicates * n <= _REMEMBERED else _drawn(n, replicates, key)


@lru_cache(maxsize=4)
def _remembered(n: int, replicates: int, key: int) -> tuple[NDArray[np.int64], ...]:
    found = tuple(_drawn(n, replicates, key))
    for chunk in found:
        chunk.setflags(write=False)
    return found


def _drawn(n: int, replicates: int, key: int) -> Iterator[NDArray[np.int64]]:
    source = np.random.Philox(key=key)
    rows = max(1, _CHUNK // max(n, 1))
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        words = source.random_raw(count * n) >> np.uint64(32)
        yield ((words * np.uint64(n)) >> np.uint64(32)).astype(np.int64).reshape(count, n)


def bootstrap(n: int, statistic: Callable[[NDArray[np.int64]], Floats], *, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval (low, high) of a statistic that maps indices (R, n) to values (R,).

    Source: Efron & Tibshirani, 1993, section 13.3.
    """
    values = np.concatenate([statistic(index) for index in resamples(n)])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Any, *, level: float = LEVEL) -> Estimate:
    """Mean with a percentile bootstrap interval over samples; without interval for a single sample.

    A NaN among the values makes value and interval NaN: it is neither dropped nor taken for a number.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return EMPTY
    value = float(data.mean())
    if len(data) == 1:
        return Estimate(value, math.nan, math.nan, 1)
    low, high = bootstrap(len(data), lambda index: data[index].mean(axis=1), level=level)
    return Estimate(value, min(low, value), max(high, value), len(data))


def skewed_mean(values: Any, *, level: float = LEVEL) -> Estimate:
    """Mean with Student's interval after a transformation that takes the skewness of the samples out of it.

    For losses, of which a few are large: there percentiles of a bootstrap leave the truth above them too often. A single
    sample has no interval; a NaN makes value and interval NaN.

    Source: Hall, JRSS B 1992 (54:221), section 2 (monotone cubic transformation).
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    n = len(data)
    if n == 0:
        return EMPTY
    value = float(data.mean())
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1)
    spread = float(data.std(ddof=1))
    skew = float(((data - value) ** 3).mean() / spread**3) / math.sqrt(n) if spread > 0 else 0.0
    t = float(distributions.t.ppf(0.5 + level / 2, n - 1))
    low, high = (value - spread / math.sqrt(n) * _unskewed(side, skew) for side in (t, -t))
    return Estimate(value, min(low, value), max(high, value), n)


def _unskewed(x: float, skew: float) -> float:
    """The t statistic whose transform is x; ``skew`` is that of the mean."""
    if abs(skew) < 1e-9:
        return x
    return float(np.cbrt(1 + skew * (x - skew / 6)) - 1) * 3 / skew


def area_interval(x: Any, curves: Any) -> Estimate:
    """Mean area under per-sample curves, divided by the range of x, with a bootstrap interval over samples.

    The area of a mean curve is the mean of the samples' areas, so that one resampling serves the whole curve.

    Args:
        x: Increasing positions, shape (P,), at least two.
        curves: Values in [0, 1], shape (N, P).

    Raises:
        DataError: x is not strictly increasing or has fewer than two positions.

    Source: trapezoid rule.
    """
    positions, heights = np.asarray(x, dtype=np.float64), np.asarray(curves, dtype=np.float64)
    if len(positions) < 2 or not (np.diff(positions) > 0).all():
        raise DataError(must("curve positions", "two or more increasing numbers", positions.tolist(), "measure more points"))
    return mean_interval(np.trapezoid(heights, positions, axis=1) / (positions[-1] - positions[0]))


def hierarchical_bootstrap(scores: Any, *, level: float = LEVEL) -> Estimate:
    """Mean over trainings and images with a percentile interval: trainings are resampled, then images.

    It covers what it claims only for some 10 trainings or more. By simulation with 3 trainings of 300 images it covers 80 %
    where trainings differ much (5: 86 %) and 98.6 % where they do not differ. Tables use ``robench.metrics.crossed``.

    Args:
        scores: (S, N), one row per training, the same N images in the same order in each.
        level: Coverage that the interval claims.

    Raises:
        DataError: A NaN, or not a matrix.

    Source: Davison & Hinkley, Bootstrap Methods 1997, section 3.8 (hierarchical data).
    """
    data = _matrix(scores)
    if not data.size:
        return EMPTY
    trainings, images = data.shape
    value = float(data.mean())
    if min(data.shape) == 1:
        return Estimate(value, math.nan, math.nan, images)
    by_image = resample_counts(images) @ data.T / images
    values = (resample_counts(trainings, key=_KEY + 1) * by_image).sum(axis=1) / trainings
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), images)


def resample_counts(n: int, *, key: int = _KEY) -> Floats:
    """How often each of n units is in each bootstrap sample, whole numbers (R, n); rows sum to n."""
    parts = []
    for index in resamples(n, key=key):
        cells = (index + n * np.arange(len(index))[:, None]).ravel()
        parts.append(np.bincount(cells, minlength=index.size).reshape(index.shape))
    return np.concatenate(parts).astype(np.float64)


def _matrix(scores: Any) -> Floats:
    data = known("scores of trainings", scores)
    if data.ndim != 2:
        raise DataError(must("scores of trainings", "a matrix (trainings, images)", data.shape, "align them by image"))
    return data


def delong(positives: Any, negatives: Any, *, level: float = LEVEL) -> Estimate:
    """Area under the ROC curve in [0, 1]: how often a positive scores above a negative, ties counting half.

    Args:
        positives: Scores of the class that should score high, (P,).
        negatives: Scores of the other class, (Q,).
        level: Coverage of the interval.

    Returns:
        Value with DeLong's variance, the interval taken on the logit scale; n counts both classes. Where all pairs are
        ordered alike (or all tied) that variance is 0, and Wilson's bounds for as many pairs as the smaller class has
        samples stand in for it. Empty where a class is.

    Raises:
        DataError: A NaN.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Pepe, 2003, section 5.2.3 (logit scale).
    """
    high, low = known("scores of positives", positives).ravel(), known("scores of negatives", negatives).ravel()
    if not len(high) or not len(low):
        return EMPTY
    value, variance = _placements(high, low)
    n, z = len(high) + len(low), z_value(level)
    if variance == 0 or not 0 < value < 1:
        return Estimate(value, *_score_bounds(value, min(len(high), len(low)), z), n)
    half = z * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return Estimate(value, 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre)), n)


def _placements(high: Floats, low: Floats) -> tuple[float, float]:
    """Area under the curve and its variance; 0 with a single sample in either class."""
    joint = distributions.rankdata(np.concatenate([high, low]))
    above = (joint[: len(high)] - distributions.rankdata(high)) / len(low)
    below = 1 - (joint[len(high) :] - distributions.rankdata(low)) / len(high)
    if min(len(high), len(low)) == 1:
        return float(above.mean()), 0.0
    return float(above.mean()), float(above.var(ddof=1) / len(high) + below.var(ddof=1) / len(low))
