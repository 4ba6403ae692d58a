"""How often an interval must hold the truth, and populations of confidences and of scores whose truths are known.

Every check of coverage by simulation goes through ``check``, so that a planted interval of 90 % is refused by the same lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from robench.metrics import ood, selective
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
        ece: widths.sum(),
        adaptive_ece: _gaps(sure, right, equal)[0].sum(),
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
        selective.e_aurc: area - (error + (1 - error) * np.log1p(-error)),
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
