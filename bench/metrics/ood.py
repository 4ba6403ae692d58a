"""Telling images of other kinds from those of the data set, by a score that is higher on the data set's own (ID).

Rows of the ``ood`` frame that one detector gave to the ID images and to one source of others (OOD). A score that is not a
number counts against the detector: below every other on an ID image, above every other on an OOD image.

Every interval resamples ID and OOD images apart; n is the smaller of their numbers. No resample trains a detector again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robench.metrics import stats, weighted
from robench.metrics.rows import Metric, each, row
from robench.metrics.stats import Floats
from robench.registry import facts
from robench.spec import Estimate

REPLICATES = 1000
TPR = 0.95
"""Share of ID images that are let through where the false positive rate is read."""

Joined = Callable[[Floats, Floats, int], Estimate]
"""Value (1,), resamples (R,) and number of images to an estimate."""


@dataclass(frozen=True, eq=False)
class Counted:
    """ID and OOD images by falling score, (G, R) for G different scores in R resamples."""

    inside: Floats
    """ID images at a score."""
    outside: Floats
    """OOD images at a score."""
    inside_to: Floats
    """ID images at a score or above."""
    outside_to: Floats
    """OOD images at a score or above."""


def ranked(inside: Floats, outside: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Scores of ID and OOD images as ranks 0..G-1, 0 being the highest score, and G; equal scores share a rank.

    NaN is the lowest rank on an ID image and the highest on an OOD image.
    """
    both = np.r_[np.asarray(inside, np.float64), np.asarray(outside, np.float64)]
    known = ~np.isnan(both)
    _, place = np.unique(-both[known], return_inverse=True)
    ranks = np.zeros(len(both), np.int64)
    ranks[known] = place + 1
    ranks[: len(inside)][~known[: len(inside)]] = place.max(initial=-1) + 2
    return ranks[: len(inside)], ranks[len(inside) :], int(place.max(initial=-1)) + 3


def _areas(found: Counted) -> Floats:
    """Chance that an ID image scores above an OOD image, ties counting half."""
    wins = np.einsum("gr,gr->r", found.outside, found.inside_to - found.inside / 2)
    areas: Floats = wins / (found.inside_to[-1] * found.outside_to[-1])
    return areas


def _precision(positive: Floats, positive_to: Floats, negative_to: Floats) -> Floats:
    """Average precision: the sum over all thresholds of precision times the gain in recall."""
    shares = positive_to / np.maximum(positive_to + negative_to, 1)
    found: Floats = np.einsum("gr,gr->r", positive, shares) / positive.sum(axis=0)
    return found


def _precision_in(found: Counted) -> Floats:
    return _precision(found.inside, found.inside_to, found.outside_to)


def _precision_out(found: Counted) -> Floats:
    below = (side[-1] - side + own for side, own in ((found.outside_to, found.outside), (found.inside_to, found.inside)))
    return _precision(found.outside, *below)


def _let_through(found: Counted) -> Floats:
    """Share of OOD images at or above the highest threshold that lets 95 % of the ID images through."""
    place = (found.inside_to >= TPR * found.inside_to[-1] - 1e-9).argmax(axis=0)
    shares: Floats = found.outside_to[place, np.arange(len(place))] / found.outside_to[-1]
    return shares


def estimated(
    inside: Floats, outside: Floats, statistic: Callable[[Counted], Floats], *, joined: Joined = weighted.joined
) -> Estimate:
    """A statistic of ID and OOD scores with a stratified bootstrap interval; empty where either has no image.

    Args:
        inside: Scores of ID images (N,).
        outside: Scores of OOD images (M,).
        statistic: What is estimated.
        joined: Makes the interval of the value and its resamples; by default their percentiles.
    """
    count = min(len(inside), len(outside))
    if count == 0:
        return stats.EMPTY
    ones = [np.ones((len(side), 1)) for side in (inside, outside)]
    drawn = [statistic(found) for found in _resamples(inside, outside)]
    return joined(statistic(_counted(inside, outside, ones)), np.concatenate(drawn), count)


def _resamples(inside: Floats, outside: Floats) -> Iterator[Counted]:
    """Images at each score in resamples, in parts; a single part is kept for the next statistic."""
    parts = weighted.parts(len(inside) + len(outside), REPLICATES)
    if len(parts) == 1:
        yield _kept(inside.tobytes(), outside.tobytes())
        return
    for part in parts:
        yield _counted(inside, outside, _drawn(inside, outside, part))


@lru_cache(maxsize=1)
def _kept(inside: bytes, outside: bytes) -> Counted:
    sides = np.frombuffer(inside), np.frombuffer(outside)
    return _counted(*sides, _drawn(*sides, slice(None)))


def _drawn(inside: Floats, outside: Floats, part: slice) -> list[Any]:
    """Weights of both sides; sums of whole numbers are exact in single precision too, and half as dear."""
    return [
        weighted.draws(len(side), REPLICATES, stream)[:, part].astype(np.float32)
        for stream, side in enumerate((inside, outside))
    ]


def _counted(inside: Floats, outside: Floats, weights: Sequence[Any]) -> Counted:
    first, second, groups = ranked(inside, outside)
    own, other = _summed(weights[0], first, groups), _summed(weights[1], second, groups)
    return Counted(own, other, np.cumsum(own, axis=0), np.cumsum(other, axis=0))


def _summed(weights: Floats, ranks: NDArray[np.int64], groups: int) -> Floats:
    """Weights (N, R) added up by rank, (groups, R)."""
    order = np.argsort(ranks, kind="stable")
    present, starts = np.unique(ranks[order], return_index=True)
    ordered = weights[order]
    found = np.zeros((groups, weights.shape[1]), weights.dtype)
    found[present] = ordered if len(present) == len(ranks) else np.add.reduceat(ordered, starts, axis=0)
    return found


def _scores(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    own = frame["is_id"].to_numpy(bool)
    scores = frame["score"].to_numpy(np.float64)
    return scores[own], scores[~own]


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="ood", group="robustness")
def auroc(frame: pd.DataFrame) -> Estimate:
    """Chance that an ID image scores above an OOD image (ties half), in [0, 1]: the area under the ROC curve; .5 is chance.

    Source: Mann & Whitney, Annals of Mathematical Statistics 1947.
    """
    return _area(frame, _areas)


def _area(frame: pd.DataFrame, statistic: Callable[[Counted], Floats]) -> Estimate:
    """An area under a curve with an interval on the scale of its logit.

    Where ID and OOD images are told apart without any error no resample differs. So an area that cannot be told from 1 (or
    0) has at least the interval that Newcombe gives a perfect ROC area.

    Source: Newcombe, Statistics in Medicine 2006 (25:559), method 5.
    """
    inside, outside = _scores(frame)
    smallest = 1 / (4 * max(len(inside) * len(outside), 1))
    found = estimated(inside, outside, statistic, joined=partial(weighted.logistic, near=smallest))
    if math.isnan(found.low):
        return found
    width = _newcombe_bound(len(inside), len(outside))
    low = min(found.low, 1 - width) if found.value >= 1 - width else found.low
    high = max(found.high, width) if found.value <= width else found.high
    return Estimate(found.value, low, high, found.n)


def _newcombe_bound(first: int, second: int) -> float:
    """Largest distance d from a perfect area at which a perfect one is still within z standard errors of 1 - d."""
    z, middle = stats.z_value(), (first + second) / 2 - 1
    low, high = 0.0, 0.5
    for _ in range(60):
        d = (low + high) / 2
        area = 1 - d
        variance = area * d * (1 + middle * (d / (2 - area) + area / (1 + area))) / (first * second)
        low, high = (d, high) if d <= z * math.sqrt(variance) else (low, d)
    return high


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="ood", group="robustness")
def aupr_in(frame: pd.DataFrame) -> Estimate:
    """Average precision with ID images as the positives, in [0, 1]; chance is the share of ID images.

    Source: Davis & Goadrich, ICML 2006 (no linear interpolation); Hendrycks & Gimpel, ICLR 2017, section 2.
    """
    return _area(frame, _precision_in)


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="ood", group="robustness")
def aupr_out(frame: pd.DataFrame) -> Estimate:
    """Average precision with OOD images as the positives (lowest scores first), in [0, 1]; chance is their share.

    Source: as ``aupr_in``.
    """
    return _area(frame, _precision_out)


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="ood", group="robustness")
def fpr_at_95_tpr_id_positive(frame: pd.DataFrame) -> Estimate:
    """Share of OOD images that pass at the highest threshold that lets 95 % of the ID images pass, in [0, 1]; chance is .95.

    ID images are the positives here; OpenOOD's code has them the other way round, and its numbers are others. The
    interval is the bootstrap's; where at most three OOD images pass, or all but three, no narrower than the modified Wilson
    interval, since a share of 0 has no resample but 0.

    Source: Liang et al., ICLR 2018, section 4.2 (FPR at 95 % TPR).
    """
    inside, outside = _scores(frame)
    return estimated(inside, outside, _let_through, joined=partial(weighted.share, of=len(outside)))


_METRICS: dict[str, Metric] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr_at_95_tpr_id_positive": fpr_at_95_tpr_id_positive,
}


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Every detector against every source: ``attack`` is the detector, ``threat`` the source.

    A detector that does not apply has one line, ``auroc`` without a value and with ``status`` ``skipped``.
    """
    needed = [name for name in ("cell", "sample", "is_id", "score") if name in rows]
    for detector, same in rows.groupby("detector", sort=True):
        inside = same["is_id"].to_numpy(bool)
        # Adversarial images have a cell of their own, which holds the scores of the same ID images again.
        own = same.loc[inside, needed].drop_duplicates("sample").sort_values("sample", kind="stable")
        for source, others in same[~inside].groupby("source", sort=True):
            told = {"attack": detector, "threat": source}
            skipped = (others["status"] == "skipped").to_numpy(bool)
            if skipped.all():
                reason = "; ".join(sorted(set(others["error"])))
                yield row("auroc", stats.EMPTY, others, status="skipped", validity=f"skipped: {reason}", **told)
            else:
                known = others.loc[~skipped, needed].sort_values("sample", kind="stable")
                yield from each(_METRICS, pd.concat([own, known]), **told)
