"""Per-sample frames → one tidy table of estimates.

Columns are ``COLUMNS``, rates in [0, 1], full precision. What a column holds besides its name:

* ``corruption`` rows: ``threat`` is the corruption, a family of them, ``mean`` (over all of the suite) or ``benchmark``
  (exactly the published 15), ``eps`` the severity (missing over all), ``attack`` where the images come from:
  ``robench-C (regenerated, TABLE)`` or ``published(FOLDER)``, for ratios followed by ``over`` the reference model.
* ``flips`` rows: ``threat`` is the perturbation (``mean`` over all), ``attack`` names the sequences and what frames are
  compared with.
* ``scarcity`` rows join trainings (see ``metrics/scarcity.py``): ``threat`` is what a curve runs over (``fraction``,
  ``shots``, ``imbalance``, ``label_noise``) or ``gain``; ``eps`` the value on it, or the target of ``samples_for_target``;
  ``attack`` what was measured (``clean``, ``corruption`` or a threat); ``condition`` what else was changed.
* ``explanation`` and ``explanation_change`` rows: ``attack`` is the explainer.
* ``efficiency`` rows: ``threat`` is ``batch=N`` where the latency is of N images, else of one; ``attack`` is the device and
  its threads where time or memory was measured.
* ``disagreement`` rows compare a compressed model with its parent; ``threat`` is ``class=N`` (a class that compression hit),
  ``mean`` (over corruptions) or the threat at which both were attacked.
* ``twin`` rows (a deployed model against the twin that lends it gradients): ``threat`` is the kind of images (``clean``, a
  corruption, a threat model), ``eps`` the severity of corrupted ones.
* ``evasion`` rows: ``attack`` is one attack, ``worst`` (per-sample worst case, the only row with a verdict on one threat)
  or ``curve`` (over the eps of the norm in ``threat``). ``transfer(source=...)`` has a row ``transfer_success`` too.
* ``ood`` rows: ``attack`` is the detector, ``threat`` the source of the other images.
* ``calibration`` rows: ``threat`` is the source of the images (``clean``, a corruption, an attack), ``attack`` is
  ``uncalibrated`` or ``temperature (split it was fitted on)``; ``eps`` is the bin's mean confidence of
  ``accuracy_in_bin`` and the coverage of ``risk_at_coverage``. The row ``temperature`` has the split in ``threat``.
* ``status``: ``ok``, ``simulated`` (costs of a fake-quantized model, whose time and memory are left out),
  ``censored`` (the sizes that were tried only bound the number),
  ``limited`` (not all samples were asked for: never ranked, fails every audit) or ``unknown`` (some
  samples are unknown).
* ``shift`` rows: ``threat`` is the shifted set; of relative robustness ``attack`` is ``over MODEL``. ``groups``: ``threat``
  is the group or ``worst``; a group of fewer than 50 samples has the status ``insufficient``. ``spatial``: ``threat`` is
  the grid with its padding. ``evasion_train``: as ``evasion``, on training images; its verdict is that on test images.
* ``rank`` rows (of the worst case at a threat, of accuracy, of mean corrupted accuracy): value is the model's rank among all
  that may be compared in the run, the interval holds all their ranks at once; ``cell`` names the cells of all of them.
* ``status`` ``skipped`` (no value): the cell needs a library that is not there (metric ``skipped``; the same command then
  measures what is missing), or something does not apply; ``validity`` says why. Such a row passes no audit, ranks nowhere.
* ``status`` ``pending`` (metric ``pending`` of a cell, or a number that needs it; no value): the run is not finished.
* ``status`` ``failed`` (metric ``failed``, no value): the cell has no result; ``validity`` has the error.
* ``excludes``: what the verdict's checks that found nothing can exclude, given their sample sizes, on ``worst`` rows; what
  is ``unknown`` of a ``calibration`` row; on how many samples an attack failed, and its errors, on the row of that attack.
* ``escalated``: why a protocol went beyond its ordinary stages, on ``worst`` rows.
* Several seeds of one condition keep apart: all but the smallest add ``seed=N`` to ``condition``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from robench.errors import StoreError, must
from robench.metrics import (
    clean,
    compressed,
    confidence,
    corrupted,
    cost,
    explained,
    flips,
    groups,
    known,
    ood,
    ranks,
    robust,
    scarcity,
    shifts,
    transfer,
    twins,
)
from robench.metrics.alike import is_transfer
from robench.metrics.label_checks import label_warnings
from robench.metrics.pending import withheld
from robench.metrics.rows import Metric, each, same_model
from robench.metrics.validity import ESCALATED, Verdict, verdict, worst_status

COLUMNS = (
    "model", "dataset", "scenario", "condition", "threat", "eps", "attack", "metric", "value", "ci_low", "ci_high", "n",
    "n_clean_correct", "n_unknown", "status", "validity", "excludes", "escalated", "seconds", "forwards", "backwards",
    "cell",
)  # fmt: skip
"""The tidy table's columns, in order."""

MEASURED = (
    "seconds", "latency_p50_ms", "latency_p95_ms", "latency_large_p50_ms", "latency_large_p95_ms", "throughput",
    "throughput_batch", "peak_memory_bytes",
)  # fmt: skip
"""What differs between runs: the column ``seconds`` and the rows of these metrics. ``unmeasured`` leaves them out."""

SIMULATED = "simulated"
"""Status of the costs of a model whose form is not the deployed one (fake quantization): no bytes, latency or memory."""

UNFINISHED = "unfinished"
"""Name of the frame of cells without a result."""
SKIPPED, FAILED = "skipped", "failed"
"""Metric and status of what was not measured: for want of an optional library, or since it failed; ``validity`` says why."""

LABELS = "labels: "
"""What a note on labels and predictions of clean images that do not belong together begins with."""

_ERRORS = 3
"""Different errors of one attack that its row tells."""
_NAMED = ["model", "dataset", "condition"]
_KEYS = ("model", "dataset", "scenario", "condition", "threat", "eps", "attack", "metric", "cell")
_COUNTS = ("n", "n_clean_correct", "n_unknown", "forwards", "backwards")


def tidy(frames: Mapping[str, pd.DataFrame], *, limited: bool = False) -> pd.DataFrame:
    """All estimates of the frames as one table with ``COLUMNS``, in a fixed order.

    Args:
        frames: Scenario name → per-sample frame (see docs/architecture.md). Scenarios that have no metric are passed over.
        limited: The run looked at a part of the samples only (``--limit``); a column ``limited`` in a frame says the same.

    Returns:
        One row per estimate; without rows when the frames are empty.

    Raises:
        StoreError: The rows lack a column that a metric needs.
    """
    frames = {name: _with_coded_texts(frame) for name, frame in frames.items()}
    ordered = {name: _ordered(frame) for name, frame in frames.items() if name in _MAKERS and len(frame)}
    first = _first_seeds(ordered.values())
    rows: list[dict[str, Any]] = []
    for scenario in sorted(frames):
        if scenario in ordered:
            maker = _MAKERS[scenario]
            for key, part in _groups(ordered[scenario], first):
                with _naming_what_lacks(scenario, frames):
                    lines = (*maker(part, frames), *(known.plugged_lines(scenario, part) if scenario != "evasion" else ()))
                for row in lines:
                    part_limited = limited or bool(part["limited"].any() if "limited" in part else False)
                    rows.append(_finish({**key, **row, "scenario": scenario}, limited=part_limited))
    rows = withheld(rows, frames.get(UNFINISHED), _single(frames))
    with _naming_what_lacks("a model's scenarios", frames):
        rows += list(ranks.lines(list(rows), frames))
    limited = limited or any(bool(f["limited"].any()) for f in frames.values() if "limited" in f)
    with _naming_what_lacks("trainings", frames):
        joined = [_finish({**row, "scenario": "scarcity"}, limited=limited) for row in scarcity.lines(ordered, list(rows))]
    rows += withheld(joined, frames.get(UNFINISHED), ())
    rows += list(_unfinished(frames.get(UNFINISHED)))
    return _typed(rows)


@contextmanager
def _naming_what_lacks(scenario: str, frames: Mapping[str, pd.DataFrame]) -> Iterator[None]:
    """Turn pandas' KeyError for a column that rows lack into an error that names it; every other KeyError stays.

    Raises:
        StoreError: Rows of the scenario, or of another one that it is joined with, lack a column.
    """
    try:
        yield
    except KeyError as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
        missing = str(error.args[0]).removeprefix("Column not found: ") if error.args else ""
        if not place.startswith("pandas.") or all(missing in frame for frame in frames.values()):
            raise
        remedy = "restore the rows; or remove the run directory and run it anew with this robench"
        raise StoreError(must(f"stored rows of {scenario}", "complete", f"no column {missing}", remedy)) from error


def _single(frames: Mapping[str, pd.DataFrame]) -> set[str]:
    """Names of the corruptions that have results."""
    return set(frames["corruption"]["corruption"].unique()) if "corruption" in frames else set()


def _with_coded_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with texts as categories: rows of those are compared and picked several times faster than of strings."""
    texts = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype)]
    return frame.astype(dict.fromkeys(texts, "category")) if texts else frame


def _unfinished(frame: pd.DataFrame | None) -> Iterator[dict[str, Any]]:
    """A line per cell without a result; no line of another metric stands for it."""
    if frame is None or frame.empty:
        return
    for cell in frame.to_dict("records"):
        kept = {name: cell[name] for name in ("model", "dataset", "scenario", "condition", "threat", "attack")}
        kept["threat"] = kept["threat"] or cell.get("corruption", "")
        status = str(cell["status"])
        told = {"metric": status, "n": 0, "status": status, "validity": f"{status}: {cell['error']}"}
        yield {**kept, **told, "value": math.nan, "cell": str(cell["cell"])[:12]}


def unmeasured(table: pd.DataFrame) -> pd.DataFrame:
    """The table without everything measured (see ``MEASURED``): byte-identical between runs of one suite."""
    kept = table[~table["metric"].isin(MEASURED)]
    return kept.drop(columns=[c for c in MEASURED if c in kept]).reset_index(drop=True)


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in COLUMNS:
        if column in _COUNTS:
            table[column] = table[column].astype("Int64")
        elif column in ("eps", "value", "ci_low", "ci_high", "seconds"):
            table[column] = table[column].astype("float64")
        else:
            table[column] = table[column].astype(object).fillna("").astype(str)
    order = table.assign(threat=table["threat"].str.replace(r"\(.*", "", regex=True))
    order = order.sort_values(list(_KEYS), kind="stable", na_position="last")
    return table.loc[order.index].reset_index(drop=True)


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in a fixed order, since a bootstrap goes by position: shards may have been finished in any order."""
    keys = [k for k in ("cell", "split", "threat", "attack", "corruption", "severity", "explainer", "sample") if k in frame]
    return frame.sort_values(["model", "dataset", "condition", *keys], kind="stable")


def _first_seeds(frames: Iterable[pd.DataFrame]) -> dict[tuple[str, str, str], int]:
    """(model, dataset, condition) → smallest seed over all scenarios: no other seed stands for one that was lost."""
    found: dict[tuple[str, str, str], int] = {}
    for frame in frames:
        if "seed" in frame:
            for key, seed in frame.groupby(_NAMED)["seed"].min().items():
                found[key] = min(int(seed), found.get(key, int(seed)))  # type: ignore[index, arg-type]
    return found


def _groups(frame: pd.DataFrame, first: Mapping[tuple[str, str, str], int]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """(model, dataset, condition) → rows; seeds other than the first become conditions of their own."""
    for (model, dataset, condition), rows in frame.groupby(_NAMED, sort=True):
        seeds = sorted(rows["seed"].unique()) if "seed" in rows else [0]
        for seed in seeds:
            suffix = f"seed={seed}" if seed != first.get((model, dataset, condition), seeds[0]) else ""
            part = rows[rows["seed"] == seed] if len(seeds) > 1 else rows
            yield {"model": model, "dataset": dataset, "condition": f"{condition} {suffix}".strip()}, part


def _finish(row: dict[str, Any], *, limited: bool) -> dict[str, Any]:
    unknown = row.get("n_unknown") or 0
    row["status"] = "limited" if limited else "unknown" if unknown else row.get("status", "ok")
    return row


_CLEAN: dict[str, Metric] = {
    "accuracy": clean.accuracy,
    **confidence.CONFIDENCE,
    "train_test_gap": clean.train_test_gap,
    "tenth_percentile_class_accuracy": groups.tenth_percentile_class_accuracy,
    "worst_class_accuracy": clean.worst_class_accuracy,
}
_EXPLAINED: dict[str, Metric] = {
    "infidelity": explained.infidelity,
    "insertion_deletion_gap": explained.insertion_deletion_gap,
    "max_sensitivity": explained.max_sensitivity,
}


def _clean(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    correct = int((clean.split(rows, "test")["score"] > 0).sum())
    yield from each(_CLEAN, rows, n_clean_correct=correct, excludes="; ".join(_label_doubts(rows)))


def _label_doubts(rows: pd.DataFrame | None) -> list[str]:
    """What labels and predictions of a model as it is say against each other; changed models may well be at chance."""
    if rows is None or rows.empty or rows["condition"].iloc[0] or "pred" not in rows:
        return []
    test = clean.split(rows, "test")
    return [f"{LABELS}{line}" for line in label_warnings(test["label"].to_numpy(), test["pred"].to_numpy())]


def attacked_label_doubts(rows: pd.DataFrame) -> list[str]:
    """The same from rows of the ``evasion`` frame, of one model: what it said of the clean images before the attacks."""
    if not {"sample", "label", "pred_clean"} <= set(rows):
        return []
    looks = rows.dropna(subset=["label", "pred_clean"]).drop_duplicates("sample")
    return _label_doubts(looks.assign(pred=looks["pred_clean"]).drop(columns="split", errors="ignore"))


def _explanation(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    for explainer, part in rows.groupby("explainer"):
        yield from each(_EXPLAINED, part, attack=explainer)


def _efficiency(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    simulated = {"status": SIMULATED} if "simulated" in rows and bool(rows["simulated"].any()) else {}
    for name, metric in cost.METRICS.items():
        large = f"batch={rows['large_batch'].iloc[0]}" if "_large_" in name and "large_batch" in rows else ""
        where = _where(rows) if name in MEASURED else ""
        yield from each({name: metric}, rows, threat=large, attack=where, **simulated)


def _where(rows: pd.DataFrame) -> str:
    """The device that was measured on, and with how many threads; empty where that was not told."""
    if not {"device", "threads"} <= set(rows):
        return ""
    threads = int(rows["threads"].iloc[0])
    return f"{rows['device'].iloc[0]}, {threads} thread{'s' if threads > 1 else ''}"


def _evasion(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    sentinel, plain = same_model(frames.get("sentinel"), rows), same_model(frames.get("clean"), rows)
    doubts = attacked_label_doubts(rows) if plain is None or plain.empty else _label_doubts(plain)
    norms = rows["threat"].str.partition("(")[0]
    for norm, same in rows.groupby(norms):
        verdicts = []
        for (eps, threat), part in same.groupby(["eps", "threat"]):
            found = verdict(part, sentinel, siblings=same[same["eps"] < eps])
            found = replace(found, notes=(*doubts, *found.notes))
            verdicts.append(found)
            yield from _threat(part, found, threat=threat, eps=float(eps))
        finite = same.loc[np.isfinite(same["eps"]) & (same["eps"] > 0), "eps"].nunique()
        if finite > 1:
            area = {"security_curve_area": robust.security_curve_area}
            yield from each(area, same, threat=norm, attack="curve", validity=_joined(verdicts), **_counts(same))


def _threat(rows: pd.DataFrame, found: Verdict, **more: Any) -> Iterator[dict[str, Any]]:
    """One row per attack, then the worst case with its verdict."""
    only: dict[str, Metric] = {"robust_accuracy": robust.robust_accuracy}
    for attack, part in rows.groupby("attack"):
        moved: dict[str, Metric] = {"transfer_success": transfer.transfer_success} if is_transfer(attack) else {}
        yield from each({**only, **moved}, part, attack=attack, excludes=_failures(part), **more, **_counts(part))
    worst: dict[str, Metric] = {
        **only,
        "robust_accuracy_8bit": robust.robust_accuracy_8bit,
        "robust_accuracy_without_unknown": robust.robust_accuracy_without_unknown,
        "robust_accuracy_mean_draw": robust.robust_accuracy_mean_draw,
        "robust_accuracy_worst_draw": robust.robust_accuracy_worst_draw,
    }
    more["escalated"] = "; ".join(note.removeprefix(ESCALATED) for note in found.notes if note.startswith(ESCALATED))
    more["excludes"] = "; ".join(note for note in found.notes if not note.startswith(ESCALATED))
    said = {"attack": "worst", "validity": str(found), **more, **_counts(rows)}
    yield from each(worst, rows, **said)
    for line in known.plugged_lines("evasion", rows):
        yield {**said, **line}


def _failures(rows: pd.DataFrame) -> str:
    """On how many samples an attack failed, and its errors; empty where it did not fail."""
    failed = rows[rows["status"] != "ok"]
    if failed.empty:
        return ""
    errors = sorted({str(error).partition("\n")[0] for error in failed["error"].dropna()} - {""})
    told = "; ".join(errors[:_ERRORS]) + (f"; and {len(errors) - _ERRORS} other errors" if len(errors) > _ERRORS else "")
    return f"failed on {failed['sample'].nunique()} of {rows['sample'].nunique()} samples: {told or 'no result'}"


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    worst = robust.worst_case(rows)
    return {
        "n_clean_correct": int((worst["score_clean"] > 0).sum()),
        "n_unknown": int(worst["unknown"].sum()),
        "seconds": float(rows["seconds"].sum()),
        "forwards": int(rows["forwards"].sum()),
        "backwards": int(rows["backwards"].sum()),
    }


def _joined(verdicts: list[Verdict]) -> str:
    reasons = tuple(dict.fromkeys(r for v in verdicts for r in v.reasons))
    return str(Verdict(worst_status(v.status for v in verdicts), reasons))


_MAKERS: dict[str, Callable[[pd.DataFrame, Mapping[str, pd.DataFrame]], Iterator[dict[str, Any]]]] = {
    "calibration": confidence.lines,
    "clean": _clean,
    "corruption": corrupted.lines,
    "disagreement": compressed.lines,
    "efficiency": _efficiency,
    "evasion": _evasion,
    "evasion_train": shifts.train_lines,
    "explanation": _explanation,
    "explanation_change": compressed.changed,
    "flips": flips.lines,
    "groups": groups.lines,
    "shift": shifts.shift_lines,
    "spatial": shifts.spatial_lines,
    "twin": twins.lines,
    "ood": ood.lines,
}
