"""Training recipes (batch losses) and inference-time defences. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

TABLE_RECIPES: dict[str, str] = {
    "augmented": "robench.defenses._augmented:augmented",
    "augmix_jsd": "robench.defenses._augmix:augmix_jsd",
    "distilled": "robench.defenses._distilled:distilled",
    "pgd_at": "robench.defenses._adversarial:pgd_at",
    "standard": "robench.defenses._standard:standard",
    "trades": "robench.defenses._adversarial:trades",
}
"""Name of a recipe -> ``module:function``, a batch loss ``f(model, x, y, *, draws, step, ...)``."""

TABLE_AUGMENTATIONS: dict[str, str] = {
    "augmix": "robench.defenses._augmix:augmix",
    "crop": "robench.defenses._flip_crop:crop",
    "cutmix": "robench.defenses._mixing:cutmix",
    "cutout": "robench.defenses._cutting:cutout",
    "flip_crop": "robench.defenses._flip_crop:flip_crop",
    "mixup": "robench.defenses._mixing:mixup",
    "randaugment": "robench.defenses._policies:randaugment",
    "rotation": "robench.defenses._cutting:rotation",
    "trivialaugment": "robench.defenses._policies:trivialaugment",
}
"""Name of an augmentation -> ``module:function``, ``f(x, y, *, num_classes, draws, step, ...) -> (x, y)`` on a batch of a
training; the labels that come back are int64 (N,), or float (N, num_classes) where classes are mixed."""

TABLE: dict[str, str] = {
    "bit_depth": "robench.defenses._bit_depth:bit_depth",
    "jpeg": "robench.defenses._jpeg:jpeg",
}
"""Name of an inference-time defence -> ``module:function``, ``f(model, *, ...)``, which returns the defended model."""

_FUNCTIONS = ("bridged", "gradient_holes", "substitute")
"""Substitute gradients for what lets none through, from ``robench.bpda``, which attacks may import too."""


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("robench.bpda"), name)
    raise AttributeError(f"module 'robench.defenses' has no attribute {name!r}")
