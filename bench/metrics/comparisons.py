"""Several models on the same samples: who is surely better, which ranks are possible, and how many samples it takes."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats as distributions

from robench.errors import ConfigError, DataError, must
from robench.metrics.stats import (
    LEVEL,
    Floats,
    holm,
    is_binary,
    known,
    mcnemar_mid_p,
    resample_counts,
    z_value,
)
from robench.spec import Estimate


def paired_p_value(a: Any, b: Any) -> float:
    """Two-sided p-value in [0, 1] that two models score the same on average, from the same samples.

    Args:
        a: Scores in [0, 1], shape (N,).
        b: Scores of the same samples in the same order, shape (N,).

    Returns:
        McNemar's mid-p for scores that are 0 or 1, else Student's paired test; where all differences are equal, the
        mid-p of their signs. 1 without samples.

    Raises:
        DataError: The two have different lengths, or a NaN.

    Source: Fagerland, Lydersen & Laake, BMC Medical Research Methodology 2013; Student, Biometrika 1908.
    """
    scores = _scores([a, b]) if np.shape(a) == np.shape(b) else _misaligned(np.shape(a), np.shape(b))
    return _p_value(scores[0] - scores[1], binary=is_binary(scores))


def _p_value(difference: Floats, *, binary: bool) -> float:
    if binary or len(difference) < 2 or not difference.std() > 0:
        return mcnemar_mid_p(int((difference > 0).sum()), int((difference < 0).sum()))
    return float(distributions.ttest_1samp(difference, 0.0).pvalue)


def surely_better(scores: Any, *, level: float = LEVEL) -> np.ndarray:
    """Whether model i scores significantly higher than model j, bool (M, M), by paired tests of all pairs with Holm.

    With probability ``level`` no entry is wrong, whatever the true order is.

    Args:
        scores: (M, N), one row per model, the same samples in the same order; higher is better.
        level: One minus the family-wise error of all pairs.

    Raises:
        DataError: A NaN, or not a matrix.
    """
    data = _scores(scores)
    pairs = list(combinations(range(len(data)), 2))
    binary = is_binary(data)
    adjusted = holm([_p_value(data[i] - data[j], binary=binary) for i, j in pairs])
    better = np.zeros((len(data), len(data)), dtype=bool)
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p <= 1 - level:
            ahead = data[i].mean() > data[j].mean()
            better[(i, j) if ahead else (j, i)] = True
    return better


def rank_intervals(scores: Any, *, level: float = LEVEL) -> list[Estimate]:
    """Rank of each model among M with simultaneous intervals [1 + surely better ones, M - surely worse ones].

    With probability ``level`` all intervals hold their models' true ranks at once, ties included.

    Args:
        scores: (M, N), one row per model, the same samples in the same order; higher is better.
        level: Coverage of all intervals together.

    Returns:
        In the order of the rows: 1 + number of models with a higher mean, the bounds, and N. Empty estimates without
        samples.

    Raises:
        DataError: A NaN, or not a matrix.

    Source: Al Mohamad, Goeman & van Zwet, Biometrical Journal 2019; Mogstad, Romano, Shaikh & Wilhelm, REStud 2024.
    """
    data = _scores(scores)
    models, n = data.shape
    if not n:
        return [Estimate(math.nan, math.nan, math.nan, 0)] * models
    better = surely_better(data, level=level)
    low, high = 1 + better.sum(axis=0), models - better.sum(axis=1)
    means = data.mean(axis=1)
    return [Estimate(float(1 + (means > means[i]).sum()), float(low[i]), float(high[i]), n) for i in range(models)]


def bootstrap_ranks(scores: Any, *, level: float = LEVEL) -> list[Estimate]:
    """Rank of each model with the percentile interval of its rank over resampled images, each model for itself.

    It says how the observed ranks would move with other images. Where models are (nearly) equal it promises no coverage
    of the true ranks: take ``rank_intervals`` to claim an order.

    Args:
        scores: (M, N), as for ``rank_intervals``.
        level: Share of resampled ranks in each interval.

    Raises:
        DataError: A NaN, or not a matrix.

    Source: Hall & Miller, Annals of Statistics 2009 (and its limits for close models); percentile intervals.
    """
    data = _scores(scores)
    models, n = data.shape
    if not n:
        return [Estimate(math.nan, math.nan, math.nan, 0)] * models
    totals, sums = resample_counts(n) @ data.T, data.sum(axis=1)
    found = []
    for i in range(models):
        best, last = 1 + (totals > totals[:, [i]]).sum(axis=1), (totals >= totals[:, [i]]).sum(axis=1)
        low = np.quantile(best, (1 - level) / 2, method="inverted_cdf")
        high = np.quantile(last, (1 + level) / 2, method="inverted_cdf")
        found.append(Estimate(float(1 + (sums > sums[i]).sum()), float(low), float(high), n))
    return found


def _scores(scores: Any) -> Floats:
    data = known("scores of models", scores)
    return data if data.ndim == 2 else _misaligned(data.shape)


def _misaligned(*shapes: tuple[int, ...]) -> Floats:
    raise DataError(must("scores of models", "a matrix (models, samples)", shapes, "align them by sample"))


def mcnemar_n(discordant: float, difference: float, *, power: float = 0.8, level: float = LEVEL) -> int:
    """Samples needed to tell two models apart on the same samples by McNemar's test.

    Args:
        discordant: Share of samples on which exactly one of the two is right, in (0, 1].
        difference: Accuracy of one minus that of the other; its size is in (0, discordant].
        power: Probability of a significant result.
        level: One minus the two-sided significance level.

    Raises:
        ConfigError: A share or probability out of range.

    Source: Connor, Biometrics 1987 (43:207), equation 3; Lachin, Statistics in Medicine 1992.
    """
    size = abs(difference)
    if not 0 < size <= discordant <= 1:
        got = (difference, discordant)
        raise ConfigError(
            must("difference and discordant share", "with 0 < |difference| <= discordant <= 1", got, "give both")
        )
    first, second = _quantiles(power, level)
    root = first * math.sqrt(discordant) + second * math.sqrt(discordant - size * size)
    return math.ceil((root / size) ** 2)


def unpaired_n(difference: float, *, p: float = 0.5, power: float = 0.8, level: float = LEVEL) -> int:
    """Samples needed for each of two models that were measured on different samples.

    Args:
        difference: Accuracy of one minus that of the other, not 0.
        p: Accuracy whose variance p(1 - p) both are taken to have, in (0, 1); 0.5 needs the most samples.
        power: Probability of a significant result.
        level: One minus the two-sided significance level.

    Raises:
        ConfigError: A share or probability out of range.

    Source: Fleiss, Levin & Paik, 2003, section 4.2 (without continuity correction, common variance).
    """
    if not 0 < abs(difference) < 1 or not 0 < p < 1:
        got = (difference, p)
        raise ConfigError(must("difference and p", "0 < |difference| < 1 and 0 < p < 1", got, "give them as rates"))
    first, second = _quantiles(power, level)
    return math.ceil(2 * p * (1 - p) * ((first + second) / difference) ** 2)


def _quantiles(power: float, level: float) -> tuple[float, float]:
    if not 0.5 <= power < 1 or not 0 < level < 1:
        raise ConfigError(must("power and level", "in [0.5, 1) and (0, 1)", (power, level), "e.g. 0.8 and 0.95"))
    return z_value(level), float(distributions.norm.ppf(power))
