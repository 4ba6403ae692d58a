"""Numbers and tables as texts for people: rates in percent with their interval."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from robench.metrics.ranks import RANK

_RATES = ("accuracy", "gap", "clean", "robust", "corrupted", "ece", "data_efficiency", "area", "auc", "transfer")


_DIFFERENCES = re.compile(r"(^|_)(gap|drop|change|gain)(_|$)")
"""What the names of differences of two rates have."""


def unit(metric: str) -> str:
    """``%`` for a rate, ``points`` (percentage points) for a difference of rates."""
    return "points" if _DIFFERENCES.search(metric) else "%"


def percent(value: Any, *, digits: int = 1) -> str:
    """A rate as percent without the sign, empty when missing."""
    return "" if value is None or pd.isna(value) else f"{100 * float(value):.{digits}f}"


def interval(value: Any, low: Any, high: Any) -> str:
    """``71.2 [68.0, 74.1]`` in percent; without brackets when there is no interval."""
    if value is None or pd.isna(value):
        return ""
    return percent(value) if pd.isna(low) else f"{percent(value)} [{percent(low)}, {percent(high)}]"


def leaderboard_cells(board: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard's texts: intervals in percent, one column each; verdicts without reasons."""
    cells = {}
    for column in board:
        if column.endswith(("_low", "_high")):
            continue
        if column == "rank":
            cells[column] = _ranks(board)
        elif f"{column}_low" in board:
            triples = zip(board[column], board[f"{column}_low"], board[f"{column}_high"], strict=True)
            cells[f"{column} {unit(column)}"] = [interval(*t) for t in triples]
        elif column.startswith("score"):
            cells[f"{column} %"] = [percent(v) for v in board[column]]
        elif column == "validity":
            cells[column] = [str(v).partition(":")[0] for v in board[column]]
        else:
            cells[column] = ["" if pd.isna(v) else str(v) for v in board[column]]
    return pd.DataFrame(cells)


def _ranks(board: pd.DataFrame) -> list[str]:
    """``2 (1-3)``: the rank, and all that the paired tests leave possible."""
    if "rank_low" not in board:
        return [str(r) for r in board["rank"]]
    rows = zip(board["rank"], board["rank_low"], board["rank_high"], strict=True)
    return [f"{r} ({low}-{high})" if low != high else str(r) for r, low, high in rows]


def tidy_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The tidy table's texts: rates in percent with their interval, without columns that are empty throughout."""
    kept = ["model", "dataset", "condition", "threat", "attack", "metric"]
    cells = {c: table[c].astype(str).tolist() for c in kept if (table[c] != "").any()}
    if (table["threat"] != "").any():
        severities = zip(table["threat"], table["eps"], strict=True)
        cells["threat"] = [t if "(" in t or math.isnan(e) else f"{t} {e:g}" for t, e in severities]
    rows = zip(table["metric"], table["value"], table["ci_low"], table["ci_high"], strict=True)
    cells["value"] = [_value(*row) for row in rows]
    for column in ("n", "n_unknown"):
        cells[column] = ["" if pd.isna(v) else str(v) for v in table[column]]
    cells["validity"] = table["validity"].str.partition(":")[0].tolist() if len(table) else []
    return pd.DataFrame(cells)


def _value(metric: str, value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    if metric == RANK:
        return f"{value:.0f} ({low:.0f}-{high:.0f})"
    if any(word in metric for word in _RATES) and not math.isnan(low):
        return f"{interval(value, low, high)} {unit(metric)}"
    return f"{value:,.6g}" if math.isnan(low) else f"{value:.4f} [{low:.4f}, {high:.4f}]"
