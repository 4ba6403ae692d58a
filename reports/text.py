"""Tables for the screen and for other programs. Rates are percent on screen, full precision elsewhere."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from robench.errors import ConfigError, must, suggestion
from robench.escape import for_csv, for_markdown, visible
from robench.metrics.ranks import RANK
from robench.metrics.table import LABELS
from robench.metrics.validity import DOUBTED
from robench.registry import facts

FORMATS = ("table", "json", "csv", "md")
_RATES = ("accuracy", "gap", "clean", "robust", "corrupted", "ece", "data_efficiency", "area", "auc", "transfer")


@facts(version=1)
def render(table: pd.DataFrame, *, format: str = "table", width: int = 160) -> str:
    """The table or leaderboard as text.

    Args:
        table: A tidy table, or a leaderboard.
        format: ``table`` (for the eye, rounded), ``json`` (records), ``csv`` or ``md`` (full precision).
        width: Columns of the screen, for ``table``.

    Raises:
        ConfigError: Unknown format.
    """
    if format == "csv":
        return spreadsheet(table)
    if format == "json":
        return table.to_json(orient="records", double_precision=15, indent=2) + "\n"
    if format == "md":
        return pipes(table, escape=for_markdown)
    if format != "table":
        raise ConfigError(must("the format", "one of " + "|".join(FORMATS), format, suggestion(format, FORMATS)))
    buffer = io.StringIO()
    show(table, console=Console(file=buffer, width=width, color_system=None))
    return buffer.getvalue()


def pipes(table: pd.DataFrame, *, escape: Callable[[str], str] = visible) -> str:
    """A pipe table without padding, which would widen every line to the longest text of its column.

    Args:
        table: Any table; values are shown as ``str`` gives them.
        escape: What each text goes through; by default what a terminal needs (``for_markdown`` for a Markdown file).
    """
    lines = [[escape(str(column)) for column in table.columns], ["---"] * table.shape[1]]
    lines += [[escape(str(value)) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spreadsheet(table: pd.DataFrame) -> str:
    """CSV in full precision; a text that begins like a formula gets an apostrophe, numbers stay numbers."""
    safe = table.rename(columns=lambda column: for_csv(str(column)))
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            values = [for_csv(v) if isinstance(v, str) else v for v in table.iloc[:, place]]
            safe.isetitem(place, pd.Series(values, index=table.index, dtype=object))
    return safe.to_csv(index=False, lineterminator="\n")


def show(table: pd.DataFrame, *, console: Console, title: str | None = None) -> None:
    """Draw a tidy table or a leaderboard on a console; suspicious models are red and say why below."""
    cells = leaderboard_cells(table) if "rank" in table else tidy_cells(table)
    drawn = RichTable(title=title, header_style="bold")
    for column in cells:
        left = column in ("model", "dataset", "scenario", "condition", "threat", "attack", "metric", "validity")
        drawn.add_column(Text(visible(column)), justify="left" if left else "right", overflow="fold")
    for values in cells.itertuples(index=False):
        bad = any(str(v).startswith(DOUBTED) for v in values)
        drawn.add_row(*(Text(visible(str(v))) for v in values), style="red" if bad else None)
    console.print(drawn)
    for reason in reasons(table):
        console.print(Text(visible(reason), style="red"))
    for line in escalations(table):
        console.print(Text(visible(line), style="yellow"))


def reasons(table: pd.DataFrame) -> list[str]:
    """``model [threat]: reason`` for every verdict that is not plainly sound, once each."""
    found: dict[str, None] = {}
    for row in table.to_dict("records"):
        if row.get("validity", "") not in ("", "sound"):
            where = f" {row['threat']}" if row.get("threat") else ""
            condition = f" {row['condition']}" if row.get("condition") else ""
            found[f"{row['model']}{condition}{where}: {row['validity']}"] = None
    return list(found)


def escalations(table: pd.DataFrame) -> list[str]:
    """``model [condition] threat: escalated: why`` for every number whose protocol went beyond its ordinary stages."""
    return _told(table, "escalated", "escalated: ")


def exclusions(table: pd.DataFrame) -> list[str]:
    """``model [condition] threat: what`` the checks behind a verdict exclude, though they found nothing."""
    return _told(table[table["attack"] == "worst"], "excludes")


def label_doubts(table: pd.DataFrame) -> list[str]:
    """``model: what`` speaks against the labels or the preparation of clean images, from the line of clean accuracy."""
    clean = table[(table["scenario"] == "clean") & (table["metric"] == "accuracy")]
    told = _told(clean, "excludes")
    return [line.replace(LABELS, "") for line in told if LABELS in line]


def _told(table: pd.DataFrame, column: str, what: str = "") -> list[str]:
    """``model [condition] threat: text`` for every number that has one in the column, once each."""
    if column not in table:
        return []
    rows = table[table[column].fillna("").astype(str) != ""]
    parts = zip(rows["model"], rows["condition"], rows["threat"], rows[column], strict=True)
    return list(dict.fromkeys(f"{' '.join(filter(None, (m, c, t)))}: {what}{text}" for m, c, t, text in parts))


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
            cells[f"{column} %"] = [interval(*t) for t in triples]
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
    if metric == RANK:
        return f"{value:.0f} ({low:.0f}-{high:.0f})"
    if any(word in metric for word in _RATES) and not math.isnan(low):
        return f"{interval(value, low, high)} %"
    return f"{value:,.6g}" if math.isnan(low) else f"{value:.4f} [{low:.4f}, {high:.4f}]"
