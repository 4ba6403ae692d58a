"""Names and texts of others are shown so that no medium obeys them."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from robench.escape import for_csv, for_markdown, shortened, visible, visible_lines
from robench.reports.text import render, show
from robench.reports.write import write_reports

NAMES = [
    *("$x_{$", "a$b", r"\$", "_hidden", "\x1b[2J\x1b]0;title\x07", '=cmd|"/c calc"!A0', "@SUM(A1)", "+1+1", "-2+3", "\t=1"),
    *("a|b|c", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "two\nlines", "carriage\rreturn"),
    *("\u202egnp.exe", "\u2066x\u2069", "zero\u200bwidth", "n" * 300, "[link](javascript:alert(1))", "`code`", "**bold**"),
    *("caf\u00e9 \u4e2d\u6587", "100%", "{{ 7*7 }}", "%(x)s", "\u2028line", "\ud800"),
]
"""Labels that mean something to a terminal, a page, Markdown, a spreadsheet or matplotlib."""
FEW = [name for name in NAMES if name.startswith(("$", "\x1b", "=", "a|b", "<", "nn"))]
"""One for each of these readers, and a long one."""


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_sees_printable_characters_only(name: str) -> None:
    assert all(c.isprintable() for c in visible(name))
    assert all(c.isprintable() or c in "\n\t" for c in visible_lines(name))
    visible(name).encode()


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("digits-pgd-at", "caf\u00e9 \u4e2d\u6587", "linf(8/255)", "a b", "caf\u0065\u0301", r"C:\nets"):
        assert visible(name) == name and for_csv(name) == name
    assert visible("\x1b[31m") == r"\x1b[31m" and visible("\u202e") == r"\u202e"


def test_numbers_stay_numbers_in_csv() -> None:
    assert [for_csv(text) for text in ("-0.5", "+3", "1e-05", "-inf", "-.5")] == ["-0.5", "+3", "1e-05", "-inf", "-.5"]
    assert for_csv("-cmd") == "'-cmd" and for_csv("=1") == "'=1" and for_csv("") == "" and for_csv("-") == "-"
    table = pd.DataFrame({"model": ["=1+1", "plain"], "value": [-0.5, 1e-7], "n": [-1, 2]})
    assert render(table, format="csv") == "model,value,n\n'=1+1,-0.5,-1\nplain,1e-07,2\n"


def test_long_names_are_cut_in_the_middle() -> None:
    assert shortened("a" * 60) == "a" * 60 and len(shortened("b" * 61)) == 59 and "\u2026" in shortened("b" * 300)


def test_markdown_keeps_one_row_per_row() -> None:
    table = pd.DataFrame({"model": NAMES[:-1], "value": range(len(NAMES) - 1)})
    lines = render(table, format="md").splitlines()
    assert len(lines) == len(NAMES) + 1
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3, line
        assert "<" not in line and not re.search(r"(?<!\\)[`\[]", line)
    assert for_markdown("a_b-c") == "a_b-c"


def test_csv_reads_back_with_one_row_per_name() -> None:
    table = pd.DataFrame({"model": NAMES[:-1], "value": [0.5] * (len(NAMES) - 1)})
    rows = list(csv.reader(io.StringIO(render(table, format="csv"))))
    assert len(rows) == len(NAMES)
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)


@pytest.fixture(scope="module")
def table(synthetic) -> pd.DataFrame:
    return synthetic.table()


class _Tags(HTMLParser):
    """Elements and event attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [key for key, value in attrs if key.startswith("on") or "javascript:" in (value or "")]


def named(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The table with one model for each name, each with the rows of its first model, and odd data set and attack names."""
    first = table[table["model"] == table["model"].iloc[0]]
    return pd.concat([first.assign(model=name) for name in names], ignore_index=True)


@pytest.mark.parametrize("names", [FEW, pytest.param(NAMES[:-1], marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_report_of_odd_names_is_whole_and_inactive(table: pd.DataFrame, tmp_path: Path, names: list[str]) -> None:
    paths = write_reports(named(table, names), tmp_path)  # no text of a table can hold half a character
    assert {"report.html", "leaderboard.md", "table.csv", "security_curve.png"} <= {path.name for path in paths}
    page = _Tags()
    page.feed((tmp_path / "report.html").read_text())
    assert not page.active and "script" not in page.tags
    for file in tmp_path.glob("*.md"):
        assert "<script" not in file.read_text() and "\x1b" not in file.read_text()
    for file in tmp_path.glob("*.csv"):
        cells = [cell for row in csv.reader(io.StringIO(file.read_text())) for cell in row]
        texts = [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
        wrong = [text for text in texts if text != "-" and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text)]
        assert not wrong, wrong
    for file in tmp_path.glob("*.svg"):
        assert "<script" not in file.read_text()


def test_a_table_on_the_screen_holds_no_escape_codes(table: pd.DataFrame) -> None:
    buffer = io.StringIO()
    show(named(table.head(20), NAMES[:-1]), console=Console(file=buffer, width=200, color_system=None))
    assert all(c.isprintable() or c == "\n" for c in buffer.getvalue())
