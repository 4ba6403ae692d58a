"""Rows computed again from images, model and data, and compared with those that a run directory holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robench import catalog
from robench.devices import exact_arithmetic
from robench.errors import RobenchError
from robench.evidence import EDGE, close
from robench.inference import predict, untouched
from robench.judge import decide
from robench.lineage import artifacts
from robench.metrics.columns import ATTACKED
from robench.metrics.table import MEASURED
from robench.progress import telling
from robench.runner import run_cell
from robench.scenarios.fresh_copy import SURVIVORS
from robench.scenarios.objects import Objects, open_cell
from robench.spec import Cell, Context, Ref, ThreatModel
from robench.store import Finished, Store
from robench.workshop import build

INFORMATIVE = {
    "rows": (*MEASURED, "threads", "device"),
    "cells": ("seconds", "device", "threads", "time", "versions"),
    "run.json": (
        *("versions", "sources", "adversarials", "edits.adapts", "edits.typed"),
        *("suite.name", "suite.version", "suite.summary"),
    ),
    "evidence": ("device", "sources", "versions", "hold"),
    "unbroken": ("margin_adv", "distance", "projected"),
}
"""What no number rests on, by file, so that ``verify`` compares it with nothing but the file's own hash.

``unbroken``: columns of samples that no image was kept of (of these the sign and the bound are compared). Of a randomised
model ``hold`` counts: it decides which draws an image meets.
"""
SEARCH = (
    "stage", "stage_access", "escalated", "unconfirmed", "forwards", "backwards", "zero_gradients", "nonfinite_gradients",
    "nonfinite_outputs", "status", "error", "draws", "projected", "fresh_copy_agrees", "fresh_copy_note",
)  # fmt: skip
"""What a search says of itself: compared by running the attack again (``--rerun``), else only where columns contradict."""


@dataclass(frozen=True)
class Task:
    """Cells to look at again, picklable for a process of its own."""

    digests: tuple[str, ...]
    context: Context
    rerun: bool = False
    """Whether attacks are run again too."""
    verbose: bool | None = None
    """Whether a line on stderr counts the cells; by default where stderr is a terminal."""


def recheck(task: Task) -> list[tuple[str, str]]:
    """(digest, what differs) for the rows of finished cells; nothing where they come out as they are stored."""
    store = Store(task.context.root, lenient=True)
    done, lines = store.finished(), []
    with (
        tempfile.TemporaryDirectory() as place,
        exact_arithmetic(task.context.threads),
        telling(verbose=task.verbose) as tell,
    ):
        scratch = replace(task.context, root=place)
        for count, digest in enumerate(task.digests):
            tell("checking cells", count, len(task.digests))
            try:
                lines += [(digest, text) for text in _rechecked(store, done[digest], scratch, task)]
            except RobenchError as error:
                lines.append((digest, str(error)))
    return lines


def _rechecked(store: Store, entry: Finished, scratch: Context, task: Task) -> list[str]:
    cell, rows = entry.cell, store.rows(entry)
    if cell is None:
        return []
    _lend(cell, store.root, Path(scratch.root), scratch)
    if cell.scenario.name not in ATTACKED:
        return unlike(rows, run_cell(cell, scratch))
    found = _attacked(open_cell(cell, scratch), rows)
    return found or (unlike(rows, run_cell(cell, scratch)) if task.rerun else [])


def _lend(cell: Cell, root: Path, scratch_root: Path, scratch: Context) -> None:
    """Trained and compressed models are taken as they are stored; everything else is made anew."""
    for artifact in reversed(list(artifacts(cell))):
        if not artifact.stored:
            continue
        place, own = scratch_root / "artifacts" / artifact.digest, root / "artifacts" / artifact.digest
        if artifact.kind == "model" and own.is_dir() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(own.resolve(), target_is_directory=True)
        build(artifact, scratch)


def unlike(stored: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    """Columns and samples in which two frames of one cell differ, without what differs between runs."""
    skipped = set(INFORMATIVE["rows"])
    one, other = ({*frame.columns} - skipped for frame in (stored, again))
    lines = [
        f"column {name} is {'not in the rows' if name in other else 'in the rows only'}" for name in sorted(one ^ other)
    ]
    if len(stored) != len(again):
        return [*lines, f"there are {len(stored)} rows, and {len(again)} when computed again"]
    for name in sorted(one & other):
        pairs = zip(stored[name].tolist(), again[name].tolist(), strict=True)
        wrong = [(i, a, b) for i, (a, b) in enumerate(pairs) if not _same(a, b)]
        lines += [_line(stored, name, wrong)] if wrong else []
    return lines


def _line(rows: pd.DataFrame, name: str, wrong: list[tuple[int, Any, Any]]) -> str:
    """One line of a column: its first difference, and how many more there are."""
    row, stored, again = wrong[0]
    where = f"sample {rows['sample'].iloc[row]}" if "sample" in rows else f"row {row}"
    more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
    return f"{where}: {name} is {stored!r} in the rows, and {again!r} when computed again{more}"


def _same(stored: Any, again: Any) -> bool:
    if isinstance(stored, int | float) and isinstance(again, int | float):
        return close(stored, again)
    missing = (None, "")
    if any(v is None or (isinstance(v, float) and v != v) for v in (stored, again)):
        return all(v in missing or v != v for v in (stored, again))
    return str(stored) == str(again)


def _attacked(objects: Objects, rows: pd.DataFrame) -> list[str]:
    """Rows of an attack without its images: what follows from data, model and cell, and what cannot stand together."""
    data = objects.shard()
    if rows["sample"].tolist() != data.ids.tolist():
        return ["column sample is not that of the cell's images, in their order"]
    threat = ThreatModel.parse(objects.cell.scenario.kwargs["threat"])
    attack = str(objects.cell.scenario.kwargs["attack"])
    facts = catalog.ATTACKS[Ref.parse(attack).name].facts
    known = {
        "label": data.labels.tolist(),
        **_clean(objects, int(rows["draws"].max())),
        **{k: [v] * len(rows) for k, v in {
            "norm": threat.norm, "eps": threat.eps, "access": str(facts.get("access", "white")),
        }.items()},
    }  # fmt: skip
    again = rows.assign(**known)
    found = [line for row in rows.to_dict("records") for line in _contradictions(row, threat)]
    return [*unlike(rows, again), *found, *_unasked(rows)]


def _unasked(rows: pd.DataFrame) -> Iterator[str]:
    """Samples that a new copy of the model was to be asked about, of which the rows have no answer and no reason."""
    right = rows["status"].eq("ok") & rows["draws"].eq(0) & ~rows["unstable"].astype(bool) & rows["score_clean"].gt(0)
    due = rows[right & rows["score_adv"].gt(0)].head(SURVIVORS)
    for sample in due.loc[due["fresh_copy_agrees"].isna() & due["fresh_copy_note"].eq(""), "sample"].head(1):
        yield f"sample {sample}: fresh_copy_agrees is missing, and fresh_copy_note does not say why"


def _clean(objects: Objects, draws: int) -> dict[str, list[Any]]:
    """Columns of the clean images."""
    task, cell, found = objects.model.task, objects.cell, []
    with untouched(objects.net):
        for hold in objects.holds(size=256 if draws else None):
            if draws:
                threat = ThreatModel.parse(cell.scenario.kwargs["threat"])
                more: dict[str, Any] = {"threat": threat, "task": task, "width": hold.width, "draws": draws}
                seen = decide(objects.net, hold.x, hold.y, x_adv=hold.x, seed=cell.seed, **more)
                found.append((seen.score, seen.prediction, seen.margin))
            else:
                outputs = predict(objects.net, hold.x, width=hold.width)
                found.append((task.score(outputs, hold.y), task.predict(outputs), task.margin(outputs, hold.y)))
    names = ("score_clean", "pred_clean", "margin_clean")
    return {n: torch.cat(list(parts)).cpu().tolist() for n, parts in zip(names, zip(*found, strict=True), strict=True)}


def _contradictions(row: dict[str, Any], threat: ThreatModel) -> Iterator[str]:
    """What cannot be together in one row."""
    failed, wrong, plain = row["status"] == "failed", row["score_adv"] <= 0.5, not row["draws"]
    edge = abs(row["margin_adv"]) < EDGE
    rules = {
        "status, error": row["status"] in ("ok", "failed") and failed == bool(row["error"]),
        "nonfinite_outputs": failed or wrong or not row["nonfinite_outputs"],
        "broken, score_adv": failed or bool(row["broken"]) == wrong,
        "broken_8bit": bool(row["broken"]) or not row["broken_8bit"],
        "score_adv": row["score_adv"] in (0.0, 1.0) and row["score_adv"] <= row["score_clean"],
        "score_mean": not plain or row["score_mean"] == row["score_adv"],
        "score_worst": row["score_worst"] == row["score_adv"] if plain else row["score_worst"] <= row["score_mean"] + EDGE,
        "pred_adv": not plain or wrong or row["pred_adv"] == row["label"],
        "margin_adv": not plain or edge or failed or row["score_clean"] <= 0.5 or (row["margin_adv"] < 0) == wrong,
        "distance": 0 <= row["distance"] <= threat.eps + 1e-6 * max(1.0, threat.eps),
        "unstable": not plain or wrong or not row["unstable"],
        "stage": not row["stage"] or wrong,
        "stage_access": bool(row["stage"]) == bool(row["stage_access"]),
        "draws": row["draws"] == 0 or row["draws"] >= 20,
        "backwards": min(row["backwards"], row["forwards"], row["unconfirmed"]) >= 0,
        "zero_gradients": 0 <= row["zero_gradients"] <= row["backwards"],
    }  # fmt: skip
    for name, fits in rules.items():
        if not fits:
            told = ", ".join(f"{column} {row[column]!r}" for column in name.split(", "))
            yield f"sample {row['sample']}: {told} cannot be together with the row's other columns"
