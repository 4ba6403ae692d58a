"""Numbers that rest on cells without a result yet: they have no value until the run is finished."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

PENDING = "pending"
"""Status of a cell that was planned and not run yet, and of every number that needs it."""
_WORST = ("worst", "curve")
_DIFFERENCES = {"robust_accuracy_drop": "evasion", "corrupted_accuracy_drop": "corruption"}
"""Metrics of a compressed model that are made from another scenario's cells."""
_NEEDS = {"evasion": ("evasion", "sentinel"), "evasion_train": ("evasion", "evasion_train", "sentinel")}
"""Scenario -> the scenarios whose cells its numbers rest on; by default itself."""


def with_result(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of a tidy table that are not pending: there is nothing to draw or to write of the others."""
    return table[table["status"] != PENDING]


def withheld(rows: list[dict[str, Any]], unfinished: pd.DataFrame | None, single: Iterable[str]) -> list[dict[str, Any]]:
    """Lines of the tidy table; those that join cells of which some are pending lose their value.

    A worst case over the attacks that happen to be finished would overstate robustness, as would a mean over the
    corruptions that are. Lines about one finished attack or corruption stay.

    Args:
        rows: Lines.
        unfinished: The cells without a result; see ``Store.unfinished``.
        single: Names of single corruptions, whose lines join nothing.
    """
    if unfinished is None or not (unfinished["status"] == PENDING).any():
        return rows
    cells = unfinished[unfinished["status"] == PENDING].to_dict("records")
    names = frozenset(single)
    return [_withheld(row, cells) if _joins(row, names) else row for row in rows]


def _joins(row: Mapping[str, Any], single: frozenset[str]) -> bool:
    """Whether a line joins the results of several cells."""
    scenario = row["scenario"]
    if scenario in _NEEDS:
        return str(row.get("attack", "")) in _WORST or row["metric"] in ("robust_gap", "robust_accuracy_train")
    if scenario == "corruption":
        return row.get("threat") not in single
    return scenario == "scarcity" or row["metric"] in _DIFFERENCES


def _withheld(row: dict[str, Any], cells: list[dict[Any, Any]]) -> dict[str, Any]:
    waiting = Counter(str(cell["scenario"]) for cell in _needed(row, cells))
    if not waiting:
        return row
    told = ", ".join(f"{count} {scenario}" for scenario, count in sorted(waiting.items()))
    text = f"{PENDING}: no result yet of {told} cell(s); run the same command again"
    return {**row, "value": math.nan, "ci_low": math.nan, "ci_high": math.nan, "status": PENDING, "validity": text}


def _needed(row: Mapping[str, Any], cells: list[dict[Any, Any]]) -> Iterator[dict[Any, Any]]:
    """The pending cells that a line rests on."""
    scenario = row["scenario"]
    wanted = _NEEDS.get(scenario, (_DIFFERENCES.get(row["metric"], scenario),))
    threat, norm_only = str(row.get("threat", "")), row.get("attack") == "curve"
    for cell in cells:
        if cell["dataset"] != row["dataset"]:
            continue
        if scenario == "scarcity":
            if str(cell["condition"]).startswith("scarcity("):
                yield cell
            continue
        parent = row["metric"] in _DIFFERENCES and cell["condition"] == ""
        if cell["model"] != row["model"] or not (parent or _same_condition(row["condition"], cell["condition"])):
            continue
        at = str(cell["threat"])
        same = not at or at == threat or (norm_only and at.partition("(")[0] == threat) or cell["scenario"] == "sentinel"
        if cell["scenario"] in wanted and same:
            yield cell


def _same_condition(shown: str, planned: str) -> bool:
    """Whether a line's condition, to which a seed may be added, is that of a cell."""
    return shown == planned or shown.startswith(f"{planned} seed=".strip())
