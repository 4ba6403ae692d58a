"""How often the intervals of confidence and of detection hold the truth, in populations whose truths are known.

The truth of an error of calibration is that of the population in the same bins, not what samples of that size show. Every
check goes through ``check``, so that a planted 90 % interval is refused by the same lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from robench.metrics import ood, selective, stats
from robench.metrics.calibration import BINS, adaptive_ece, brier, classwise_ece, ece, mce, nll, outcomes
from robench.metrics.rows import Metric
from robench.spec import Estimate

LOW, HIGH = 0.93, 0.97
"""Least and greatest share of intervals that hold the truth, of intervals that claim 95 %."""
REPLICATIONS = 5000
N = 300


def check(shares: Mapping[str, float], *, low: float = LOW, high: float = HIGH) -> None:
    """Refuse shares of replications whose interval held the truth that are out of range."""
    outside = {name: share for name, share in shares.items() if not low <= share <= high}
    assert not outside, outside


def shares(truths: Mapping[Metric, float], frames: Iterator[pd.DataFrame]) -> dict[str, float]:
    """Share of frames on which each metric's interval holds its truth."""
    hits, count = dict.fromkeys(truths, 0), 0
    for frame in frames:
        count += 1
        for metric, truth in truths.items():
            hits[metric] += holds(metric(frame), truth)
    return {metric.__name__: hit / count for metric, hit in hits.items()}


def holds(found: Estimate, truth: float) -> bool:
    return found.low - 1e-12 <= truth <= found.high + 1e-12


# --- confidence -----------------------------------------------------------------------------------------------------

CLASSES = 10
LARGE = 1_000_000
"""Samples of the expected losses from which truths are computed; their error is under 2 % of an interval's half width."""


@dataclass(frozen=True)
class Confident:
    """Labels follow the softmax of normal logits; the model tells that of the logits times ``sharp``."""

    spread: float
    sharp: float = 1.0

    def drawn(self, n: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """True and told probabilities, (n, CLASSES) each."""
        logits = draws.normal(0, self.spread, (n, CLASSES))
        return softmax(logits, axis=1), softmax(self.sharp * logits, axis=1)

    def frames(self, count: int, *, n: int = N, seed: int = 1) -> Iterator[pd.DataFrame]:
        draws = np.random.default_rng(seed)
        for _ in range(count):
            own, told = self.drawn(n, draws)
            labels = (draws.uniform(size=(n, 1)) > np.cumsum(own, axis=1)).sum(axis=1).clip(0, CLASSES - 1)
            yield outcomes(told, labels).assign(label=labels, told=list(told))

    @cached_property
    def truths(self) -> dict[Metric, float]:
        """From expected instead of drawn outcomes; of a calibrated model the errors of calibration are 0 exactly."""
        return _truths(self.spread, self.sharp)


def of_classes(frame: pd.DataFrame) -> Estimate:
    """Classwise ECE of the probabilities that a model told."""
    return classwise_ece(frame.assign(logits=[np.log(np.maximum(p, 1e-300)) for p in frame["told"]]))


@lru_cache
def _truths(spread: float, sharp: float) -> dict[Metric, float]:
    draws = np.random.default_rng(20240611)
    logits = draws.normal(0, spread, (LARGE, CLASSES))
    own, told = softmax(logits, axis=1), softmax(sharp * logits, axis=1)
    sure = told.max(axis=1)
    right = own[np.arange(LARGE), told.argmax(axis=1)]
    order = np.argsort(sure)
    equal = np.empty(LARGE, np.int64)
    equal[order] = np.arange(LARGE) * BINS // LARGE
    by_class = [_gaps(told[:, k], own[:, k], _width(told[:, k]))[0].sum() for k in range(CLASSES)]
    widths, sizes = _gaps(sure, right, _width(sure))
    return {
        ece: float(widths.sum()),
        adaptive_ece: float(_gaps(sure, right, equal)[0].sum()),
        mce: float((widths / np.maximum(sizes, 1e-12)).max()),
        of_classes: float(np.mean(by_class)),
        brier: float((np.square(told).sum(1) - 2 * (told * own).sum(1) + 1).mean()),
        nll: float(-(own * log_softmax(sharp * logits, axis=1)).sum(axis=1).mean()),
        **_selective((1 - right)[order[::-1]]),
    }


def _width(values: np.ndarray) -> np.ndarray:
    return np.minimum((values * BINS).astype(np.int64), BINS - 1)


def _gaps(told: np.ndarray, expected: np.ndarray, bins_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute gaps and sizes of bins, as shares of all samples; rounding errors of a calibrated model are 0."""
    sums = np.bincount(bins_of, expected - told, BINS) / len(told)
    return np.where(np.abs(sums) < 1e-12, 0.0, np.abs(sums)), np.bincount(bins_of, minlength=BINS) / len(told)


def _selective(losses: np.ndarray) -> dict[Metric, float]:
    """Of expected losses by falling confidence."""
    n, error = len(losses), float(losses.mean())
    lost = np.cumsum(losses)
    area = float((lost / np.arange(1, n + 1)).mean())
    return {
        selective.aurc: area,
        selective.e_aurc: float(area - error - (1 - error) * np.log1p(-error)),
        selective.augrc: float(lost.mean() / n),
        selective.risk_at_80_coverage: float(losses[: 8 * n // 10].mean()),
        selective.risk_at_90_coverage: float(losses[: 9 * n // 10].mean()),
    }


# --- scores of known and of other images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detected:
    """Normal scores: of ID images with deviation 1, of OOD images around 0 with deviation ``spread``."""

    area: float
    spread: float = 1.0
    inside: int = N
    outside: int = N

    @property
    def shift(self) -> float:
        return float(norm.ppf(self.area) * np.hypot(1, self.spread))

    def frames(self, count: int, *, seed: int = 2) -> Iterator[pd.DataFrame]:
        draws = np.random.default_rng(seed)
        own = np.repeat([True, False], [self.inside, self.outside])
        for _ in range(count):
            scores = draws.normal(self.shift * own, np.where(own, 1.0, self.spread))
            yield pd.DataFrame({"score": scores, "is_id": own})

    @cached_property
    def truths(self) -> dict[Metric, float]:
        """Closed forms; the precisions by quadrature over the quantiles of the positives' scores."""
        levels = (np.arange(LARGE) + 0.5) / LARGE
        known, others = norm(self.shift, 1), norm(0, self.spread)
        return {
            ood.auroc: self.area,
            ood.fpr_at_95_tpr_id_positive: float(others.sf(known.ppf(1 - ood.TPR))),
            ood.aupr_in: self._precision(levels, others.sf(known.isf(levels)), self.inside / self.outside),
            ood.aupr_out: self._precision(levels, known.cdf(others.ppf(levels)), self.outside / self.inside),
        }

    @staticmethod
    def _precision(positive: np.ndarray, negative: np.ndarray, odds: float) -> float:
        return float((odds * positive / (odds * positive + negative)).mean())


# --- the checks -----------------------------------------------------------------------------------------------------

CAUTIOUS = (mce, of_classes)
"""Intervals that promise 95 % or more: only too few are refused."""
BINNED = (ece, adaptive_ece)
USUAL = (Confident(4.0), Confident(4.0, 2.0), Confident(10.0, 1.3))
"""Calibrated and 74 % right; as accurate and overconfident; 89 % right and somewhat overconfident."""
DETECTED = (Detected(0.7), Detected(0.9), Detected(0.98), Detected(0.9, 2.0))


def only(truths: Mapping[Metric, float], *, without: Sequence[Metric] = CAUTIOUS) -> dict[Metric, float]:
    return {metric: truth for metric, truth in truths.items() if metric not in without}


def named(population: object) -> str:
    return re.sub(r"[a-z]+=", "", str(population)).replace(" ", "")


@pytest.mark.slow
def test_the_truths_are_those_of_a_large_sample():
    """To a few standard errors of 40,000 samples; the closed form of average precision, of two samples of 100,000."""
    overconfident = Confident(4.0, 2.0)
    (frame,) = overconfident.frames(1, n=40_000)
    fast = only(overconfident.truths, without=(mce, of_classes, ece, adaptive_ece, brier, nll))
    for metric, truth in fast.items():
        exact = metric(frame.head(4000)).value
        assert exact == pytest.approx(truth, rel=0.12), metric.__name__
    assert frame["brier"].mean() == pytest.approx(overconfident.truths[brier], rel=0.03)
    assert frame["nll"].mean() == pytest.approx(overconfident.truths[nll], rel=0.03)
    detected = Detected(0.9, 2.0, 100_000, 100_000)
    (scores,) = detected.frames(1)
    inside, outside = (scores.loc[scores["is_id"] == own, "score"].to_numpy() for own in (True, False))
    counted = ood._counted(inside, outside, [np.ones((len(side), 1)) for side in (inside, outside)])
    statistics = {ood.auroc: ood._areas, ood.aupr_in: ood._precision_in, ood.aupr_out: ood._precision_out}
    for metric, statistic in statistics.items():
        assert float(statistic(counted)[0]) == pytest.approx(detected.truths[metric], abs=0.004)


def test_means_of_skewed_losses_cover_in_a_few_replications_and_a_planted_90_percent_interval_does_not():
    losses = np.random.default_rng(3).exponential(size=(1500, N))
    for level in (0.95, 0.9):
        share = np.mean([holds(stats.skewed_mean(values, level=level), 1.0) for values in losses])
        if level == 0.95:
            check({"skewed_mean": float(share)})
        else:
            with pytest.raises(AssertionError):
                check({"skewed_mean": float(share)})


@pytest.mark.slow
@pytest.mark.parametrize("population", USUAL, ids=named)
def test_intervals_of_confidence_cover_93_to_97_percent(population):
    check(shares(only(population.truths), population.frames(REPLICATIONS)))


@pytest.mark.slow
def test_errors_of_calibration_and_means_cover_as_much_at_a_thousand():
    population = USUAL[1]
    truths = {metric: population.truths[metric] for metric in (*BINNED, brier, nll)}
    check(shares(truths, population.frames(REPLICATIONS, n=1000)))


@pytest.mark.slow
def test_cautious_intervals_cover_93_percent_at_least_of_a_calibrated_model():
    population = USUAL[0]
    check(shares({metric: population.truths[metric] for metric in CAUTIOUS}, population.frames(REPLICATIONS)), high=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("population", DETECTED, ids=named)
def test_intervals_of_detection_cover_93_to_97_percent(population):
    check(shares(population.truths, population.frames(REPLICATIONS)))


@pytest.mark.slow
@pytest.mark.parametrize("population", [Confident(25.0), Detected(0.995)], ids=named)
def test_where_errors_are_few_intervals_cover_93_percent_at_least(population):
    """96 % right, or hardly an OOD image above an ID image: counts are so small that no interval can cover 95 % exactly."""
    check(shares(only(population.truths), population.frames(2000)), high=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("population", [USUAL[1], DETECTED[1]], ids=named)
def test_planted_90_percent_intervals_fail_the_same_check(population, monkeypatch):
    monkeypatch.setattr(stats, "LEVEL", 0.9)
    found = shares(only(population.truths), population.frames(REPLICATIONS))
    for name, share in found.items():
        with pytest.raises(AssertionError):
            check({name: share})
