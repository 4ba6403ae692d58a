from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module ``tests/metrics/synthetic.py``, which makes frames."""
    path = Path(__file__).parents[1] / "metrics" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_frames", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
