"""Calibration: whether a model is right as often as it says. Arrays in; frames with ``score`` and ``confidence`` too.

A sample whose output is not finite counts as the worst there is: fully confident, and wrong.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special

from robench.errors import DataError, must
from robench.metrics import stats, weighted
from robench.metrics.clean import split
from robench.metrics.stats import Floats
from robench.registry import facts
from robench.spec import Estimate

BINS = 15
"""Bins of every binned error (Guo et al., ICML 2017, section 4)."""
SMALLEST = 1e-12
"""Probabilities are at least this in a log loss."""
LOG_T = (-5.0, 5.0)
"""Where the logarithm of a temperature is looked for."""
_KEY = 20240608
_AT_ONCE, _MANY, _FEW = 8_000_000, 1_000_000, 200


def softmax(logits: Floats, *, temperature: float = 1.0) -> Floats:
    """Probabilities (N, K) of logits (N, K) divided by a temperature; a row that is not finite stays NaN."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.where(np.isfinite(scaled).all(axis=1, keepdims=True), scaled, np.nan)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def outcomes(probabilities: Floats, labels: NDArray[np.int64]) -> pd.DataFrame:
    """Per sample: ``score`` (1 where the label's class is strictly the likeliest), ``confidence``, ``brier``, ``nll``.

    Args:
        probabilities: (N, K) in [0, 1]; a row with NaN counts as fully confident and wrong.
        labels: (N,) in 0..K-1.

    Raises:
        DataError: Shapes that do not match, or a label that is no class.
    """
    p, y = _checked(probabilities, labels)
    own = p[np.arange(len(y)), y]
    others = np.where(np.arange(p.shape[1]) == y[:, None], -1.0, p).max(axis=1)
    hot = np.arange(p.shape[1]) == y[:, None]
    return pd.DataFrame(
        {
            "score": (own > others).astype(np.float64),
            "confidence": p.max(axis=1),
            "brier": np.square(p - hot).sum(axis=1),
            "nll": -np.log(np.maximum(own, SMALLEST)),
        }
    )


def _checked(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Both as arrays; rows that are not finite become certain of a class that is not the label."""
    p, y = np.array(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.shape[1] < 2:
        raise DataError(must("probabilities", f"of shape ({len(y)}, 2 or more classes)", p.shape, "give a row per label"))
    if len(y) and not (y.min() >= 0 and y.max() < p.shape[1]):
        raise DataError(must("labels", f"in 0..{p.shape[1] - 1}", (int(y.min()), int(y.max())), "count classes from 0"))
    bad = ~np.isfinite(p).all(axis=1)
    p[bad] = np.arange(p.shape[1]) == (y[bad, None] + 1) % p.shape[1]
    return p, y


def usable(confidence: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Both as arrays (N,); where either is not a number in [0, 1], the sample is fully confident and wrong."""
    c, s = np.array(confidence, dtype=np.float64), np.array(score, dtype=np.float64)
    if c.shape != s.shape or c.ndim != 1:
        raise DataError(must("confidence and score", "two vectors of one length", (c.shape, s.shape), "align by sample"))
    bad = ~((c >= 0) & (c <= 1 + 1e-9) & (s >= 0) & (s <= 1))
    c[bad], s[bad] = 1.0, 0.0
    return c, s


def equal_width(values: Floats, *, bins: int = BINS) -> NDArray[np.int64]:
    """Bin (0..bins-1) of values in [0, 1], bins being (b/bins, (b+1)/bins] and 0 in the first."""
    return np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)


def equal_mass(values: Floats, *, bins: int = BINS) -> NDArray[np.int64]:
    """Bin (0..bins-1) of values such that each holds as many; equal values always share one, by their middle rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2)[place]
    return np.clip((middle * bins / max(len(values), 1)).astype(np.int64), 0, bins - 1)


def binned(bins_of: NDArray[np.int64], values: Floats, weights: Floats) -> Floats:
    """Sum of values (N,) by weights (N, R) in every bin, (BINS, R)."""
    spread = np.zeros((len(values), BINS))
    spread[np.arange(len(values)), bins_of] = values
    return weighted.totals(spread, weights)


def by_chance(variances: Floats, *, stream: int = 0) -> Floats:
    """What the gaps (sums over a bin) of a perfectly calibrated model look like, (cells, R): normal, of these variances.

    Source: Bröcker & Smith, Weather and Forecasting 2007 (consistency resampling), in its normal limit.
    """
    words = np.random.Philox(key=_KEY + stream).random_raw(len(variances) * stats.REPLICATES) >> np.uint64(11)
    normal = special.ndtri((words.astype(np.float64) + 0.5) * 2.0**-53).reshape(len(variances), -1)
    found: Floats = np.abs(normal) * np.sqrt(np.maximum(variances, 0))[:, None]
    return found


def _unbiased_end(found: Estimate, chance: Floats) -> Estimate:
    """The estimate with a lower end that allows for its bias: absolute gaps of a finite sample are never 0.

    Args:
        found: An error with the percentiles of its bootstrap, which repeats the bias.
        chance: The same error of samples of a perfectly calibrated model, (R,).

    Returns:
        The lower end is 0 where such samples show as much in 2.5 % of cases, else the lower of the percentile's and of the
        reflected upper one.
    """
    if found.n < 2:
        return found
    possible = found.value <= float(np.quantile(chance, (1 + stats.LEVEL) / 2))
    low = 0.0 if possible else max(0.0, min(found.low, 2 * found.value - found.high))
    return Estimate(found.value, low, found.high, found.n)


def _by_bin(bins_of: NDArray[np.int64], values: Floats) -> Floats:
    """Sums of values (N,) per bin, (BINS,)."""
    return binned(bins_of, values, np.ones((len(values), 1)))[:, 0]


def _mean_gap(frame: pd.DataFrame, *, mass: bool) -> Estimate:
    rows = split(frame, "test")
    confidence, score = usable(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    bins_of = equal_mass(confidence) if mass else equal_width(confidence)

    def error(weights: Floats) -> Floats:
        gaps: Floats = np.abs(binned(bins_of, score - confidence, weights)).sum(axis=0) / len(rows)
        return gaps

    variances = _by_bin(bins_of, confidence * (1 - confidence))
    return _unbiased_end(weighted.estimate(len(rows), error), by_chance(variances).sum(axis=0) / max(len(rows), 1))


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def ece(frame: pd.DataFrame) -> Estimate:
    """Expected calibration error in [0, 1]: 15 equal-width bins on the confidence, bootstrap interval over samples.

    The estimate is biased upward for few samples, and so is its bootstrap; the lower end allows for that, and is 0 where a
    perfectly calibrated model could show as much.

    Source: Guo et al., ICML 2017, equation 3.
    """
    return _mean_gap(frame, mass=False)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def adaptive_ece(frame: pd.DataFrame) -> Estimate:
    """Calibration error in [0, 1] over 15 bins that hold equally many samples, weighted by their number.

    Equal confidences share a bin. The bootstrap keeps the bins of the whole sample.

    Source: Nixon et al., CVPR workshops 2019, section 3.2 (adaptive ranges, on the top class).
    """
    return _mean_gap(frame, mass=True)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def mce(frame: pd.DataFrame) -> Estimate:
    """Largest gap between accuracy and confidence over the non-empty of 15 equal-width bins, in [0, 1].

    A bin of a few samples decides it easily: read it beside the counts of the reliability diagram.

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 5.
    """
    rows = split(frame, "test")
    confidence, score = usable(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    bins_of = equal_width(confidence)

    def error(weights: Floats) -> Floats:
        gaps = np.abs(binned(bins_of, score - confidence, weights))
        counts = binned(bins_of, np.ones(len(rows)), weights)
        worst: Floats = (gaps / np.maximum(counts, 1)).max(axis=0)
        return worst

    variances = _by_bin(bins_of, confidence * (1 - confidence))
    sizes = np.maximum(np.bincount(bins_of, minlength=BINS), 1)
    return _unbiased_end(weighted.estimate(len(rows), error), (by_chance(variances) / sizes[:, None]).max(axis=0))


def _mean(frame: pd.DataFrame, column: str, *, worst: float) -> Estimate:
    """Mean of a column over the test samples; what is not a number counts as the worst."""
    values = split(frame, "test")[column].to_numpy(np.float64)
    values = np.where(np.isfinite(values), values, worst)
    return weighted.estimate(len(values), lambda weights: weighted.totals(values, weights) / len(values))


@facts(version=2, unit="score", higher_is_better=False, bounds=(0, 2), needs="clean", group="generalization")
def brier(frame: pd.DataFrame) -> Estimate:
    """Mean over test samples of the squared distance between probabilities and one-hot label, in [0, 2].

    Source: Brier, Monthly Weather Review 1950 (multi-class form).
    """
    return _mean(frame, "brier", worst=2.0)


@facts(version=1, unit="nat", higher_is_better=False, bounds=(0, None), needs="clean", group="generalization")
def nll(frame: pd.DataFrame) -> Estimate:
    """Mean negative log likelihood of the test labels, at least 0; probabilities are clipped at 1e-12 (so at most 27.6).

    Source: Guo et al., ICML 2017, section 2.
    """
    return _mean(frame, "nll", worst=-math.log(SMALLEST))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="calibration", group="generalization")
def classwise_ece(frame: pd.DataFrame) -> Estimate:
    """Mean over all classes of the error of that class's probability, in [0, 1], 15 equal-width bins each.

    Args:
        frame: Rows with ``label`` and ``logits`` (a list per row).

    Source: Kull et al., NeurIPS 2019, section 2 (classwise ECE); Nixon et al. 2019 call it static calibration error.
    """
    if frame.empty:
        return weighted.estimate(0, np.ravel)
    return classwise(softmax(stacked(frame)), frame["label"].to_numpy(np.int64))


def classwise(probabilities: Floats, labels: NDArray[np.int64]) -> Estimate:
    """Classwise ECE of probabilities (N, K) and labels (N,); above a million of them from 200 resamples instead of 2000."""
    p, y = _checked(probabilities, labels)
    count, classes = p.shape
    step = max(1, _AT_ONCE // max(count * BINS, 1))
    parts = [np.arange(start, min(start + step, classes)) for start in range(0, classes, step)]

    def error(weights: Floats) -> Floats:
        sums = (np.abs(weighted.totals(_cells(p[:, k], (y[:, None] == k) - p[:, k]), weights)).sum(axis=0) for k in parts)
        gaps: Floats = sum(sums, np.zeros(weights.shape[1])) / (classes * count)
        return gaps

    variances = [_cells(p[:, k], p[:, k] * (1 - p[:, k])).sum(axis=0) for k in parts] if count else [np.zeros(1)]
    chance = sum(by_chance(v, stream=i).sum(axis=0) for i, v in enumerate(variances)) / (classes * max(count, 1))
    replicates = stats.REPLICATES if count * classes <= _MANY else _FEW
    return _unbiased_end(weighted.estimate(count, error, replicates=replicates), chance)


def _cells(p: Floats, values: Floats) -> Floats:
    """Values (N, K) at the bin of each probability, (N, K BINS), else 0."""
    classes = p.shape[1]
    spread = np.zeros((len(p), classes * BINS))
    np.put_along_axis(spread, np.arange(classes) * BINS + equal_width(p), values, axis=1)
    return spread


def stacked(frame: pd.DataFrame) -> Floats:
    """The column ``logits`` as an array (N, K)."""
    return np.stack([np.asarray(row, dtype=np.float64) for row in frame["logits"]])


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature T > 0 with the least mean log loss of softmax(logits / T), looked for in exp(-5)..exp(5).

    The loss is convex in 1/T, so that its only minimum is found.

    Args:
        logits: (N, K), finite.
        labels: (N,) in 0..K-1.

    Raises:
        DataError: No samples, or logits that are not finite.

    Source: Guo et al., ICML 2017, section 4.2.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(z) or not np.isfinite(z).all():
        got = "none" if not len(z) else "NaN or infinity"
        raise DataError(
            must("the logits that a temperature is fitted on", "finite, one row or more", got, "repair the model")
        )
    excess = z - z[np.arange(len(y)), y][:, None]

    def loss(log_t: float) -> float:
        scaled = excess * math.exp(-log_t)
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))).mean())

    found = optimize.minimize_scalar(loss, bounds=LOG_T, method="bounded", options={"xatol": 1e-7})
    return math.exp(float(found.x))
