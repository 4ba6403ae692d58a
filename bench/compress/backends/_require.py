"""Runtimes that robench works without."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from robench.errors import NotInstalledError, must


def require(module: str, *, extra: str) -> Any:
    """A module of an optional dependency, imported.

    Args:
        module: Its dotted name.
        extra: The extra of robench that installs it.

    Raises:
        NotInstalledError: It cannot be imported; what needs it is skipped, and the text says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'robench[{extra}]' and run the same command again"
        raise NotInstalledError(must(f"the library {module.partition('.')[0]}", "installed", str(error), remedy)) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, what libraries print, warn and log below an error goes nowhere: standard output is for tables."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
