"""The reference implementation, where it is installed."""

from __future__ import annotations

import importlib

import pytest

from robench.corruptbench import PACKAGE, reference


@pytest.fixture(scope="session")
def published_code():
    """``imagecorruptions.corruptions`` with what current libraries dropped in its place."""
    pytest.importorskip("imagecorruptions", reason="imagecorruptions is not installed", exc_type=ImportError)
    reference()
    return importlib.import_module(f"{PACKAGE}.corruptions")
