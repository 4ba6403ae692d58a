"""Texts that others wrote (names of files and models, classes, error messages), made harmless for where they are shown.

HTML is escaped by the page's templates (Jinja's autoescape). The rest goes through here.
"""

from __future__ import annotations

import re

_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make spreadsheet programs take a cell for a formula (OWASP, CSV injection)."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")
_MARKDOWN = re.compile(r"([\\`*|<>\[\]])")


def visible(text: str) -> str:
    r"""The text with every character that is not printed written out, as ``\x1b`` or ``\u202e``; one line.

    These are control characters (a terminal obeys ESC sequences), marks of direction (they reorder what is read), characters
    without width, separators of lines, and halves of surrogate pairs (they cannot be encoded).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\u00a0" else c.encode("unicode_escape").decode("ascii") for c in text)


def visible_lines(text: str) -> str:
    """``visible`` for a text whose line breaks and tabs are robench's own."""
    return "\n".join("\t".join(visible(part) for part in line.split("\t")) for line in text.split("\n"))


def for_markdown(text: str) -> str:
    """One cell of a Markdown table: no HTML, no links, no code, no further cell and no further row."""
    return _MARKDOWN.sub(r"\\\1", visible(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def for_csv(text: str) -> str:
    """One text cell of a CSV file: an apostrophe before what a spreadsheet would take for a formula.

    Numbers stay, and so does a sign alone (the rank of a model that has none).
    """
    if len(text) > 1 and text.startswith(_SIGNS) and not _NUMBER.fullmatch(text):
        return "'" + visible(text)
    return visible(text)


def shortened(text: str, length: int = 60) -> str:
    """``visible``, cut in the middle where it is longer than a picture or a column can show."""
    shown = visible(text)
    half = (length - 1) // 2
    return shown if len(shown) <= length else f"{shown[:half]}\u2026{shown[-half:]}"
