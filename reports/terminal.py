"""The leaderboard on a terminal: as many columns as fit, the rest named, and a short note for each doubted model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from robench.escape import visible
from robench.metrics.pending import PENDING
from robench.metrics.validity import DOUBTED, SOUND
from robench.reports.cells import interval, leaderboard_cells, percent, unit
from robench.screen import cells, folded, shortened_words, wrapped

if TYPE_CHECKING:
    from robench.reports.audit import Finding

LIMITED = "limited"
_GAP = 2
"""Blanks between columns."""
_NARROW_MODEL = 16
"""Columns that a model's name keeps where there is little room; a longer name goes on in the next line."""
_NARROW_DATA = 8
"""Likewise for a data set's name."""
_NARROW_VERDICT = 10
"""As wide as ``suspicious``; longer verdicts are of several words."""
_NOTE = 160
"""Characters of a note: about two lines of 80 columns. The page has the whole text."""
_SHORT = 60
"""Most characters of a name, which may be a path."""
_STATUSES = (*DOUBTED, SOUND, LIMITED, PENDING)


@dataclass(frozen=True)
class Column:
    """One column of texts."""

    head: str
    texts: tuple[str, ...]
    left: bool = False
    width: int = 0
    """Columns of the screen; 0: as many as the longest text takes."""
    source: str = ""
    """The leaderboard's own name of it."""

    @property
    def columns(self) -> int:
        """Columns of the screen that it takes."""
        longest = max((cells(text) for text in (*self.head.split("\n"), *self.texts)), default=0)
        return min(longest, self.width) if self.width else longest

    def row(self, text: str) -> list[str]:
        """A text as the lines of its row, padded to the column's width."""
        lines = [piece.rstrip() for part in text.split("\n") for piece in folded(part, self.columns)]
        blanks = [" " * (self.columns - cells(line)) for line in lines]
        return [line + blank if self.left else blank + line for line, blank in zip(lines, blanks, strict=True)]


def board_lines(board: pd.DataFrame, *, width: int, main: str = "") -> list[tuple[str, str]]:
    """The leaderboard in lines of at most ``width`` columns (from 80 on, whatever it holds), each with its rich style.

    Rank, model, the ranking number with its interval, clean accuracy and the verdict are always there; further columns
    where there is room. Below it stand n, what was left out for want of room, and one short note for each reason why
    models are not ranked.

    Args:
        board: As ``robench.reports.leaderboard.leaderboard`` gives it.
        width: Columns of the screen.
        main: Column of ``board`` that ranks.
    """
    if board.empty:
        return [("no results yet", "")]
    board = board.assign(model=[visible(str(model)) for model in board["model"]])
    first, more = _columns(board, main)
    chosen = _fitted(first, width)
    left_out = []
    for column in more:
        roomy = [*chosen[:-1], column, chosen[-1]]
        if _total(roomy) <= width:
            chosen = roomy
        else:
            left_out.append(column.source)
    doubted = [_status(v).startswith(DOUBTED) for v in board["validity"]]
    lines = [(line, "bold") for line in _joined(chosen, [column.head for column in chosen])]
    lines.append(("-" * _total(chosen), "bold"))
    for i, bad in enumerate(doubted):
        lines += [(line, "red" if bad else "") for line in _joined(chosen, [column.texts[i] for column in chosen])]
    for text, style in [*_legend(board, chosen, left_out), *_notes(board)]:
        lines += [(line, style) for line in wrapped(text, width).split("\n")]
    return lines


def _columns(board: pd.DataFrame, main: str) -> tuple[list[Column], list[Column]]:
    """What is always shown, the verdict last, and what is shown where there is room, the most wanted first."""
    texts = leaderboard_cells(board)
    rates = [c for c in board if f"{c}_low" in board and c != "rank" and (texts[f"{c} {unit(c)}"] != "").any()]
    main = main if main in rates else next((c for c in rates if c.startswith("robust@")), "clean")
    made = {rate: _rate(board, rate) for rate in rates}
    first = [Column("rank", tuple(texts["rank"])), Column("model", tuple(texts["model"]), left=True)]
    if board["dataset"].nunique() > 1:
        first.append(Column("data", tuple(visible(str(d)) for d in board["dataset"]), left=True))
    first += [made.pop(rate) for rate in (main, "clean") if rate in made]
    if len(_sizes(board)) > 1:
        first.append(Column("n", tuple("" if n == 0 else str(n) for n in board["n"])))
    first.append(Column("verdict", tuple(_status(v) for v in board["validity"]), left=True))
    wanted = sorted(made, key=lambda rate: not rate.startswith("robust@"))
    more = [made[rate] for rate in wanted]
    scores = [c for c in board if c.startswith("score")]
    return first, [*(Column(c, tuple(percent(v) for v in board[c]), source=c) for c in scores), *more]


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """An audit's findings: one line each, and one more with the reason of what did not pass."""
    for finding in findings:
        outcome = "passed" if finding.passed else "undecided" if finding.undecided else "FAILED"
        data = f" on {finding.dataset}" if finding.dataset else ""
        yield f"{outcome:9s} {visible(finding.model)}{visible(data)}: {visible(finding.requirement)}"
        if finding.value == finding.value:
            end = f", judged by the interval's worse end {finding.judged:.4g}" if finding.judged != finding.value else ""
            at = f" at {visible(finding.judged_at)}" if finding.judged_at else ""
            yield f"    measured {finding.value:.4g}{at}{end}"
        if finding.reason:
            yield f"    {_note(finding.reason)}"


def _sizes(board: pd.DataFrame) -> set[int]:
    """Numbers of images of the models that have a number."""
    return {int(n) for n in board["n"]} - {0}


def _rate(board: pd.DataFrame, name: str) -> Column:
    triples = zip(board[name], board[f"{name}_low"], board[f"{name}_high"], strict=True)
    what, _, threat = name.partition("@")
    start, _, last = what.rpartition("_")
    head = f"{what} %\nat {threat}" if threat else f"{start.replace('_', ' ')}\n{last} {unit(name)}".lstrip("\n")
    return Column(head, tuple(interval(*triple) for triple in triples), source=name)


def _fitted(columns: list[Column], width: int) -> list[Column]:
    """The columns, narrowed step by step until they fit; the interval of the ranking number goes last."""
    steps: list[tuple[str, Callable[[Column], Column]]] = [
        ("verdict", lambda column: replace(column, width=_NARROW_VERDICT)),
        ("model", lambda column: replace(column, width=2 * _NARROW_MODEL)),
        ("clean %", _without_interval),
        ("data", lambda column: replace(column, width=_NARROW_DATA)),
        ("model", lambda column: replace(column, width=_NARROW_MODEL)),
        ("", _without_interval),
    ]
    for head, narrower in steps:
        if _total(columns) <= width:
            return columns
        columns = [narrower(c) if head in (c.head, "") else c for c in columns]
    return columns


def _without_interval(column: Column) -> Column:
    return replace(column, texts=tuple(text.partition(" [")[0] for text in column.texts)) if column.source else column


def _total(columns: Sequence[Column]) -> int:
    return sum(column.columns for column in columns) + _GAP * (len(columns) - 1)


def _joined(columns: Sequence[Column], texts: Sequence[str]) -> list[str]:
    """One row of the table, whose cells may have several lines."""
    parts = [column.row(text) for column, text in zip(columns, texts, strict=True)]
    height = max(len(part) for part in parts)
    filled = [part + [" " * column.columns] * (height - len(part)) for part, column in zip(parts, columns, strict=True)]
    return [(" " * _GAP).join(line).rstrip() for line in zip(*filled, strict=True)]


def _status(verdict: str) -> str:
    """The verdict's status; what is said besides it stands in a note."""
    status = verdict.partition(":")[0].partition(";")[0]
    return status if status in _STATUSES else ""


def _legend(board: pd.DataFrame, columns: Sequence[Column], left_out: Sequence[str]) -> list[tuple[str, str]]:
    facts = ["[ ]: 95 % interval"] if any("[" in text for column in columns for text in column.texts) else []
    ranks = "rank_low" in board and (board["rank_low"] != board["rank_high"]).any()
    facts += ["rank (a-b): ranks that the interval leaves open"] if ranks else []
    if len(_sizes(board)) == 1:
        facts.append(f"n = {_sizes(board).pop()} images")
    lines = [("; ".join(facts), "dim")] if facts else []
    if left_out:
        lines.append((f"not shown for want of room: {', '.join(left_out)} (--format csv has all)", "dim"))
    return lines


def _notes(board: pd.DataFrame) -> list[tuple[str, str]]:
    """One note for each different reason, with the models that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for model, verdict in zip(board["model"], board["validity"], strict=True):
        note = _note(str(verdict))
        if note:
            found.setdefault((note, "red" if _status(verdict) in DOUBTED else "yellow"), []).append(model)
    return [(f"{_named(models)}: {note}", style) for (note, style), models in found.items()]


def _note(verdict: str) -> str:
    """The first reason of a verdict, short, and how many more there are; empty where there is nothing to say."""
    status = _status(verdict)
    reasons = visible(verdict[len(status) :].lstrip(":; ")).split("; ")
    if not reasons[0]:
        return ""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    start = f"{status}: " if status not in ("", SOUND) else ""
    return start + shortened_words(reasons[0], _NOTE) + more


def _named(models: Sequence[str], most: int = 3) -> str:
    told = ", ".join(shortened_words(model, _SHORT) for model in models[:most])
    return told + (f" and {len(models) - most} more" if len(models) > most else "")
