"""What a run prints at its end reads at every width of the screen, and says nothing that the table does not."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.audit import audit
from robench.reports.leaderboard import leaderboard
from robench.reports.terminal import board_lines, finding_lines
from robench.screen import cells

LONG = "suspicious: " + "gradients are zero on the samples that matter, " * 20 + "yes; second reason; third reason"


@pytest.fixture(scope="module")
def board(synthetic) -> pd.DataFrame:
    return leaderboard(tidy(synthetic.frames()))


def texts(board: pd.DataFrame, width: int, main: str = "") -> list[str]:
    return [line for line, _ in board_lines(board, width=width, main=main)]


def odd(board: pd.DataFrame) -> pd.DataFrame:
    """Long and wide names, several data sets, unequal n, long reasons."""
    names = ["release/of-the-year/resnet18_robust.safetensors", "猫" * 30, "plain"]
    verdicts = [LONG, "not enough samples: 5", "sound; measured on fewer samples"]
    return board.assign(
        model=names, validity=verdicts, n=[60, 5, 0], dataset=["folder:photos", "digits", "digits"], rank_high="3"
    )


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_screen(board: pd.DataFrame, width: int) -> None:
    for table in (board, odd(board)) if width >= 80 else (board,):
        lines = texts(table, width)
        assert max(map(cells, lines)) <= width, lines
        assert "".join(lines).count("suspicious") >= 1


@pytest.mark.parametrize("width", [80, 120])
def test_what_counts_is_always_there(board: pd.DataFrame, width: int) -> None:
    lines = texts(board, width, "robust@linf(8/255)")
    head, row = " ".join(lines[:2]), next(line for line in lines if "trained" in line)
    for word in ("rank", "model", "robust %", "at linf(8/255)", "clean %", "verdict"):
        assert word in head
    assert "50.0 [37.7, 62.3]" in row and "sound" in row and row.split()[:2] == ["1", "trained"]
    assert "n = 60 images" in "\n".join(lines)


def test_columns_come_with_room_and_the_rest_is_named(board: pd.DataFrame) -> None:
    narrow, wide = "\n".join(texts(board, 80)), "\n".join(texts(board, 400))
    assert "not shown for want of room" in narrow and "data_efficiency" in narrow
    assert "not shown" not in wide and "corrupted %" in wide and "data\n" not in wide
    shown = [c for c in board if f"{c}_low" in board and c != "rank" and board[c].notna().any()]
    named = [c for c in shown if c in narrow.partition("not shown")[2]]
    assert named and set(shown) - set(named) >= {"clean"}


def test_a_long_reason_is_short_and_says_how_many_follow(board: pd.DataFrame) -> None:
    lines = board_lines(odd(board), width=80)
    note = [line for line, style in lines if style == "red" and "release/of" in line and ": suspicious:" in line]
    assert len(note) == 1
    whole = " ".join(line.strip() for line, _ in lines)
    assert "... (and 2 more)" in whole and "third reason" not in whole
    assert [line for line, style in lines if style == "yellow"] == ["plain: measured on fewer samples"]


def test_models_with_one_reason_share_its_note(board: pd.DataFrame) -> None:
    same = board.assign(validity="limited: not all samples were asked for")
    notes = [line for line in texts(same, 120) if "not all samples" in line]
    assert len(notes) == 1 and all(model in notes[0] for model in board["model"])


def test_a_run_without_results_says_so(board: pd.DataFrame) -> None:
    assert texts(board.iloc[:0], 80) == ["no results yet"]


def test_findings_say_what_was_judged_where_and_why(synthetic) -> None:
    table = tidy(synthetic.frames())
    lines = "\n".join(finding_lines(audit(table, ["robust_accuracy[linf(8/255)]>=0.45"]).findings))
    assert "FAILED    trained on digits: robust_accuracy[linf(8/255)]>=0.45" in lines
    assert "measured 0.5 at linf(8/255), judged by the interval's worse end 0.3774" in lines
    assert "    0.3774 is not >= 0.45" in lines
