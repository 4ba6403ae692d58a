"""Which letters pictures can be drawn with: fonts that have those of a name, and names without letters that no font has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from matplotlib.font_manager import fontManager, get_font

OWN = "DejaVu Sans"
"""The font that comes with matplotlib."""
_NO_LETTERS = "Last Resort"
"""How the name of a font begins that has a box for every letter."""


@lru_cache(maxsize=512)
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has letters for; none where it cannot be read."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def families(texts: Iterable[str], *, known: Iterable[tuple[str, str]] | None = None) -> tuple[list[str], frozenset[str]]:
    """Fonts that have the letters of some texts, matplotlib's own first, and the letters that none has.

    Args:
        texts: What is to be drawn.
        known: (family, file) of the fonts to look in after matplotlib's own; by default all that are installed.
    """
    every = [(font.name, font.fname) for font in fontManager.ttflist] if known is None else list(known)
    own = next(font.fname for font in fontManager.ttflist if font.name == OWN)
    missing = {ord(letter) for text in texts for letter in text} - _letters(own)
    found = [OWN]
    for family, path in sorted(every) if missing else ():
        if not family.startswith(_NO_LETTERS) and missing & _letters(path):
            missing -= _letters(path)
            found.append(family)
    return found, frozenset(map(chr, missing))


def spelled(text: str, missing: frozenset[str]) -> str:
    r"""The text with the letters that no font has written out, as ``\u732b``."""
    return "".join(c.encode("unicode_escape").decode() if c in missing else c for c in text)
