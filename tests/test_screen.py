from __future__ import annotations

import pytest

from robench.screen import cells, folded, screen_width, shortened_words, wrapped, wrapped_lines


def test_lines_are_cut_at_blanks_and_words_stay_whole() -> None:
    text = "left out: transfer from a model of other classes, see /a/path/that/is/longer/than/the/screen.txt for more"
    lines = wrapped(text, 30).split("\n")
    assert [line for line in lines if cells(line) > 30] == ["  /a/path/that/is/longer/than/the/screen.txt"]
    assert " ".join(line.strip() for line in lines) == text
    assert all(line.startswith("  ") for line in lines[1:])


def test_without_a_width_and_where_it_fits_nothing_changes() -> None:
    assert wrapped("a b c", None) == wrapped("a b c", 5) == "a b c"
    assert wrapped_lines("a  b\n\n  c", 4) == "a  b\n\n  c"
    assert wrapped("  name  word word", 13, indent=4) == "  name  word\n      word"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("猫", 2), ("e\u0301", 1), ("", 0)])
def test_columns_of_letters(text: str, columns: int) -> None:
    assert cells(text) == columns


@pytest.mark.parametrize("width", [4, 9, 16])
def test_names_are_folded_after_their_marks_and_keep_every_letter(width: int) -> None:
    for name in ("digits-pgd-at", "prune(amount=0.9)|int8", "猫猫猫猫猫猫猫猫猫", "x" * 40, ""):
        pieces = folded(name, width)
        assert "".join(pieces) == name and all(cells(piece.rstrip()) <= width for piece in pieces)
    assert folded("digits-pgd-at", 11) == ["digits-pgd-", "at"]


def test_a_shortened_text_says_that_it_goes_on() -> None:
    assert shortened_words("one two three", 13) == "one two three"
    assert shortened_words("one two three", 12) == "one two ..."
    assert shortened_words("x" * 30, 10) == "xxxxxx ..."


def test_the_width_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert screen_width(None) == 80
    for useless in ("", "0", "wide", "-3"):
        monkeypatch.setenv("COLUMNS", useless)
        assert screen_width(None) is None
