"""Errors that a user can act on. Every text reads: what must be, expected, got; remedy."""

from __future__ import annotations

import difflib
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


class AttackError(RobenchError):
    """An attack that could not run on a model; its samples become ``unknown``, never robust."""


class NoGradientError(AttackError):
    """The model returned no input gradient, so a gradient attack says nothing about it."""


class NotInstalledError(RobenchError):
    """An optional library that is not there; what needs it is skipped with the remedy, and the run goes on."""


class StoreError(RobenchError):
    """A run directory that cannot be read or written."""


def must(what: str, expected: str, got: Any, remedy: str) -> str:
    """The house's error text: ``<what> must be <expected>, got <value>; <remedy>``."""
    return f"{what} must be {expected}, got {got!r}; {remedy}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)
