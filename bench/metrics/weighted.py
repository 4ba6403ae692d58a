"""Bootstrap by weights: how often each sample was drawn, so that one matrix serves every statistic of as many samples.

A statistic maps weights (N, R) to values (R,); with weights of 1 it is the estimate itself. The resamples are those of
``robench.metrics.stats.resamples``, so that an interval is the same on every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from robench.metrics import stats
from robench.metrics.stats import Floats
from robench.spec import Estimate

_KEY = 20240607
"""Key of the first stream; the same as that of ``robench.metrics.stats.resamples``."""
_RARE = 3
"""Hits or misses up to which a share has no narrower interval than the binomial one."""
_KEPT = 4_000_000
"""Largest matrix of weights that is kept between calls, in entries."""


def weights(n: int, *, replicates: int = stats.REPLICATES, stream: int = 0) -> Iterator[Floats]:
    """Chunks of bootstrap weights, float64 (n, R), each column summing to n; ``stream`` numbers independent ones."""
    if n * replicates <= _KEPT:
        yield _kept(n, replicates, stream)
        return
    for index in _resamples(n, replicates, stream):
        yield _counts(index, n)


def _resamples(n: int, replicates: int, stream: int) -> Iterator[NDArray[np.int64]]:
    return stats.resamples(n, replicates=replicates, key=_KEY + stream)


@lru_cache(maxsize=8)
def _kept(n: int, replicates: int, stream: int) -> Floats:
    found = np.concatenate([_counts(index, n) for index in _resamples(n, replicates, stream)], axis=1)
    found.setflags(write=False)
    return found


def _counts(index: NDArray[np.int64], n: int) -> Floats:
    cells = index * len(index) + np.arange(len(index))[:, None]
    return np.bincount(cells.ravel(), minlength=n * len(index)).reshape(n, len(index)).astype(np.float64)


def totals(values: Floats, weights: Floats) -> Floats:
    """Sums of values (N,) or (N, B) over samples by weights (N, R): (R,) or (B, R).

    Values are rounded to multiples of 2^-30, so that no sum depends on the order in which a library adds.
    """
    found: Floats = np.round(np.asarray(values, np.float64) * 2.0**30).T @ weights * 2.0**-30
    return found


@lru_cache(maxsize=8)
def draws(n: int, replicates: int, stream: int = 0) -> NDArray[np.uint16]:
    """All bootstrap weights at once, small: (n, replicates)."""
    parts = [_counts(index, n).astype(np.uint16) for index in _resamples(n, replicates, stream)]
    found = np.concatenate(parts, axis=1)
    found.setflags(write=False)
    return found


def parts(n: int, replicates: int) -> list[slice]:
    """Consecutive resamples, so many at once that n samples of them are at most some millions of numbers."""
    step = max(1, _KEPT // max(n, 1))
    return [slice(start, start + step) for start in range(0, replicates, step)]


def joined(exact: Floats, resampled: Floats, n: int) -> Estimate:
    """The value (1,) with the middle 95 % of its resamples (R,), widened to hold it where a bootstrap is biased.

    A single sample has no interval.

    Source: Efron & Tibshirani, 1993, section 13.3.
    """
    value = float(exact[0])
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1)
    low, high = np.quantile(resampled, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def share(exact: Floats, resampled: Floats, n: int, *, of: int) -> Estimate:
    """A share (1,) of ``of`` samples that a threshold of the sample chose, with the percentiles of its resamples (R,).

    With three hits or misses at most, resamples tell too little of rarer ones: then the interval is at least as wide as
    the modified Wilson interval of as many samples.
    """
    found = joined(exact, resampled, n)
    rare = min(found.value, 1 - found.value) * of <= _RARE + 1e-9
    if n == 1 or not rare:
        return found
    low, high = stats.share_bounds(found.value, of, level=stats.LEVEL)
    return Estimate(found.value, min(found.low, low), max(found.high, high), n)


def logistic(exact: Floats, resampled: Floats, n: int, *, near: float) -> Estimate:
    """The value (1,) in [0, 1] with a normal interval on the scale of its logit, of the spread of its resamples (R,).

    Percentiles of an area under a curve cover too little near 0 and 1, where resamples lie on one side of it. A single
    sample has no interval.

    Args:
        exact: The value, (1,).
        resampled: The value in resamples, (R,).
        n: Number of samples.
        near: Values closer than this to 0 or 1 are taken to be that far off: less than the smallest that can be found, or
            all that lies between counts as one value, and the interval misses it.

    Source: Qin & Hotilovac, Statistical Methods in Medical Research 2008 (17:207; logit intervals of areas).
    """
    value = float(exact[0])
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1)
    middle, drawn = (special.logit(np.clip(v, near, 1 - near)) for v in (value, np.asarray(resampled, np.float64)))
    half = stats.z_value(stats.LEVEL) * float(drawn.std())
    low, high = special.expit([middle - half, middle + half])
    return Estimate(value, min(float(low), value), max(float(high), value), n)
