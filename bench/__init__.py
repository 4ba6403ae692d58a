"""robench: can an image model be trusted? Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Estimate",
    "Ref",
    "ThreatModel",
    "attack",
    "binarization_test",
    "evaluate",
    "load",
    "load_data",
    "load_model",
    "read_suite",
    "run",
]

_LAZY = {
    "Estimate": "robench.spec",
    "Ref": "robench.spec",
    "ThreatModel": "robench.spec",
    "attack": "robench.evaluation",
    "binarization_test": "robench.binarization",
    "evaluate": "robench.evaluation",
    "load": "robench.api",
    "load_data": "robench.loading",
    "load_model": "robench.loading",
    "read_suite": "robench.suite",
    "run": "robench.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
