"""What compression did to a model: metrics of the frames ``disagreement`` and ``explanation_change``, and of paired rows.

A ``disagreement`` row is one sample seen by a compressed model and by the model it was made from (its parent): ``pred,
pred_parent, score, score_parent`` in [0, 1], ``confidence, confidence_parent, kl`` (of the parent's probabilities from the
compressed model's) and ``parent``, the parent's condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from robench.metrics import robust, stats
from robench.metrics.alike import alike
from robench.metrics.corrupted import failed
from robench.metrics.rows import each, row
from robench.registry import facts
from robench.spec import Estimate

BINS = 15
_KEYS = ("model", "dataset", "seed")
_SHOWN_P = 0.05
"""Classes whose drop has a corrected p-value below this stand in the table, and the worst-hit one always."""


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="disagreement", group="compression")
def disagreement_rate(frame: pd.DataFrame) -> Estimate:
    """Share of the samples whose predicted class is another than the parent's, in [0, 1], with the modified Wilson interval.

    Source: Hooker et al., arXiv 1911.05248, section 2 (what a compressed model forgets, without labels).
    """
    return stats.rate((frame["pred"] != frame["pred_parent"]).astype(float))


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="disagreement", group="compression")
def correct_to_wrong(frame: pd.DataFrame) -> Estimate:
    """Share of all samples that the parent has right and the compressed model wrong, in [0, 1] (modified Wilson interval).

    Source: Milani Fard et al., NeurIPS 2016, section 2 (churn, and its part that costs).
    """
    return stats.rate((right(frame, "score_parent") & ~right(frame, "score")).astype(float))


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="disagreement", group="compression")
def wrong_to_correct(frame: pd.DataFrame) -> Estimate:
    """Share of all samples that the parent has wrong and the compressed model right, in [0, 1] (modified Wilson interval).

    Source: as ``correct_to_wrong``.
    """
    return stats.rate((~right(frame, "score_parent") & right(frame, "score")).astype(float))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="disagreement", group="compression")
def accuracy_drop(frame: pd.DataFrame) -> Estimate:
    """The parent's accuracy minus the compressed model's on the same samples, in [-1, 1], with Tango's interval."""
    return stats.paired_difference(frame["score_parent"], frame["score"])


@facts(version=1, unit="nats", higher_is_better=False, bounds=(0, None), needs="disagreement", group="compression")
def kl_from_parent(frame: pd.DataFrame) -> Estimate:
    """Mean over samples of KL(parent || compressed) of the predicted probabilities, at least 0, in nats.

    Source: Kullback & Leibler, 1951; Hinton et al., arXiv 1503.02531 (between a large and a small model).
    """
    return stats.mean_interval(frame["kl"])


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="disagreement", group="compression")
def ece_change(frame: pd.DataFrame) -> Estimate:
    """Calibration error of the compressed model minus the parent's, in [-1, 1]: 15 equal-width bins, paired bootstrap.

    Source: Guo et al., ICML 2017, equation 3 (of each).
    """
    if frame.empty:
        return stats.EMPTY
    own, parent = _calibration(frame, ""), _calibration(frame, "_parent")
    value = float((own(np.arange(len(frame))[None]) - parent(np.arange(len(frame))[None]))[0])
    low, high = stats.bootstrap(len(frame), lambda index: own(index) - parent(index))
    return Estimate(value, min(low, value), max(high, value), len(frame))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="disagreement", group="compression")
def worst_class_drop(frame: pd.DataFrame) -> Estimate:
    """Accuracy drop of the worst-hit class, in [-1, 1]; n is that class's number of samples.

    The interval runs from the highest lower to the highest upper bound of all classes' Tango intervals at the level
    1 - 0.05/K, so that choosing the worst of K classes does not make it too narrow (Bonferroni).

    Source: Hooker et al., arXiv 2010.03058, section 3 (compression's cost by class).
    """
    if frame.empty:
        return stats.EMPTY
    groups = list(frame.groupby("label", sort=True))
    level = 1 - (1 - stats.LEVEL) / len(groups)
    drops = [stats.paired_difference(part["score_parent"], part["score"], level=level) for _, part in groups]
    worst = max(drops, key=lambda e: (e.value, -e.n))
    return Estimate(worst.value, max(e.low for e in drops), max(e.high for e in drops), worst.n)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="corruption", group="compression")
def corrupted_accuracy_drop(frame: pd.DataFrame) -> Estimate:
    """The parent's accuracy minus the compressed model's over the same corrupted images, in [-1, 1]; n counts images.

    Args:
        frame: ``corruption`` rows with a further column ``score_parent``.

    Returns:
        The mean over images of their mean difference, with a bootstrap over images.
    """
    gone = (frame["score_parent"] - frame["score"]).groupby(frame["sample"]).mean()
    return stats.mean_interval(gone)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="evasion", group="compression")
def robust_accuracy_drop(frame: pd.DataFrame) -> Estimate:
    """The parent's robust accuracy minus the compressed model's at one threat, in [-1, 1], with Tango's interval.

    Args:
        frame: One row per sample with ``score_parent`` and ``score``: what is left in the worst case, of the parent over
            the attacks that both met, of the compressed model over all of its own, so that a compressed model that was
            attacked less never looks better; a sample that is unknown counts as lost. ``most_parent`` and ``most``, where
            they are there, count it as left: the interval holds what that could make of the drop.
    """
    found = stats.paired_difference(frame["score_parent"], frame["score"])
    if not {"most", "most_parent"} <= set(frame):
        return found
    pairs = (("most_parent", "score"), ("score_parent", "most"))
    return stats.widened(found, *(stats.paired_difference(frame[before], frame[after]) for before, after in pairs))


@facts(version=1, unit="correlation", higher_is_better=True, bounds=(-1, 1), needs="explanation_change", group="compression")
def explanation_rank_correlation(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the rank correlation of the two models' maps, in [-1, 1]; a degenerate map counts as 0.

    Source: Spearman, 1904; Adebayo et al., NeurIPS 2018, section 3 (rank correlation of maps of two models).
    """
    return stats.mean_interval(frame["rank_correlation"])


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="explanation_change", group="compression")
def explanation_top_intersection(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the share of the highest tenth of pixels that both maps have in common, in [0, 1].

    Source: Ghorbani et al., AAAI 2019, section 2 (top-k intersection).
    """
    return stats.mean_interval(frame["top_intersection"])


def right(frame: pd.DataFrame, column: str) -> pd.Series:
    """Whether each sample's score is whole; a missing one is not right."""
    return frame[column].eq(1.0)


def class_drops(frame: pd.DataFrame) -> pd.DataFrame:
    """Per class (index: label) ``value, low, high, n`` of its accuracy drop and ``p``, corrected over the classes.

    ``p`` is the exact paired test that the class fares no differently, times Holm's factor over the classes present.

    Source: McNemar, 1947; Holm, 1979.
    """
    found = {}
    for label, part in frame.groupby("label", sort=True):
        drop = stats.paired_difference(part["score_parent"], part["score"])
        lost = int((right(part, "score_parent") & ~right(part, "score")).sum())
        won = int((~right(part, "score_parent") & right(part, "score")).sum())
        found[label] = {"value": drop.value, "low": drop.low, "high": drop.high, "n": drop.n,
                        "p": stats.mcnemar_exact(lost, won)}  # fmt: skip
    table = pd.DataFrame.from_dict(found, orient="index", columns=["value", "low", "high", "n", "p"])
    return table.assign(p=stats.holm(table["p"].tolist()))


METRICS = {
    "accuracy_drop": accuracy_drop,
    "correct_to_wrong": correct_to_wrong,
    "disagreement_rate": disagreement_rate,
    "ece_change": ece_change,
    "kl_from_parent": kl_from_parent,
    "worst_class_drop": worst_class_drop,
    "wrong_to_correct": wrong_to_correct,
}


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Rows of the tidy table for one compressed model: against its parent, on clean, corrupted and attacked images."""
    correct = {"n_clean_correct": int(right(rows, "score_parent").sum())}
    yield from each(METRICS, rows, **correct)
    yield from _classes(rows)
    corrupted = _beside_parent(frames.get("corruption"), rows, ["sample", "corruption", "severity"])
    yield from each({"corrupted_accuracy_drop": corrupted_accuracy_drop}, corrupted, threat="mean", **correct)
    yield from _attacked(rows, frames.get("evasion"))


def changed(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Rows of the tidy table for one compressed model's explanations."""
    metrics = {
        "explanation_rank_correlation": explanation_rank_correlation,
        "explanation_top_intersection": explanation_top_intersection,
    }
    for explainer, part in rows.groupby("explainer"):
        yield from each(metrics, part, attack=explainer)


def _classes(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The classes that compression hit, and the worst-hit one."""
    drops = class_drops(rows)
    worst = drops.sort_values(["value", "n"], ascending=[False, True], kind="stable").index[:1]
    for label, drop in drops.iterrows():
        if drop["p"] >= _SHOWN_P and label not in worst:
            continue
        part = rows[rows["label"] == label]
        estimate = Estimate(drop["value"], drop["low"], drop["high"], int(drop["n"]))
        yield row("class_accuracy_drop", estimate, part, threat=f"class={label}")
        yield row("class_drop_p_value", Estimate.exact(drop["p"], int(drop["n"])), part, threat=f"class={label}")


def _attacked(rows: pd.DataFrame, evasion: pd.DataFrame | None) -> Iterator[dict[str, Any]]:
    """Robust accuracy lost at every threat that both models were attacked at."""
    own, parent = _pair(evasion, rows)
    for (eps, threat), part in own.groupby(["eps", "threat"]):
        same = _common(parent[parent["threat"] == threat], part)
        if same.empty or set(same["access"]) <= {"noise"}:
            continue
        left, was = robust.worst_case(part), robust.worst_case(same)
        both = left.index.intersection(was.index)
        left, was = left.loc[both], was.loc[both]
        pair = pd.DataFrame({"score": left["robust"], "score_parent": was["robust"]})
        unknown = int((left["unknown"] | was["unknown"]).sum())
        if unknown:
            pair = pair.assign(most=left["score"], most_parent=was["score"])
        told: dict[str, Any] = {"n_clean_correct": int((was["score_clean"] > 0).sum()), "n_unknown": unknown}
        told |= {"threat": threat, "eps": float(eps), "attack": "worst"}
        yield from each({"robust_accuracy_drop": robust_accuracy_drop}, pair, **told)


def _common(parent: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The parent's rows under attacks that the compressed model met too."""
    met = {alike(attack) for attack in own["attack"].unique()}
    known = {attack: alike(attack) in met for attack in parent["attack"].unique()}
    return parent[np.array([known[attack] for attack in parent["attack"]], dtype=bool)]


def _pair(frame: pd.DataFrame | None, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A scenario's rows of the compressed model and of its parent; without rows where it was not run."""
    if frame is None or frame.empty:
        return pd.DataFrame({"eps": [], "threat": []}), pd.DataFrame({"eps": [], "threat": []})
    first = rows.iloc[0]
    same = frame[np.logical_and.reduce([frame[key] == first[key] for key in _KEYS if key in frame and key in rows])]
    return same[same["condition"] == first["condition"]], same[same["condition"] == first["parent"]]


def _beside_parent(frame: pd.DataFrame | None, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The compressed model's rows that its parent has too, with the parent's score beside each."""
    own, parent = _pair(frame, rows)
    if own.empty or parent.empty or failed(own).any() or failed(parent).any():
        return pd.DataFrame({"sample": [], "score": [], "score_parent": []})
    return own.merge(parent[[*keys, "score"]], on=keys, suffixes=("", "_parent"))


def _calibration(frame: pd.DataFrame, suffix: str) -> Any:
    """A function from indices (R, n) to the calibration errors (R,) of those samples."""
    confidence = frame[f"confidence{suffix}"].to_numpy(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    excess = frame[f"score{suffix}"].to_numpy(np.float64) - confidence

    def error(index: np.ndarray) -> stats.Floats:
        cells = bins[index] + BINS * np.arange(len(index))[:, None]
        sums = np.bincount(cells.ravel(), weights=excess[index].ravel(), minlength=BINS * len(index))
        found: stats.Floats = np.abs(sums).reshape(len(index), BINS).sum(axis=1) / index.shape[1]
        return found

    return error
