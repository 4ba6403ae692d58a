from __future__ import annotations

import io

import pytest

from robench import progress
from robench.cli import main
from robench.progress import Line, silent, telling


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What the last line shows after everything that was written."""
        shown = ""
        for part in self.getvalue().split("\n")[-1].split("\r"):
            shown = part + shown[len(part) :]
        return shown.rstrip()


def test_a_terminal_shows_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    stream = Terminal()
    line = Line(stream)
    line("drawing a long picture name", 0, 1)
    assert stream.screen() == "drawing a long picture"
    line("cells", 3, 56)
    assert stream.screen() == "cells: 3/56"
    line("cells", 56, 56)
    assert stream.screen() == "cells: 56/56"
    line.clear()
    assert stream.screen() == "" and "\n" not in stream.getvalue()


@pytest.mark.parametrize("asked", [False, True])
def test_a_file_gets_few_lines_and_each_end(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """And its first one at once only if somebody asked for it."""
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    line = Line(stream, asked=asked)
    for what, done, total, seconds in (
        ("reading", 0, 1, 0), ("trying", 0, 1, 1), ("cells", 1, 9, 2), ("cells", 2, 9, 11), ("cells", 9, 9, 12),
        ("x", 1, 1, 13),
    ):  # fmt: skip
        now[0] = seconds
        line(what, done, total)
    line.clear()
    assert stream.getvalue() == "reading ...\n" * asked + "cells: 2/9\ncells: 9/9\n"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    stream = Terminal()
    Line(stream)("\x1b[2J\r", 0, 1)
    assert "\x1b" not in stream.getvalue() and "\\x1b" in stream.getvalue()


@pytest.mark.parametrize(("verbose", "terminal", "shown"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)])  # fmt: skip  # noqa: E501
def test_the_python_api_speaks_to_terminals_and_on_request(monkeypatch, verbose, terminal, shown) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with telling(verbose=verbose) as tell:
        tell("cells", 0, 9)
    assert ("cells: 0/9" in stream.getvalue()) is shown
    if terminal:
        assert stream.screen() == ""


@pytest.mark.parametrize(
    "args", [["run", "--model", "nosuch", "--suite", "smoke"], ["report", "nowhere"], ["verify", "nowhere"]]
)
def test_an_error_takes_the_commands_line_off_first(monkeypatch, tmp_path, args) -> None:
    stream = Terminal()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(SystemExit) as ended:
        main.main(args)
    assert ended.value.code == 2
    shown = [part for part in stream.getvalue().split("\r") if part.strip()]
    assert len(shown) > 1 and shown[0].endswith(" ...") and shown[-1].startswith("robench: ")


def test_the_callers_own_progress_is_used_as_it_is() -> None:
    with telling(silent, verbose=True) as tell:
        assert tell is silent
