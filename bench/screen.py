"""Text on a terminal: how many columns there are, how many a text takes, and lines that fit into them."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

ORDINARY = 120
"""Columns that tables are laid out for where nothing says how wide the reader's screen is (a file, a CI log)."""
_BREAKS = re.compile(r"(?<=[-_/,.=(|: ])")
"""After these a long name may go on in the next line."""


def screen_width(stream: Any) -> int | None:
    """Columns that a stream is shown in: the environment variable ``COLUMNS``, else the terminal's; None for files."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told[:6]) > 0:
        return int(told[:6])
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def cells(text: str) -> int:
    """Columns that a printable text takes: two for each wide letter (Chinese, Japanese, Korean), none for an accent."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, width: int | None, *, indent: int = 2) -> str:
    """A line cut at blanks into lines of at most ``width`` columns.

    A word that is longer, such as a path, stays whole, so that it can be copied.

    Args:
        text: One line; blanks that it begins with are kept.
        width: Columns of the screen; None leaves the line as it is.
        indent: Blanks before every line but the first, besides those that the text begins with.
    """
    if width is None or cells(text) <= width:
        return text
    start = text[: len(text) - len(text.lstrip(" "))]
    lines, line = [], start
    for word in re.findall(r" *[^ ]+", text[len(start) :]):
        if line.strip() and cells(line) + cells(word) > width:
            lines.append(line)
            line, word = start + " " * indent, word.lstrip(" ")
        line += word
    return "\n".join([*lines, line])


def wrapped_lines(text: str, width: int | None, *, indent: int = 2) -> str:
    """``wrapped`` for every line of a text."""
    return "\n".join(wrapped(line, width, indent=indent) for line in text.split("\n"))


def folded(name: str, width: int) -> list[str]:
    """A name in pieces of at most ``width`` columns, cut after its own marks (``-``, ``_``, ``/``, ``|``) where possible."""
    lines = [""]
    for part in _BREAKS.split(name):
        if cells((lines[-1] + part).rstrip()) <= width:
            lines[-1] += part
        else:
            lines += _chopped(part, width)
    return [line for line in lines if line] or [""]


def _chopped(text: str, width: int) -> list[str]:
    lines = [""]
    for letter in text:
        if lines[-1] and cells(lines[-1] + letter) > width:
            lines.append("")
        lines[-1] += letter
    return lines


def shortened_words(text: str, most: int) -> str:
    """A text cut after a whole word where it is longer than ``most`` characters, with a mark that it goes on."""
    if len(text) <= most:
        return text
    cut = text[: most - 4]
    return f"{cut[: cut.rfind(' ')] if ' ' in cut else cut} ..."
