"""The embedded zoo: small nets on digits with their weights. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

from robench.zoo.entries import NAMES

__all__ = ["NAMES", "ZOO", "build", "load"]

_LAZY = {"ZOO": "robench.zoo.entries", "build": "robench.zoo.building", "load": "robench.zoo.loading"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robench.zoo' has no attribute {name!r}")
