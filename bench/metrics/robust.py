"""Metrics of the ``evasion`` frame: the worst case per sample over all attacks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robench.metrics import stats
from robench.registry import facts
from robench.spec import Estimate


def worst_case(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per sample (index ``sample``) over all attacks of the frame.

    Returns:
        ``score_clean`` and ``score`` (the lowest of clean and attacked, in [0, 1], before the penalty), ``unknown`` (an
        attack failed and nothing broke the sample) and ``robust`` (``score``, 0 where unknown).
    """
    clean, after = (frame[name].to_numpy(np.float64) for name in ("score_clean", "score_adv"))
    failed = (frame["status"] != "ok").to_numpy(bool) | np.isnan(after)
    samples, place = np.unique(frame["sample"].to_numpy(), return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(samples)))
    columns = (clean, np.fmin(clean, after))
    # fmin passes over missing scores; sorted runs are reduced at once, because a table asks for this thousands of times
    before, score = (np.fmin.reduceat(v[order], starts) if len(v) else v for v in columns)
    lost = np.logical_or.reduceat(failed[order], starts) if len(failed) else failed
    unknown = lost & (score > 0)
    found = {"score_clean": before, "score": score, "unknown": unknown, "robust": np.where(unknown, 0.0, score)}
    return pd.DataFrame(found, index=pd.Index(samples, name="sample"))


def left(worst: pd.DataFrame) -> Estimate:
    """Share of the samples of ``worst_case`` that are robust; the upper end counts unknown ones as if they had survived.

    So the value and the lower end hold whatever a failed attack would have found, and a model whose attacks failed has no
    narrow interval.
    """
    found = stats.rate(worst["robust"])
    return stats.widened(found, stats.rate(worst["score"])) if worst["unknown"].any() else found


@facts(version=3, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def robust_accuracy(frame: pd.DataFrame) -> Estimate:
    """Fraction of all samples that stay correct under every attack in the frame (worst case per sample).

    A clean mistake is not robust. A sample that nothing broke and on which an attack failed is unknown, and counts as
    not robust; the upper end of the interval counts it as robust.

    Args:
        frame: Rows of one threat with columns sample, attack, status, score_clean, score_adv.

    Returns:
        Value in [0, 1] with the modified Wilson interval over samples.

    Source: Croce & Hein, ICML 2020 (per-sample worst case); Brown, Cai & DasGupta, 2001 (interval).
    """
    return left(worst_case(frame))


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def robust_accuracy_without_unknown(frame: pd.DataFrame) -> Estimate:
    """Robust accuracy in [0, 1] over the samples that are not unknown; stands beside ``robust_accuracy``, never for it."""
    worst = worst_case(frame)
    return stats.rate(worst.loc[~worst["unknown"], "robust"])


@facts(version=3, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def robust_accuracy_8bit(frame: pd.DataFrame) -> Estimate:
    """Robust accuracy against 8-bit images: as ``robust_accuracy``, but only what still breaks after rounding counts.

    Args:
        frame: Rows as of ``robust_accuracy`` with the column broken_8bit.

    Returns:
        Value in [0, 1] with the modified Wilson interval over samples; never below ``robust_accuracy``. Empty without the
        column.
    """
    if "broken_8bit" not in frame:
        return stats.EMPTY
    broken = frame["broken_8bit"].fillna(False).astype(bool)
    kept = frame["score_clean"].where(frame["score_adv"].notna())
    return left(worst_case(frame.assign(score_adv=kept.where(~broken, 0.0))))


@facts(version=3, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def robust_accuracy_mean_draw(frame: pd.DataFrame) -> Estimate:
    """Robust accuracy of a randomised model as its users meet it: the mean over its draws, in [0, 1].

    ``robust_accuracy`` counts a sample as right where the commoner answer is.

    Args:
        frame: Rows as of ``robust_accuracy`` with the columns draws and score_mean.

    Returns:
        Value in [0, 1] with a bootstrap interval over samples. Empty where no draws were made.
    """
    return _over_draws(frame, "score_mean")


@facts(version=3, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def robust_accuracy_worst_draw(frame: pd.DataFrame) -> Estimate:
    """Robust accuracy against an adversary who may ask until the model draws badly: right in every draw, in [0, 1].

    Args:
        frame: Rows as of ``robust_accuracy`` with the columns draws and score_worst.

    Returns:
        Value in [0, 1] with the modified Wilson interval over samples; the more draws, the lower. Empty where no draws
        were made.
    """
    return _over_draws(frame, "score_worst")


def _over_draws(frame: pd.DataFrame, column: str) -> Estimate:
    """Worst case of a column over the attacks whose images were judged by draws."""
    if column not in frame or not frame["draws"].gt(0).any():
        return stats.EMPTY
    drawn = frame[frame["draws"] > 0]
    return left(worst_case(drawn.assign(score_clean=1.0, score_adv=drawn[column])))


@facts(version=1, unit="samples", higher_is_better=False, bounds=(0, None), needs="evasion", group="robustness")
def n_unknown(frame: pd.DataFrame) -> Estimate:
    """Number of samples that no attack broke and on which at least one attack failed."""
    worst = worst_case(frame)
    return Estimate.exact(float(worst["unknown"].sum()), n=len(worst))


def curve(frame: pd.DataFrame, *, column: str = "robust") -> pd.DataFrame:
    """Robustness in [0, 1] per sample (rows) and eps (columns, increasing, from 0 = clean to the largest finite).

    Samples that were not attacked at every eps are left out. ``column`` is one of ``worst_case``: with ``score`` unknown
    samples count as robust.
    """
    finite = frame[np.isfinite(frame["eps"]) & (frame["eps"] > 0)]
    columns = {float(eps): worst_case(rows)[column] for eps, rows in finite.groupby("eps")}
    if not columns:
        return pd.DataFrame()
    clean = finite.groupby("sample")["score_clean"].min()
    return pd.DataFrame({0.0: clean, **columns}).dropna()


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="evasion", group="robustness")
def security_curve_area(frame: pd.DataFrame) -> Estimate:
    """Area under robust accuracy against eps from 0 to the largest finite eps, divided by that eps: in [0, 1].

    Args:
        frame: Rows of one norm and several eps; eps = 0 is the clean score.

    Returns:
        Trapezoid area with a bootstrap interval over samples, whose upper end counts unknown samples as robust; empty when
        no eps is positive and finite.

    Source: Biggio & Roli, Pattern Recognition 2018, section 4 (security evaluation curve).
    """
    points, most = curve(frame), curve(frame, column="score")
    if points.empty:
        return stats.EMPTY
    eps = points.columns.to_numpy(np.float64)
    found = stats.area_interval(eps, points)
    return found if points.equals(most) else stats.widened(found, stats.area_interval(eps, most))
