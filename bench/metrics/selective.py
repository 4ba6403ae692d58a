"""Selective prediction: what is still wrong when a model answers only where it is most confident.

Samples of equal confidence are accepted in random order, and what is reported is the mean over all such orders. A sample
whose confidence is not a number in [0, 1] counts as fully confident and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from robench.metrics import weighted
from robench.metrics.calibration import usable
from robench.metrics.clean import split
from robench.metrics.stats import Floats
from robench.registry import facts
from robench.spec import Estimate


def accepted(confidence: Floats, score: Floats) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Losses (N,) by falling confidence, where each group of equal confidence begins (G,), and that order (N,)."""
    c, s = usable(confidence, score)
    order = np.argsort(-c, kind="stable")
    falling = c[order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]]) if len(c) else np.zeros(0, np.int64)
    return (1 - s)[order], starts, order


def _cumulated(losses: Floats, starts: np.ndarray, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Per group and resample: accepted samples up to its end, losses up to its end, and its own number; each (G, R)."""
    lost = weights * losses[:, None]
    if len(starts) < len(losses):
        weights, lost = np.add.reduceat(weights, starts, axis=0), np.add.reduceat(lost, starts, axis=0)
    return np.cumsum(weights, axis=0), np.cumsum(lost, axis=0), weights


def _areas(losses: Floats, starts: np.ndarray, weights: Floats) -> Floats:
    """Mean over n = 1..N of the share of losses among the n first, (R,).

    Within a group the losses grow by its mean, so that its n-th risk is that mean plus something over n: harmonic sums.
    """
    ends, lost, counts = _cumulated(losses, starts, weights)
    mean = np.diff(lost, axis=0, prepend=0.0) / np.maximum(counts, 1)
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, len(losses) + 1))][ends.astype(np.int64)]
    risks = mean * counts + (lost - ends * mean) * np.diff(harmonic, axis=0, prepend=0.0)
    found: Floats = risks.sum(axis=0) / len(losses)
    return found


def _least_areas(losses: Floats, weights: Floats) -> Floats:
    """The area if every sample came before all of greater loss."""
    order = np.argsort(losses, kind="stable")
    ranked = losses[order]
    return _areas(ranked, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]), weights[order])


def _estimate(frame: pd.DataFrame, statistic: Callable[[Floats, np.ndarray, Floats], Floats]) -> Estimate:
    rows = split(frame, "test")
    losses, starts, order = accepted(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    return weighted.estimate(len(rows), lambda weights: statistic(losses, starts, weights[order]))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def aurc(frame: pd.DataFrame) -> Estimate:
    """Area under the risk-coverage curve in [0, 1]: the error of the n most confident samples, mean over all n.

    Source: Geifman et al., ICLR 2019, section 3.
    """
    return _estimate(frame, _areas)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def e_aurc(frame: pd.DataFrame) -> Estimate:
    """AURC less that of the best order of the same errors, in [0, 1]: 0 where every error is less confident than every hit.

    The best order's area is exact for n samples, not the limit err + (1 - err) ln(1 - err), which it approaches.

    Source: Geifman et al., ICLR 2019, section 3 (excess AURC).
    """
    return _estimate(frame, lambda losses, starts, w: np.maximum(_areas(losses, starts, w) - _least_areas(losses, w), 0.0))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 0.5), needs="clean", group="generalization")
def augrc(frame: pd.DataFrame) -> Estimate:
    """Area under the generalised risk, in [0, 1/2]: errors among the accepted as a share of all samples, over coverage.

    By the trapezoid rule from coverage 0, so that it equals (1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2.

    Source: Traub et al., NeurIPS 2024, section 3.
    """

    def area(losses: Floats, starts: np.ndarray, weights: Floats) -> Floats:
        _, lost, counts = _cumulated(losses, starts, weights)
        middle = lost - np.diff(lost, axis=0, prepend=0.0) / 2
        found: Floats = (counts * middle).sum(axis=0) / len(losses) ** 2
        return found

    return _estimate(frame, area)


def risk_at(frame: pd.DataFrame, coverage: float) -> Estimate:
    """Share of errors among the most confident part of the test samples, in [0, 1].

    Args:
        frame: Rows with ``score`` and ``confidence``.
        coverage: Part that is answered, in (0, 1]; of N samples ceil(coverage N).
    """

    def risk(losses: Floats, starts: np.ndarray, weights: Floats) -> Floats:
        ends, lost, counts = _cumulated(losses, starts, weights)
        asked = math.ceil(coverage * len(losses) - 1e-9)
        part = np.clip(asked - (ends - counts), 0, counts) / np.maximum(counts, 1)
        found: Floats = (part * np.diff(lost, axis=0, prepend=0.0)).sum(axis=0) / asked
        return found

    return _estimate(frame, risk)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def risk_at_80_coverage(frame: pd.DataFrame) -> Estimate:
    """Share of errors among the 80 % most confident test samples, in [0, 1].

    Source: El-Yaniv & Wiener, JMLR 2010, section 2 (risk at coverage).
    """
    return risk_at(frame, 0.8)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def risk_at_90_coverage(frame: pd.DataFrame) -> Estimate:
    """Share of errors among the 90 % most confident test samples, in [0, 1].

    Source: El-Yaniv & Wiener, JMLR 2010, section 2 (risk at coverage).
    """
    return risk_at(frame, 0.9)
