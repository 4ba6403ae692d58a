"""Calibration: whether a model is right as often as it says. Arrays in; frames with ``score`` and ``confidence`` too.

A sample whose output is not finite counts as the worst there is: fully confident, and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
_HALVINGS = 14
_TINY = 1e-300


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


@dataclass(frozen=True, eq=False)
class Gaps:
    """Score minus confidence, summed over the samples of a cell as a share of all samples; (B,) each."""

    found: Floats
    """The sums."""
    variance: Floats
    """Their sampling variance, from the sample."""
    chance: Floats
    """Their variance if the model were right as often as it says."""


def gaps(
    bins_of: NDArray[np.int64], score: Floats, confidence: Floats, *, n: int, cells: int = BINS, fixed: bool = False
) -> Gaps:
    """Gaps of scores and confidences (M,) in the cells 0..cells-1, as shares of n samples.

    ``fixed``: the cells hold as many samples in every sample of the population.
    """
    off = score - confidence
    counts, sums, squares, chance = (
        np.bincount(bins_of, _whole(values), cells)
        for values in (off * 0 + 1, off, off * off, confidence * (1 - confidence))
    )
    centred = squares - sums**2 / (np.maximum(counts, 1) if fixed else n)
    lone = fixed & (counts < 2)
    freedom = counts / np.maximum(counts - 1, 1) if fixed else n / max(n - 1, 1)
    variance = np.where(lone, squares, np.maximum(centred, 0.0) * freedom)
    return Gaps(sums / n, variance / n**2, np.maximum(chance, 0.0) / n**2)


def _whole(values: Floats) -> Floats:
    """Values as multiples of 2^-30: their sums do not depend on the order of the samples."""
    found: Floats = np.round(values * 2.0**30) * 2.0**-30
    return found


def total(of: Gaps, *, reach: float, n: int) -> Estimate:
    """The sum of absolute gaps with an interval for that of the population, which a sample's exceeds on average.

    The lower end is the smallest error of populations that are possible: those in whose samples an error as large is not
    rarer than the upper end leaves of 5 %. Their gaps are those that were found, less what is noise, times a number; at 0
    they are perfectly calibrated. The upper end makes no allowance for the bias, which is never downward.

    Args:
        of: What was found.
        reach: Distance of the upper end: standard errors of the sum with the signs that the gaps have.
        n: Number of samples; a single one has no interval.

    Source: Carpenter, JRSS B 1999 (61:159; intervals by inverting simulated tests); Roelofs et al., AISTATS 2022 (bias).
    """
    value = float(np.abs(of.found).sum())
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    normal, rare = _normal(len(of.found)), 1 - stats.LEVEL
    real = of.found * np.maximum(0.0, 1 - of.variance / np.maximum(of.found**2, _TINY))
    real = real if np.abs(real).sum() > 0 else of.found

    def too_small(error: float) -> bool:
        known = error / value
        spread = np.sqrt(known * of.variance + (1 - known) * of.chance)
        gaps_of = (error / np.abs(real).sum() * real)[:, None] + spread[:, None] * normal
        errors = np.abs(gaps_of).sum(axis=0)
        missed_above = min(rare / 2, float((errors < error - reach).mean()))
        return float((errors >= value).mean()) < rare - missed_above

    low = _last(too_small, value) if value > 0 and too_small(0.0) else 0.0
    return Estimate(value, low, min(value + reach, 1.0), n)


def _last(true: Callable[[float], bool], high: float) -> float:
    """Where what is true at 0 ends to be, sought up to ``high``."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if true(middle) else (low, middle)
    return low


def cautious(value: float, *, noise: Floats, chance: Floats, high: float, n: int) -> Estimate:
    """An error with an interval for that of the population which holds it in about 95 % of samples or more.

    The error of a sample is at most that of the population and of the noise: so it less what noise reaches in 2.5 % of
    samples is the lower end, and 0 where a perfectly calibrated model shows as much in 2.5 %.

    Args:
        value: The error that was found.
        noise: Errors of the noise alone, (R,).
        chance: Errors of samples of a perfectly calibrated model, (R,).
        high: Upper end.
        n: Number of samples; a single one has no interval.
    """
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    by_noise, by_chance = (float(np.quantile(errors, (1 + stats.LEVEL) / 2)) for errors in (noise, chance))
    low = 0.0 if value <= by_chance else max(0.0, value - max(by_noise, by_chance))
    return Estimate(value, low, min(max(high, value), 1.0), n)


@lru_cache(maxsize=4)
def _normal(cells: int) -> Floats:
    """Standard normal numbers, (cells, R)."""
    words = np.random.Philox(key=_KEY).random_raw(cells * stats.REPLICATES) >> np.uint64(11)
    found: Floats = special.ndtri((words.astype(np.float64) + 0.5) * 2.0**-53).reshape(cells, -1)
    found.setflags(write=False)
    return found


def _mean_gap(frame: pd.DataFrame, *, mass: bool) -> Estimate:
    rows = split(frame, "test")
    if rows.empty:
        return stats.EMPTY
    confidence, score = usable(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    bins_of = equal_mass(confidence) if mass else equal_width(confidence)
    found = gaps(bins_of, score, confidence, n=len(rows), fixed=mass)
    return total(found, reach=_reach(np.sign(found.found)[bins_of] * (score - confidence)), n=len(rows))


def _reach(parts: Floats) -> float:
    """How far above the mean of (N,) numbers an interval reaches."""
    n = len(parts)
    return stats.z_value(stats.LEVEL) * float(np.sort(parts).std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0


@facts(version=3, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def ece(frame: pd.DataFrame) -> Estimate:
    """Expected calibration error in [0, 1]: 15 equal-width bins on the confidence.

    The estimate is biased upward for few samples. The interval is not one for what such samples show, but for the binned
    error of the population (see ``total``): it lies lower than the estimate, and reaches 0 where a perfectly calibrated
    model could show as much.

    Source: Guo et al., ICML 2017, equation 3.
    """
    return _mean_gap(frame, mass=False)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def adaptive_ece(frame: pd.DataFrame) -> Estimate:
    """Calibration error in [0, 1] over 15 bins that hold equally many samples, weighted by their number.

    Equal confidences share a bin. The interval is for the population's error, as that of ``ece``.

    Source: Nixon et al., CVPR workshops 2019, section 3.2 (adaptive ranges, on the top class).
    """
    return _mean_gap(frame, mass=True)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def mce(frame: pd.DataFrame) -> Estimate:
    """Largest gap between accuracy and confidence over the non-empty of 15 equal-width bins, in [0, 1].

    A bin of a few samples decides it easily: read it beside the counts of the reliability diagram. The interval is for the
    population's error in the bins that are not empty, and wider than it need be (see ``cautious``).

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 5.
    """
    rows = split(frame, "test")
    if rows.empty:
        return stats.EMPTY
    confidence, score = usable(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    bins_of = equal_width(confidence)
    found, share = (
        gaps(bins_of, score, confidence, n=len(rows)),
        np.maximum(np.bincount(bins_of, minlength=BINS), 1) / len(rows),
    )
    noise, chance = (np.abs(_normal(len(share))) * (np.sqrt(v) / share)[:, None] for v in (found.variance, found.chance))
    worst = np.abs(found.found) / share
    high = float((worst + stats.z_value(stats.LEVEL) * np.sqrt(found.variance) / share).max())
    told = {"noise": noise.max(axis=0), "chance": chance.max(axis=0), "high": high}
    return cautious(float(worst.max()), n=len(rows), **told)


def _mean(frame: pd.DataFrame, column: str, *, worst: float) -> Estimate:
    """Mean of a column over the test samples; what is not a number counts as the worst; nothing without it."""
    if column not in frame:
        return stats.EMPTY
    values = split(frame, "test")[column].to_numpy(np.float64)
    found = stats.skewed_mean(np.where(np.isfinite(values), values, worst), level=stats.LEVEL)
    return Estimate(found.value, max(found.low, 0.0), min(found.high, worst), found.n) if found.n > 1 else found


@facts(version=3, unit="score", higher_is_better=False, bounds=(0, 2), needs="clean", group="generalization")
def brier(frame: pd.DataFrame) -> Estimate:
    """Mean over test samples of the squared distance between probabilities and one-hot label, in [0, 2].

    Source: Brier, Monthly Weather Review 1950 (multi-class form).
    """
    return _mean(frame, "brier", worst=2.0)


@facts(version=2, unit="nat", higher_is_better=False, bounds=(0, None), needs="clean", group="generalization")
def nll(frame: pd.DataFrame) -> Estimate:
    """Mean negative log likelihood of the test labels, at least 0; probabilities are clipped at 1e-12 (so at most 27.6).

    Source: Guo et al., ICML 2017, section 2.
    """
    return _mean(frame, "nll", worst=-math.log(SMALLEST))


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="calibration", group="generalization")
def classwise_ece(frame: pd.DataFrame) -> Estimate:
    """Mean over all classes of the error of that class's probability, in [0, 1], 15 equal-width bins each.

    Args:
        frame: Rows with ``label`` and ``logits`` (a list per row).

    Source: Kull et al., NeurIPS 2019, section 2 (classwise ECE); Nixon et al. 2019 call it static calibration error.
    """
    if frame.empty:
        return stats.EMPTY
    return classwise(softmax(stacked(frame)), frame["label"].to_numpy(np.int64))


def classwise(probabilities: Floats, labels: NDArray[np.int64]) -> Estimate:
    """Classwise ECE of probabilities (N, K) and labels (N,); above a million of them from 200 resamples instead of 2000.

    Its interval is for the population's error, and wider than it need be (see ``cautious``).
    """
    p, y = _checked(probabilities, labels)
    count, classes = p.shape
    if not count:
        return stats.EMPTY
    replicates = stats.REPLICATES if count * classes <= _MANY else _FEW
    step = max(1, _AT_ONCE // (count * BINS))
    parts = [
        _of_classes(p[:, k : k + step], y[:, None] == np.arange(classes)[k : k + step], replicates)
        for k in range(0, classes, step)
    ]
    value, signed, noise, chance = (sum(each, 0.0 * each[0]) / classes for each in zip(*parts, strict=True))
    return cautious(float(value), noise=noise, chance=chance, high=float(value) + _reach(signed), n=count)


def _of_classes(p: Floats, hot: NDArray[np.bool_], replicates: int) -> tuple[Any, Floats, Floats, Floats]:
    """Of some classes: the sum of all gaps, each sample's part in it (N,), and sums of noise and of chance (R,)."""
    count, classes = p.shape
    cells = equal_width(p) + BINS * np.arange(classes)
    of = gaps(cells.ravel(), hot.astype(np.float64).ravel(), p.ravel(), n=count, cells=BINS * classes)
    spread = np.zeros((count, BINS * classes))
    np.put_along_axis(spread, cells, hot - p, axis=1)
    drawn = weighted.weights(count, replicates=replicates)
    moved = np.concatenate([np.abs(weighted.totals(spread, part) / count - of.found[:, None]) for part in drawn], axis=1)
    ratio = np.sqrt(of.chance / np.maximum(of.variance, _TINY))
    signed = (np.sign(of.found)[cells] * (hot - p)).sum(axis=1)
    return np.abs(of.found).sum(), signed, moved.sum(axis=0), ratio @ moved


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
