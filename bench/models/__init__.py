"""Architectures as plain torch code, and how a user's model is loaded. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

TABLE: dict[str, str] = {
    "mlp": "robench.models._mlp:mlp",
    "quantised_cnn": "robench.models._small_cnn:quantised_cnn",
    "resnet18": "robench.models._residual:resnet18",
    "small_cnn": "robench.models._small_cnn:small_cnn",
    "vit": "robench.models._vit:vit",
    "wrn": "robench.models._residual:wrn",
}
"""Name of an architecture -> ``module:function``."""

__all__ = ["TABLE", "Normalised", "fresh", "initialise", "load_model", "weights_sha256"]

_LAZY = {
    "Normalised": "robench.models.wrap",
    "fresh": "robench.models.weights",
    "initialise": "robench.models.weights",
    "load_model": "robench.models.load",
    "weights_sha256": "robench.models.weights",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robench.models' has no attribute {name!r}")
