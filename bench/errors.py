"""Errors that a user can act on. Every text reads: what must be, expected, got; remedy."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class RobenchError(Exception):
    """Base of every error robench raises on purpose; the command line prints it without a traceback."""

    exit_code = 2


class ConfigError(RobenchError):
    """A name, an option, a suite or a threat model that cannot be used."""


class UnfitError(ConfigError):
    """An entry of a suite that does not fit the data or the models of a run; adapting suites leave it out with a note."""


class DataError(RobenchError):
    """Images, labels or data files that are missing, damaged or out of range."""


class ModelError(RobenchError):
    """A model or its weights that cannot be loaded, or that misbehaves while it is measured."""


class OutputError(ModelError):
    """What a model returned holds no logits."""


class ExitError(ModelError):
    """A model whose code ends the process that it runs in."""


class AttackError(RobenchError):
    """An attack that could not run on a model; its samples become ``unknown``, never robust."""


class NoGradientError(AttackError):
    """The model returned no input gradient, so a gradient attack says nothing about it."""


class NotInstalledError(RobenchError):
    """An optional library that is not there; what needs it is skipped with the remedy, and the run goes on."""


class StoreError(RobenchError):
    """A run directory that cannot be read or written."""


LINE = 400
"""Most characters of an error's line on the screen."""


class _Values(reprlib.Repr):
    """Values as they are shown in errors: cut where they are long or deep, so that the effort is small for any value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong = 4, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 8
        self.maxstring = self.maxother = 240

    def repr_int(self, x: int, level: int) -> str:
        """Digits of an integer; of one with thousands its size, since Python refuses to write those."""
        return super().repr_int(x, level) if x.bit_length() < 4000 else f"an integer of {x.bit_length()} bits"


_VALUES = _Values()


def must(what: str, expected: str, got: Any, remedy: str) -> str:
    """The house's error text: ``<what> must be <expected>, got <value>; <remedy>``; a long value is cut."""
    return f"{what} must be {expected}, got {_VALUES.repr(got)}; {remedy}"


def one_line(text: str, most: int = LINE) -> str:
    """A text without line breaks, cut in its middle when it is longer than ``most`` characters."""
    line = " ".join(text[: 40 * most].split())
    half = (most - 3) // 2
    return line if len(line) <= most else f"{line[: most - 3 - half]}...{line[-half:]}"


def described(error: BaseException) -> str:
    """``Class: words`` of an exception, also of one whose words cannot be made."""
    if isinstance(error, SystemExit):
        return f"the model's code ended the process by sys.exit({error.code!r})"
    try:
        words = str(error)
    except BaseException:  # noqa: BLE001  the class may be a user's
        words = "(its text cannot be made)"
    return f"{type(error).__name__}: {words}"


SHOWN = 12
"""Most names that an error lists."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names[:SHOWN]) + more
