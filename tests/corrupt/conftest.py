"""The reference implementation, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from robench.corruptbench import PACKAGE, reference


@pytest.fixture(scope="session")
def published_code():
    """``imagecorruptions.corruptions`` with what current libraries dropped in its place."""
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed")
    reference()
    return importlib.import_module(f"{PACKAGE}.corruptions")
