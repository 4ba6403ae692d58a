"""Metrics of shifted test sets, of rotations and translations, and of what training images do not carry over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robench.errors import DataError, must
from robench.metrics import robust, stats
from robench.metrics.rows import each, row, same_model
from robench.metrics.validity import verdict
from robench.registry import facts
from robench.spec import Estimate

POPULATION = 20
"""Reference models that a line through (clean, shifted) accuracies needs at least."""
Line = tuple[float, float, int]
"""Slope and intercept on the logit scale, and the number of reference models."""


def _part(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["split"] == name]


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="shift", group="generalization")
def shifted_accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean score on the shifted test set, in [0, 1], with the modified Wilson interval; logits masked to its classes."""
    return stats.rate(_part(frame, "shifted")["score"])


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="shift", group="generalization")
def shift_gap(frame: pd.DataFrame) -> Estimate:
    """Accuracy on the clean test images of the shifted set's classes minus that on the shifted set, in [-1, 1].

    Both with logits masked to these classes; Newcombe's interval, as for two independent samples.
    """
    clean, shifted = _part(frame, "clean")["score"], _part(frame, "shifted")["score"]
    return stats.newcombe(round(float(clean.sum())), len(clean), round(float(shifted.sum())), len(shifted))


@facts(version=2, unit="rate", higher_is_better=True, bounds=(-1, 1), needs="shift", group="generalization")
def effective_robustness(frame: pd.DataFrame) -> Estimate:
    """Accuracy on the shifted set beyond what reference models of the same clean accuracy have, in [-1, 1].

    Args:
        frame: Rows of one shift with the columns slope, intercept and references (see ``reference_line``).

    Returns:
        Value with an interval over both sets of images (squared distances of modified Wilson bounds add, after the line);
        the line itself is taken as known. Empty without a reference population.

    Source: Taori et al., NeurIPS 2020, section 3.1; Zou & Donner, Statistics in Medicine 2008 (interval).
    """
    if "slope" not in frame or frame["slope"].isna().all():
        return stats.EMPTY
    first = frame.iloc[0]
    line = (float(first["slope"]), float(first["intercept"]), int(first["references"]))
    clean, shifted = stats.rate(_part(frame, "clean")["score"]), shifted_accuracy(frame)
    if min(clean.n, shifted.n) == 0:
        return stats.EMPTY
    expected, low, high = (expected_accuracy(line, p, clean.n) for p in (clean.value, clean.low, clean.high))
    low, high = min(low, high), max(low, high)
    value = shifted.value - expected
    below = math.hypot(shifted.value - shifted.low, high - expected)
    above = math.hypot(shifted.high - shifted.value, expected - low)
    return Estimate(value, value - below, value + above, min(clean.n, shifted.n))


def expected_accuracy(line: Line, clean: float, n: int) -> float:
    """Shifted accuracy on the line at a clean accuracy; 0 and 1 are taken as half a sample of n away from them."""
    inside = min(max(clean, 0.5 / n), 1 - 0.5 / n)
    return float(1 / (1 + np.exp(-(line[0] * _logit(inside) + line[1]))))


def _logit(p: Any) -> Any:
    return np.log(p) - np.log1p(-np.asarray(p, dtype=np.float64))


def reference_line(population: Sequence[tuple[float, float]]) -> Line:
    """Least-squares line of logit(shifted) on logit(clean) over reference models.

    Args:
        population: (clean, shifted) accuracies, each in (0, 1); at least 20, of different clean accuracy.

    Raises:
        DataError: Fewer models, an accuracy out of range, or the same clean accuracy in all.

    Source: Taori et al., NeurIPS 2020, section 3.1 and appendix (logit scale); Miller et al., ICML 2021.
    """
    points = np.asarray(population, dtype=np.float64).reshape(-1, 2)
    if len(points) < POPULATION:
        remedy = "add models that were trained in the standard way, or leave the reference out"
        raise DataError(must("a reference population", f"at least {POPULATION} models", len(points), remedy))
    if not ((points > 0) & (points < 1)).all():
        bad = next(p for p in points.tolist() if not all(0 < v < 1 for v in p))
        raise DataError(must("reference accuracies", "rates in (0, 1)", bad, "write 0.76, not 76"))
    x, y = _logit(points[:, 0]), _logit(points[:, 1])
    if not x.std() > 1e-9:
        raise DataError(must("reference models", "of different clean accuracy", float(points[0, 0]), "add other models"))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean()), len(points)


def relative_robustness(frame: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Accuracy on the shifted set minus that of another model on the same images, in [-1, 1], with a paired interval.

    Args:
        frame: Rows of one shift.
        baseline: Rows of the model that it is compared with, on the same shift.

    Returns:
        Empty where the two did not see the same images.

    Source: Taori et al., NeurIPS 2020, section 3.1.
    """
    pair = [_part(part, "shifted").groupby("sample")["score"].min() for part in (frame, baseline)]
    if pair[0].empty or not pair[0].index.equals(pair[1].index):
        return stats.EMPTY
    return stats.paired_difference(pair[0], pair[1])


def shift_lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Lines of every shifted set, its name in ``threat``; relative robustness names the other model in ``attack``."""
    metrics = {
        "shifted_accuracy": shifted_accuracy, "shift_gap": shift_gap, "effective_robustness": effective_robustness,
    }  # fmt: skip
    for name, part in rows.groupby("shift", sort=True):
        correct = int((_part(part, "clean")["score"] > 0).sum())
        yield from each(metrics, part, threat=str(name), n_clean_correct=correct)
        other, said = _baseline(part, frames["shift"])
        if other is not None:
            relative = relative_robustness(part, other)
            if relative.n:
                yield row("relative_robustness", relative, part, threat=str(name), attack=f"over {said}")


def _baseline(rows: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.DataFrame | None, str]:
    """The model as it is, for a changed one; else the suite's baseline model."""
    first = rows.iloc[0]
    name = str(first["model"] if first["condition"] else first.get("baseline", ""))
    same = frame[(frame["dataset"] == first["dataset"]) & (frame["shift"] == first["shift"]) & (frame["model"] == name)]
    same = same[same["condition"] == ""]
    if same.empty or (not first["condition"] and name == first["model"]):
        return None, ""
    return same[same["seed"] == same["seed"].min()], name


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="spatial", group="robustness")
def spatial_robust_accuracy(frame: pd.DataFrame) -> Estimate:
    """Share of all samples that stay right under every rotation and translation of the grid (modified Wilson interval).

    Source: Engstrom et al., ICML 2019, section 3 (grid search).
    """
    return stats.rate(frame["score_worst"])


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="spatial", group="robustness")
def spatial_mean_accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean score over samples and over the grid of rotations and translations, in [0, 1]; n counts samples.

    The interval resamples samples, because the transformed versions of one image are not independent.
    """
    return stats.rate(frame["score_mean"])


def spatial_lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Worst case and mean of each grid, which stands in ``threat`` with its reach, size and padding."""
    metrics = {"spatial_robust_accuracy": spatial_robust_accuracy, "spatial_mean_accuracy": spatial_mean_accuracy}
    for name, part in rows.groupby("grid", sort=True):
        yield from each(metrics, part, threat=str(name), n_clean_correct=int((part["score_clean"] > 0).sum()))


def robust_gap(train: pd.DataFrame, test: pd.DataFrame) -> Estimate:
    """Robust accuracy on training images minus that on test images, in [-1, 1], with Newcombe's interval.

    Both are per-sample worst cases over the attacks that both sets of images met; unknown samples are not robust, and
    the interval holds what they could make of the gap.

    Args:
        train: Evasion rows of one threat on training images.
        test: Evasion rows of the same model and threat on test images.

    Returns:
        Empty where no attack was run on both.

    Source: Rice, Wong & Kolter, ICML 2020 (robust overfitting), section 3.
    """
    both = set(train["attack"]) & set(test["attack"])
    if not both:
        return stats.EMPTY
    worst = [robust.worst_case(part[part["attack"].isin(both)]) for part in (train, test)]

    def gap(*columns: str) -> Estimate:
        counts = [round(float(part[column].sum())) for part, column in zip(worst, columns, strict=True)]
        return stats.newcombe(counts[0], len(worst[0]), counts[1], len(worst[1]))

    return stats.widened(gap("robust", "robust"), gap("robust", "score"), gap("score", "robust"))


def train_lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Robust accuracy on training images and its gap to test images, per threat.

    The verdict is that on the test images, since the sentinel looks at those.
    """
    test, sentinel = same_model(frames.get("evasion"), rows), same_model(frames.get("sentinel"), rows)
    for (eps, threat), part in rows.groupby(["eps", "threat"], sort=True):
        worst = robust.worst_case(part)
        more: dict[str, Any] = {"threat": str(threat), "eps": float(eps), "attack": "worst"}
        more |= {"n_clean_correct": int((worst["score_clean"] > 0).sum()), "n_unknown": int(worst["unknown"].sum())}
        met = None if test is None else test[test["threat"] == threat]
        if met is not None and len(met):
            more["validity"] = str(verdict(met, sentinel))
        yield row("robust_accuracy_train", robust.left(worst), part, **more)
        gap = stats.EMPTY if met is None else robust_gap(part, met)
        if gap.n:
            yield row("robust_gap", gap, part, **more)
