"""Intervals and paired tests. All intervals are 95 % unless ``level`` says otherwise.

Randomness: numpy's Philox counter with a fixed key and raw words, because metrics import no torch; the words are part
of numpy's stable stream, so an interval is the same on every run and machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as distributions

from robench.errors import DataError, must
from robench.spec import Estimate

LEVEL = 0.95
REPLICATES = 2000
_CHUNK = 2_000_000
_KEY = 20240607

Floats = NDArray[np.float64]
EMPTY = Estimate(math.nan, math.nan, math.nan, 0)
"""What a metric returns when there is nothing to measure."""


def z_value(level: float = LEVEL) -> float:
    """Two-sided standard normal quantile of ``level``."""
    return float(distributions.norm.ppf(0.5 + level / 2))


def wilson(k: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Proportion k/n in [0, 1] with Wilson's score interval.

    Raises:
        DataError: k is not in 0..n.

    Source: Wilson, JASA 1927.
    """
    _check_counts(k, n)
    if n == 0:
        return EMPTY
    z, p = z_value(level), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Estimate(p, low, high, n)


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
    first, second = wilson(k1, n1), wilson(k2, n2)
    if min(n1, n2) == 0:
        return EMPTY
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
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
        DataError: The two have different lengths.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(must("paired scores", "two vectors of one length", (first.shape, second.shape), "align by sample"))
    if is_binary(first) and is_binary(second):
        only_first, only_second = int((first > second).sum()), int((second > first).sum())
        return tango(only_first, only_second, len(first), level=level)
    return mean_interval(first - second, level=level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order that control the family-wise error.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(v) for v in adjusted]


def is_binary(scores: Floats) -> bool:
    """Whether every score is exactly 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def rate(scores: Any) -> Estimate:
    """Mean of scores in [0, 1]: Wilson's interval when all are 0 or 1, else a bootstrap over samples."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) and is_binary(values):
        return wilson(int(values.sum()), len(values))
    return mean_interval(values)


def resamples(n: int, *, replicates: int = REPLICATES, key: int = _KEY) -> Iterator[NDArray[np.int64]]:
    """Chunks of bootstrap indices, each int64 (R, n) with values in [0, n); the same on every call."""
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
    """Mean with a percentile bootstrap interval over samples; without interval for a single sample."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return EMPTY
    value = float(data.mean())
    if len(data) == 1:
        return Estimate(value, math.nan, math.nan, 1)
    low, high = bootstrap(len(data), lambda index: data[index].mean(axis=1), level=level)
    return Estimate(value, min(low, value), max(high, value), len(data))


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
