"""Data sets: built-in names, prefixes for the user's own files, and the value they all return. Imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

TABLE: dict[str, str] = {
    "digits": "robench.data._digits:digits",
    "cifar10": "robench.data.cifar:cifar10",
    "cifar100": "robench.data.cifar:cifar100",
    "mnist": "robench.data.idx:mnist",
    "fashion_mnist": "robench.data.idx:fashion_mnist",
    "published_c": "robench.data.published:published_c",
}
"""Loaders ``f(*, split='test', ...) -> Dataset``; the fact ``flips`` says that a mirrored image keeps its label."""

PREFIXES: dict[str, str] = {
    "folder": "robench.data._folder:folder",
    "npz": "robench.data._npz:npz",
}
"""Loaders ``f(path, *, split='test', ...) -> Dataset``, named ``folder:PATH`` and ``npz:PATH``."""

_LAZY = {
    "Dataset": "robench.data.dataset",
    "subset": "robench.data.dataset",
    "fractions": "robench.data.dataset",
    "check_images": "robench.data.checks",
    "check_labels": "robench.data.checks",
}

__all__ = ["PREFIXES", "TABLE", "Dataset", "check_images", "check_labels", "fractions", "subset"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robench.data' has no attribute {name!r}")
