"""Selective prediction: what is still wrong when a model answers only where it is most confident.

Samples of equal confidence are accepted in random order, and what is reported is the mean over all such orders. A sample
whose confidence is not a number in [0, 1] counts as fully confident and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from robench.metrics import stats, weighted
from robench.metrics.calibration import usable
from robench.metrics.clean import split
from robench.metrics.stats import Floats
from robench.registry import facts
from robench.spec import Estimate

REPLICATES = 1000

Joined = Callable[[Floats, Floats, int], Estimate]
"""Value (1,), resamples (R,) and number of samples to an estimate."""


@dataclass(frozen=True, eq=False)
class Accepted:
    """Samples by falling confidence, in groups of equal confidence; (G, R) for R resamples."""

    ends: Floats
    """Samples accepted up to the end of a group."""
    counts: Floats
    """Samples of a group."""
    lost: Floats
    """Losses within a group."""
    lost_by: Floats
    """Losses up to the end of a group."""

    @property
    def mean(self) -> Floats:
        """Mean loss within a group; 0 where it is empty."""
        found: Floats = self.lost / np.maximum(self.counts, 1)
        return found


def accepted(keys: Floats, losses: Floats, weights: Floats) -> Accepted:
    """Samples accepted in the order of falling keys (N,), with losses (N,) and weights (N, R)."""
    order = np.argsort(-keys, kind="stable")
    falling, counts = keys[order], weights[order]
    lost = counts * losses[order][:, None]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    if len(starts) < len(keys):
        counts, lost = np.add.reduceat(counts, starts, axis=0), np.add.reduceat(lost, starts, axis=0)
    return Accepted(np.cumsum(counts, axis=0), counts, lost, np.cumsum(lost, axis=0))


Statistic = Callable[[Accepted], Floats]
"""Accepted samples to values (R,)."""


def _area(found: Accepted) -> Floats:
    """Mean over n = 1..N of the share of losses among the n first, (R,).

    Within a group the losses grow by its mean, so that its n-th risk is that mean plus something over n: harmonic sums.
    """
    total = int(found.ends[-1, 0])
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, total + 1))][found.ends.astype(np.int64)]
    rest = found.lost_by - found.ends * found.mean
    risks = found.lost.sum(axis=0) + (rest * np.diff(harmonic, axis=0, prepend=0.0)).sum(axis=0)
    area: Floats = risks / total
    return area


def _of(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """Confidences and losses of the test samples."""
    rows = split(frame, "test")
    confidence, score = usable(rows["confidence"].to_numpy(), rows["score"].to_numpy())
    return confidence, 1 - score


def _estimate(frame: pd.DataFrame, statistic: Statistic, *, joined: Joined) -> Estimate:
    """A statistic of the accepted samples, resampled once for all statistics of the same samples."""
    confidence, losses = _of(frame)
    if not len(losses):
        return stats.EMPTY
    exact = statistic(accepted(confidence, losses, np.ones((len(losses), 1))))
    drawn = [statistic(found) for found in _resamples(confidence, losses)]
    return joined(exact, np.concatenate(drawn), len(losses))


def _area_estimate(frame: pd.DataFrame, statistic: Statistic, *, random: Callable[[float], float]) -> Estimate:
    """An area with an interval on the scale of its logit.

    Where no resample differs (nothing is wrong, or all), it reaches what an order at random would give at the ends of the
    error rate's interval.

    Args:
        frame: Rows with ``score`` and ``confidence``.
        statistic: The area.
        random: The area of a random order, by error rate.
    """
    losses = _of(frame)[1]
    near = 1 / (4 * max(len(losses), 1) ** 2)

    def joined(exact: Floats, drawn: Floats, n: int) -> Estimate:
        found = weighted.logistic(exact, drawn, n, near=near)
        if n == 1 or np.ptp(drawn) > 0:
            return found
        ends = [random(share) for share in stats.share_bounds(float(losses.mean()), n)]
        return Estimate(found.value, min(found.value, *ends), max(found.value, *ends), n)

    return _estimate(frame, statistic, joined=joined)


def _resamples(confidence: Floats, losses: Floats) -> Iterator[Accepted]:
    """The samples in resamples, in parts; a single part is kept for the next statistic."""
    parts = weighted.parts(len(losses), REPLICATES)
    if len(parts) == 1:
        yield _kept(confidence.tobytes(), losses.tobytes())
        return
    for part in parts:
        yield accepted(confidence, losses, _drawn(len(losses), part))


@lru_cache(maxsize=1)
def _kept(confidence: bytes, losses: bytes) -> Accepted:
    keys, lost = np.frombuffer(confidence), np.frombuffer(losses)
    return accepted(keys, lost, _drawn(len(keys), slice(None)))


def _drawn(count: int, part: slice) -> Floats:
    return weighted.draws(count, REPLICATES)[:, part].astype(np.float64)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def aurc(frame: pd.DataFrame) -> Estimate:
    """Area under the risk-coverage curve in [0, 1]: the error of the n most confident samples, mean over all n.

    Source: Geifman et al., ICLR 2019, section 3.
    """
    return _area_estimate(frame, _area, random=lambda risk: risk)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def e_aurc(frame: pd.DataFrame) -> Estimate:
    """AURC less that of the best order of as many errors, in [0, 1]: 0 where every error is less confident than every hit.

    The best order's area is exact for n samples, not the limit err + (1 - err) ln(1 - err), which it approaches.

    Source: Geifman et al., ICLR 2019, section 3 (excess AURC).
    """
    return _area_estimate(frame, lambda found: np.maximum(_area(found) - _least_area(found), 0.0), random=_random_excess)


def _random_excess(risk: float) -> float:
    """Excess area of a random order of many samples."""
    return -(1 - risk) * math.log1p(-risk) if risk < 1 else 0.0


def _least_area(found: Accepted) -> Floats:
    """The area if all that is lost were lost on as few samples as can be, accepted last: losses of 0 and 1, (R,)."""
    total, lost = found.ends[-1], found.lost_by[-1]
    kept = total - lost
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, int(total[0]) + 1))]
    whole = np.floor(kept).astype(np.int64)
    # Sum over n > kept of (n - kept) / n.
    area: Floats = (total - whole - kept * (harmonic[-1] - harmonic[whole])) / total
    return area


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 0.5), needs="clean", group="generalization")
def augrc(frame: pd.DataFrame) -> Estimate:
    """Area under the generalised risk, in [0, 1/2]: errors among the accepted as a share of all samples, over coverage.

    By the trapezoid rule from coverage 0, so that it equals (1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2.

    Source: Traub et al., NeurIPS 2024, section 3.
    """

    def area(found: Accepted) -> Floats:
        middle: Floats = (found.counts * (found.lost_by - found.lost / 2)).sum(axis=0) / found.ends[-1] ** 2
        return middle

    return _area_estimate(frame, area, random=lambda risk: risk / 2)


def risk_at(frame: pd.DataFrame, coverage: float) -> Estimate:
    """Share of errors among the most confident part of the test samples, in [0, 1].

    Args:
        frame: Rows with ``score`` and ``confidence``.
        coverage: Part that is answered, in (0, 1]; of N samples ceil(coverage N).

    Returns:
        With the bootstrap's interval; where at most three of those samples are wrong, or right, no narrower than the
        modified Wilson interval.
    """
    asked = _asked(len(split(frame, "test")), coverage)
    return _estimate(frame, lambda found: _risk(found, asked), joined=partial(weighted.share, of=asked))


def _asked(count: int, coverage: float) -> int:
    return math.ceil(coverage * count - 1e-9)


def _risk(found: Accepted, asked: int) -> Floats:
    """The error of the first ``asked``, (R,): whole groups, and a part of the last one's mean."""
    last = (found.ends >= asked).argmax(axis=0)
    columns = np.arange(found.ends.shape[1])
    beyond = (found.ends[last, columns] - asked) * found.lost[last, columns] / np.maximum(found.counts[last, columns], 1)
    risks: Floats = (found.lost_by[last, columns] - beyond) / asked
    return risks


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def risk_at_80_coverage(frame: pd.DataFrame) -> Estimate:
    """Share of errors among the 80 % most confident test samples, in [0, 1].

    Source: El-Yaniv & Wiener, JMLR 2010, section 2 (risk at coverage).
    """
    return risk_at(frame, 0.8)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def risk_at_90_coverage(frame: pd.DataFrame) -> Estimate:
    """Share of errors among the 90 % most confident test samples, in [0, 1].

    Source: El-Yaniv & Wiener, JMLR 2010, section 2 (risk at coverage).
    """
    return risk_at(frame, 0.9)
