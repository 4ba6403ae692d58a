"""Tables for the screen and for other programs. Rates are percent on screen, full precision elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from robench.errors import ConfigError, must, suggestion
from robench.escape import for_csv, for_markdown, visible
from robench.metrics.table import LABELS
from robench.metrics.validity import DOUBTED, INVALID, SUSPICIOUS
from robench.registry import facts
from robench.reports.cells import tidy_cells
from robench.reports.terminal import board_lines

FORMATS = ("table", "json", "csv", "md")


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


def show(table: pd.DataFrame, *, console: Console, ranked: str = "") -> None:
    """Draw a tidy table or a leaderboard on a console; doubted models are red and say why below.

    Args:
        table: A tidy table, or a leaderboard, of which the columns that fit are shown.
        console: Where to; its width counts.
        ranked: The leaderboard's column that ranks.
    """
    if "rank" in table:
        for line, style in board_lines(table, width=console.width, main=ranked):
            console.print(Text(line, style=style), soft_wrap=True)
        return
    texts = tidy_cells(table)
    drawn = RichTable(header_style="bold")
    for column in texts:
        left = column in ("model", "dataset", "scenario", "condition", "threat", "attack", "metric", "validity")
        drawn.add_column(Text(visible(column)), justify="left" if left else "right", overflow="fold")
    for values in texts.itertuples(index=False):
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
    """``model [condition] threat: what`` checks exclude that found nothing, of models of which no check found anything."""
    rows = table[(table["attack"] == "worst") & ~table["validity"].str.startswith((SUSPICIOUS, INVALID))]
    clean = table[(table["scenario"] == "clean") & (table["metric"] == "accuracy") & (table["condition"] == "")]
    doubts = dict(zip(zip(clean["model"], clean["dataset"], strict=True), clean["excludes"], strict=True))
    found = [
        text.removeprefix(doubts.get((model, dataset), "")).removeprefix("; ")  # doubts about labels are findings
        for model, dataset, text in zip(rows["model"], rows["dataset"], rows["excludes"], strict=True)
    ]
    return _told(rows.assign(excludes=found), "excludes")


def label_doubts(table: pd.DataFrame) -> list[str]:
    """``model: what`` speaks against the labels or the preparation of clean images."""
    if "excludes" not in table:
        return []
    rows = table[table["excludes"].fillna("").astype(str).str.contains(LABELS, regex=False)]
    notes = ((model, note) for model, told in zip(rows["model"], rows["excludes"], strict=True) for note in told.split("; "))
    return list(dict.fromkeys(f"{m}: {note.removeprefix(LABELS)}" for m, note in notes if note.startswith(LABELS)))


def _told(table: pd.DataFrame, column: str, what: str = "") -> list[str]:
    """``model [condition] threat: text`` for every number that has one in the column, once each."""
    if column not in table:
        return []
    rows = table[table[column].fillna("").astype(str) != ""]
    parts = zip(rows["model"], rows["condition"], rows["threat"], rows[column], strict=True)
    return list(dict.fromkeys(f"{' '.join(filter(None, (m, c, t)))}: {what}{text}" for m, c, t, text in parts))
