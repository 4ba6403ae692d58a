"""Signs of life on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TextIO

from robench.escape import visible
from robench.screen import cells, screen_width

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done and how many there are; 1 where they are not counted."""
WARNING = "WARNING: "
"""How an announced line begins that must not be lost."""
_OFTEN, _SELDOM = 0.2, 10.0
"""Seconds between two lines: on a terminal, where they replace each other, and in a file, which keeps them."""


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


class Line:
    """Shows progress on a stream; a change of what is done is shown at once.

    Args:
        stream: Where to; by default stderr as it is at the time of each call.
        asked: Whether somebody asked for it: then a file gets its first line at once, too, and not only after a while, so
            that a short command leaves nothing in a log but what it says.
    """

    def __init__(self, stream: TextIO | None = None, *, asked: bool = False) -> None:
        self._stream = stream
        self._last, self._what, self._shown = -_SELDOM if asked else monotonic(), "", 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show ``what: done/total``, or only ``what`` where nothing is counted."""
        stream = self._stream or sys.stderr
        terminal = is_terminal(stream)
        new = what != self._what if terminal else done == total > 1
        if not new and done != total and monotonic() - self._last < (_OFTEN if terminal else _SELDOM):
            return
        if not terminal and done == total == 1:
            return
        self._last, self._what = monotonic(), what
        text = visible(f"{what}: {done}/{total}" if total > 1 else f"{what} ...")
        with suppress(OSError):  # nowhere to say it
            self._over(text, stream) if terminal else stream.write(f"{text}\n")
            stream.flush()

    def clear(self) -> None:
        """Take the line off the terminal, before other lines and at the end."""
        stream = self._stream or sys.stderr
        if self._shown:
            with suppress(OSError):
                self._over("", stream)
                stream.write("\r")
                stream.flush()

    def _over(self, text: str, stream: TextIO) -> None:
        """Write over what the terminal's line shows; a text of several lines could not be written over."""
        text = text[: max((screen_width(stream) or 80) - 1, 1) - (cells(text) - len(text))]
        stream.write("\r" + text + " " * (self._shown - cells(text)))
        self._shown = cells(text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may be looking at a stream right now."""
    with suppress(OSError, ValueError, AttributeError):
        return bool(stream is not None and stream.isatty())
    return False


@contextmanager
def telling(progress: Progress | None = None, *, verbose: bool | None = None) -> Iterator[Progress]:
    """What a function of the Python API tells its progress to, while it runs.

    Args:
        progress: The caller's own, which is used as it is.
        verbose: Whether a line on stderr is shown; by default only where stderr is a terminal.
    """
    if progress is not None:
        yield progress
    elif is_terminal(sys.stderr) if verbose is None else verbose:
        line = Line(asked=bool(verbose))
        try:
            yield line
        finally:
            line.clear()
    else:
        yield silent
