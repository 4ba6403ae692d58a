"""How scores depend on the amount and the quality of training data, and what augmentation and transfer gain.

The curves join trainings: all conditions ``scarcity(...)`` of one model and data set that differ in one argument, over all
seeds. Every interval is over trainings and images (see ``crossed``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from robench.metrics import crossed, power_law, stats
from robench.metrics.clean import split
from robench.metrics.corrupted import failed, most
from robench.metrics.robust import worst_case
from robench.metrics.rows import row
from robench.metrics.stats import Floats
from robench.metrics.validity import worst_of
from robench.registry import facts
from robench.spec import Estimate, Ref

AXES = ("fraction", "shots", "imbalance", "label_noise")
"""Arguments that a curve may run over."""
HELP = ("augment", "transfer")
"""Arguments that are said to help: gains over the same training without them."""
NONE = {"imbalance": 1.0, "label_noise": 0.0}
"""Value of an axis where its argument is left out."""
TARGETS = (0.5, 0.8, 0.9)
"""Accuracies for which the number of images that they take is told."""
CLEAN, CORRUPTED = "clean", "corruption"
_WHO = ["model", "dataset", "condition", "seed"]


def cube(frame: pd.DataFrame, axis: str = "fraction") -> tuple[Floats, Floats]:
    """Positions (P,), increasing, and scores (P, trainings, images) of test rows; a missing score counts as 0.

    Trainings (seeds) and images that were not measured at every position are left out. Empty arrays where nothing is left.
    """
    rows = split(frame, "test")
    if axis not in rows or rows[axis].notna().sum() == 0:
        return np.empty(0), np.empty((0, 0, 0))
    rows = rows[rows[axis].notna()].assign(score=rows["score"].fillna(0.0))
    rows = rows if "seed" in rows else rows.assign(seed=0)
    whole = rows.pivot_table(index=["seed", "sample"], columns=axis, values="score", aggfunc="mean").dropna()
    layers = [whole[position].unstack("sample") for position in whole]
    kept = ~layers[0].isna().any() if layers else pd.Series(dtype=bool)
    if not kept.any():
        return np.empty(0), np.empty((0, 0, 0))
    stacked = np.stack([layer.loc[:, kept].to_numpy(np.float64) for layer in layers])
    return whole.columns.to_numpy(np.float64), stacked


@facts(version=3, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean", group="generalization")
def data_efficiency_auc(frame: pd.DataFrame) -> Estimate:
    """Area under test accuracy against log2 of the training fraction, divided by the range: in [0, 1].

    Args:
        frame: Rows of one model's scarcity conditions, with the columns sample, seed, fraction and score.

    Returns:
        The area of the mean over trainings, with an interval over trainings and images; empty below two fractions.

    Source: trapezoid rule; the area of a mean curve is the mean of the samples' areas.
    """
    positions, scores = cube(frame)
    if len(positions) < 2:
        return stats.EMPTY
    logs = np.log2(positions)
    return crossed.rate(np.trapezoid(scores, logs, axis=0) / (logs[-1] - logs[0]))


@facts(version=1, unit="number", higher_is_better=True, bounds=(0, 4), needs="clean", group="generalization")
def power_law_exponent(frame: pd.DataFrame) -> Estimate:
    """b of err(n) = a n^-b + c, least squares on the mean errors, with an interval over trainings and images.

    Args:
        frame: As for ``data_efficiency_auc``, with the column train_n.

    Returns:
        Empty below four sizes and where the error does not fall; at an end of [0.02, 4] the data do not tell it.

    Source: Hestness et al., 2017, section 3; Rosenfeld et al., ICLR 2020.
    """
    return _law(frame)["exponent"]


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def power_law_floor(frame: pd.DataFrame) -> Estimate:
    """c of err(n) = a n^-b + c: the error that the law says no number of images removes; otherwise as the exponent."""
    return _law(frame)["floor"]


def _law(frame: pd.DataFrame) -> dict[str, Estimate]:
    sizes, scores = _sized(frame)
    if not len(sizes):
        return {"exponent": stats.EMPTY, "floor": stats.EMPTY}
    return power_law.estimates(sizes, scores)


def _sized(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """As ``cube``, by mean number of training images instead of by fraction."""
    positions, scores = cube(frame)
    if "train_n" not in frame or not len(positions):
        return np.empty(0), np.empty((0, 0, 0))
    sizes = frame.groupby("fraction")["train_n"].mean().reindex(positions).to_numpy(np.float64)
    known = np.isfinite(sizes)
    return sizes[known], scores[known]


@facts(version=2, unit="count", higher_is_better=False, bounds=(0, None), needs="clean", group="generalization")
def samples_for_target(frame: pd.DataFrame, *, target: float = 0.9) -> Estimate:
    """Training images at which mean accuracy reaches ``target``, read between the sizes, never beyond them.

    Returns:
        With an interval over trainings and images. Where the target is not reached at any size the value is missing, the
        low end is at most the largest size and the high end is infinite. Where the smallest size reaches it, the value
        is that size, an upper bound, and the low end is 0; the high end is infinite if resamples do not reach it at any
        size. Both are censored: see ``is_censored``. Empty below two sizes.
    """
    sizes, scores = _sized(frame)
    if len(sizes) < 2:
        return stats.EMPTY
    value = float(power_law.needed(sizes, scores.mean((1, 2)), target)[0])
    again = power_law.needed(sizes, crossed.resampled_means(scores), target)
    tail = (1 - stats.LEVEL) / 2
    low, high = (float(np.quantile(again, q, method="lower" if q < 0.5 else "higher")) for q in (tail, 1 - tail))
    n = scores.shape[2]
    if math.isinf(value):
        return Estimate(math.nan, min(low, float(sizes[-1])), math.inf, n)
    if value <= sizes[0]:
        return Estimate(value, 0.0, max(high, value), n)
    return Estimate(value, min(low, value), max(high, value), n)


def is_censored(estimate: Estimate) -> bool:
    """Whether the sizes that were tried only bound the number of images from one side; all sizes are positive."""
    return math.isnan(estimate.value) or estimate.low == 0


@facts(version=2, unit="ratio", higher_is_better=True, bounds=(0, None), needs="clean", group="generalization")
def scarce_accuracy_ratio(frame: pd.DataFrame) -> Estimate:
    """Accuracy with 10 % of the training data over accuracy with all of it, same seeds and images; empty without both."""
    positions, scores = cube(frame)
    few, whole = np.isclose(positions, 0.1), np.isclose(positions, 1.0)
    if not few.any() or not whole.any():
        return stats.EMPTY
    return crossed.ratio(scores[few][0], scores[whole][0])


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="clean", group="generalization")
def memorised_labels(frame: pd.DataFrame) -> Estimate:
    """Share of the wrongly labelled training images to which the final model gives their wrong label.

    Args:
        frame: Rows with the columns seed, noisy_n and memorised_n, the same within a training.

    Returns:
        Mean over trainings, with Student's t interval over them; for one training the modified Wilson interval over images.
        ``n`` is the number of wrongly labelled images over all trainings. Empty without label noise.

    Source: Zhang et al., ICLR 2017, section 2 (fitting random labels); Arpit et al., ICML 2017.
    """
    if not {"noisy_n", "memorised_n"} <= set(frame):
        return stats.EMPTY
    told = frame.assign(seed=frame.get("seed", 0)).drop_duplicates("seed")
    told = told[told["noisy_n"].fillna(0) > 0]
    if told.empty:
        return stats.EMPTY
    hits, counts = told["memorised_n"].to_numpy(np.float64), told["noisy_n"].to_numpy(np.float64)
    if len(told) == 1:
        return stats.wilson(int(hits[0]), int(counts[0]))
    return _over_few(hits / counts, int(counts.sum()))


def _over_few(values: Floats, n: int) -> Estimate:
    """Mean of a few numbers in [0, 1] with Student's t interval."""
    from scipy.stats import t

    half = float(t.ppf(0.5 + stats.LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    value = float(values.mean())
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), n)


@dataclass(frozen=True)
class Points:
    """All trainings of one model and data set under conditions ``scarcity(...)``."""

    arms: Mapping[str, Mapping[str, Any]]
    """Condition → its arguments."""
    scores: pd.DataFrame
    """condition, seed, sample, measure, score, unknown, cell, and the training's facts where they are known."""
    corruption: pd.DataFrame
    """Rows of the corruption frame."""
    doubts: Mapping[tuple[str, str], tuple[str, ...]]
    """(condition, threat) → verdicts of its trainings, those that are not sound."""

    def of(self, measure: str, conditions: list[str]) -> pd.DataFrame:
        """Scores of some conditions under one measure."""
        rows = self.scores
        return rows[(rows["measure"] == measure) & rows["condition"].isin(conditions)]


def lines(frames: Mapping[str, pd.DataFrame], rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of the scenario ``scarcity``, from all frames and from the lines made so far, whose verdicts they keep.

    ``threat`` is the axis of a curve, or ``gain``; ``eps`` the value on that axis (the accuracy for ``samples_for_target``);
    ``attack`` what was measured: ``clean``, ``corruption`` (without those that an augmentation is made of) or a threat;
    ``condition`` what besides the axis was changed.
    """
    for (model, dataset), points in _points(frames, rows):
        key = {"model": model, "dataset": dataset}
        for measure in dict.fromkeys(points.scores["measure"]):
            for axis in AXES:
                for base, members in curves(points.arms, axis):
                    for line in _curve(points, measure, axis, members):
                        yield {**key, "condition": base, "threat": axis, "attack": measure, **line}
            for arm, plain in pairs(points.arms):
                for line in _gain(points, measure, arm, plain):
                    yield {**key, "condition": arm, "threat": "gain", **line}
        for line in _memories(points):
            yield {**key, "threat": "label_noise", "attack": CLEAN, **line}


def read_condition(condition: str) -> dict[str, Any] | None:
    """Arguments of a condition that changes the training only, with its fraction; None for any other."""
    if not condition.startswith("scarcity(") or " | " in condition:
        return None
    args = dict(Ref.parse(condition).kwargs)
    return args if "shots" in args else {"fraction": 1.0, **args}


def curves(arms: Mapping[str, Mapping[str, Any]], axis: str) -> Iterator[tuple[str, dict[float, str]]]:
    """(what all have in common, value → condition) for conditions that differ in one argument, at least two of them."""
    found: dict[str, dict[float, str]] = {}
    for condition, args in arms.items():
        if axis in args:
            rest = {k: v for k, v in args.items() if k != axis}
            found.setdefault(_named(rest), {})[float(args[axis])] = condition
    plain = {_named(args): condition for condition, args in arms.items()}
    for base, members in found.items():
        without = {k: v for k, v in arms[next(iter(members.values()))].items() if k not in (axis, "noise")}
        if axis in NONE and _named(without) in plain:
            members.setdefault(NONE[axis], plain[_named(without)])
        if len(members) > 1:
            yield base, dict(sorted(members.items()))


def _named(args: Mapping[str, Any]) -> str:
    return str(Ref.of("scarcity", **args)) if args else ""


def pairs(arms: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(condition with help, the same without it) for every condition with one kind of help."""
    plain = {_named(args): condition for condition, args in arms.items()}
    for condition, args in arms.items():
        helps = [name for name in HELP if args.get(name)]
        base = _named({k: v for k, v in args.items() if k not in HELP})
        if len(helps) == 1 and base in plain:
            yield condition, plain[base]


def _points(frames: Mapping[str, pd.DataFrame], rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Points]]:
    kept = {name: _scarce(frames[name]) for name in ("clean", "evasion", "corruption") if name in frames}
    if "clean" not in kept or kept["clean"].empty:
        return
    whole = pd.concat([_clean(kept["clean"]), *_attacked(kept.get("evasion")), *_worn(kept.get("corruption"))])
    known = [c for c in ("fraction", "train_n", "noisy_n", "memorised_n", "augment_overlaps") if c in kept["clean"]]
    facts_ = kept["clean"].drop_duplicates(_WHO)[[*_WHO, *known]]
    whole = whole.merge(facts_, on=_WHO, how="left")
    for (model, dataset), part in whole.groupby(["model", "dataset"], sort=True):
        arms = {c: args for c in sorted(part["condition"].unique()) if (args := read_condition(c)) is not None}
        worn = kept.get("corruption", pd.DataFrame(columns=[*_WHO, "corruption"]))
        worn = worn[(worn["model"] == model) & (worn["dataset"] == dataset)]
        yield (str(model), str(dataset)), Points(arms, part, worn, _doubts(rows, str(model), str(dataset)))


def _scarce(frame: pd.DataFrame) -> pd.DataFrame:
    told = {c: read_condition(c) is not None for c in frame["condition"].unique()}
    return frame[frame["condition"].map(told).astype(bool)]


def _clean(frame: pd.DataFrame) -> pd.DataFrame:
    rows = split(frame, "test")
    return rows[[*_WHO, "sample", "score", "cell"]].assign(measure=CLEAN, unknown=False, most=rows["score"])


def _attacked(frame: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """Per threat, each sample's worst case over the attacks; unknown samples are not robust."""
    for names, part in (frame if frame is not None else pd.DataFrame(columns=[*_WHO, "threat"])).groupby([*_WHO, "threat"]):
        worst = worst_case(part).reset_index()
        cells = "+".join(sorted({str(c)[:12] for c in part["cell"].unique()}))
        told = dict(zip(_WHO, names, strict=False))
        known = {"sample": worst["sample"], "score": worst["robust"], "unknown": worst["unknown"], "most": worst["score"]}
        yield pd.DataFrame(known).assign(**told, measure=names[-1], cell=cells)


def _worn(frame: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """Each sample's mean over corruptions and severities."""
    if frame is not None and len(frame):
        lost = frame.assign(unknown=failed(frame), most=most(frame)["score"]).groupby([*_WHO, "sample"], as_index=False)
        told = lost.agg(score=("score", "mean"), cell=("cell", "first"), unknown=("unknown", "any"), most=("most", "mean"))
        yield told.assign(measure=CORRUPTED)


_OF_A_SEED = re.compile(r" ?seed=\d+\Z")
"""What the table adds to the condition of further seeds."""


def _doubts(rows: list[dict[str, Any]], model: str, dataset: str) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for line in rows:
        told = str(line.get("validity", ""))
        if (
            line["model"] == model
            and line["dataset"] == dataset
            and line.get("attack") == "worst"
            and told not in ("", "sound")
        ):
            place = _OF_A_SEED.sub("", str(line["condition"])), str(line["threat"])
            found[place] = (*found.get(place, ()), told)
    return found


def _prefix(measure: str) -> str:
    """What a metric's name begins with."""
    return {CLEAN: "", CORRUPTED: "corrupted_"}.get(measure, "robust_")


def _validity(points: Points, measure: str, conditions: list[str]) -> dict[str, Any]:
    """Verdict and unknown samples of a line: of robust accuracy the worst status and all reasons."""
    if _prefix(measure) != "robust_":
        return {"n_unknown": int(points.of(measure, conditions)["unknown"].sum())} if measure == CORRUPTED else {}
    told = [text for condition in conditions for text in points.doubts.get((condition, measure), ())]
    reasons = dict.fromkeys(r for text in told for r in text.partition(": ")[2].split("; ") if r)
    status = worst_of(told)
    unknown = int(points.of(measure, conditions)["unknown"].sum())
    return {"validity": f"{status}: {'; '.join(reasons)}" if told else "sound", "n_unknown": unknown}


def _curve(points: Points, measure: str, axis: str, members: Mapping[float, str]) -> Iterator[dict[str, Any]]:
    rows = points.of(measure, list(members.values()))
    positions = {condition: value for value, condition in members.items()}
    rows = rows.assign(**{axis: rows["condition"].map(positions)})
    if rows[axis].nunique() < 2:
        return
    whole = _validity(points, measure, list(members.values()))
    for value, condition in members.items():
        part = rows[rows["condition"] == condition]
        found = _widened(lambda rows: crossed.rate(cube(rows, axis)[1][0]), part) if len(part) else stats.EMPTY
        if found.n:
            yield row(
                f"{_prefix(measure)}accuracy_at_{axis}", found, part, eps=value, **_validity(points, measure, [condition])
            )
            if measure == CLEAN:
                yield row(f"trainings_at_{axis}", Estimate.exact(part["seed"].nunique()), part, eps=value)
    if axis == "fraction":
        told = {"data_efficiency_auc": _widened(data_efficiency_auc, rows)}
        if not rows["unknown"].any():  # what is missing at one size would bend the law and the ratio either way
            law = _law(rows)
            told |= {
                "power_law_exponent": law["exponent"],
                "power_law_floor": law["floor"],
                "scarce_accuracy_ratio": scarce_accuracy_ratio(rows),
            }
        for name, found in told.items():
            if found.n:
                yield row(_prefix(measure) + name, found, rows, **whole)
        for target in TARGETS:
            if (found := _widened(partial(samples_for_target, target=target), rows)).n:
                status = {"status": "censored"} if is_censored(found) else {}
                yield row(f"{_prefix(measure)}samples_for_target", found, rows, eps=target, **whole, **status)


def _widened(metric: Callable[[pd.DataFrame], Estimate], rows: pd.DataFrame) -> Estimate:
    """A number whose interval holds, too, what it would be if the unknown samples were right."""
    found = metric(rows)
    if not found.n or not rows["unknown"].any():
        return found
    return stats.widened(found, metric(rows.assign(score=rows["most"])))


def _gain(points: Points, measure: str, arm: str, plain: str) -> Iterator[dict[str, Any]]:
    """The paired difference of an arm and the same training without its help."""
    rows, told = points.of(measure, [arm, plain]), measure
    if measure == CORRUPTED:
        rows, left_out = _fairly_corrupted(points, arm, plain)
        told = f"{measure} without {', '.join(left_out)}" if left_out else measure
        if rows["unknown"].any():
            return  # what the plain arm lacks would be the other's gain
    rows = rows.assign(_arm=(rows["condition"] == arm).astype(float))
    positions, scores = cube(rows, "_arm")
    if len(positions) == 2:
        found = crossed.difference(scores[1], scores[0])
        if rows["unknown"].any():
            high = cube(rows.assign(score=rows["most"]), "_arm")[1]
            found = stats.widened(found, crossed.difference(high[1], scores[0]), crossed.difference(scores[1], high[0]))
        args = points.arms[arm]
        at = float(args.get("fraction", args.get("shots", math.nan)))
        validity = _validity(points, measure, [arm, plain])
        yield row(f"gain_in_{_prefix(measure)}accuracy", found, rows, eps=at, attack=told, **validity)


def _fairly_corrupted(points: Points, arm: str, plain: str) -> tuple[pd.DataFrame, list[str]]:
    """Scores over the corruptions that the arm's augmentation is not made of, and the names that were left out."""
    overlaps = points.scores.loc[points.scores["condition"] == arm, "augment_overlaps"].dropna()
    made_of = set(",".join(overlaps.unique()).split(","))
    rows = points.corruption[points.corruption["condition"].isin([arm, plain])]
    left_out = sorted(set(rows["corruption"]) & made_of)
    kept = rows[~rows["corruption"].isin(left_out)]
    found = next(_worn(kept), points.scores.iloc[:0])
    return found, left_out


def _memories(points: Points) -> Iterator[dict[str, Any]]:
    for condition, args in points.arms.items():
        rate = float(args.get("label_noise", 0.0))
        rows = points.of(CLEAN, [condition])
        if rate and (found := memorised_labels(rows)).n:
            rest = {k: v for k, v in args.items() if k != "label_noise"}
            yield row("memorised_labels", found, rows, eps=rate, condition=_named(rest))
