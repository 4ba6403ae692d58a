"""What the arguments of plug-ins may be, so that a plan refuses what would only fail in its cells. Standard library only.

The type is that of the parameter's default. The range is the entry's own fact ``ranges={"bits": "1..8"}``, or the one
that parameters of this name have everywhere, unless the entry's default lies outside of it: then it means something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_ONE_OR_MORE = (
    "steps", "restarts", "draws", "queries", "pairs", "directions", "searches", "candidates", "together", "max_iter",
    "num_classes", "in_channels", "width", "depth", "heads", "dim", "hidden", "levels", "patch", "size", "batch_size",
    "group", "window", "stride", "k", "parts", "n", "severity",
)  # fmt: skip
_ZERO_OR_MORE = (
    "targets", "pad", "m", "detail", "ti", "mi", "momentum", "confidence", "overshoot", "threshold", "factor", "degrees",
    "rotation", "shift", "noise", "weight", "eps", "beta", "smoothing", "alpha",
)  # fmt: skip
_ABOVE_ZERO = (
    "step_size", "rate", "sigma", "delta", "lr", "temperature", "init_norm", "constant", "eta", "alpha_max",
)  # fmt: skip
COMMON: dict[str, str] = {
    **dict.fromkeys(_ONE_OR_MORE, ">= 1"),
    **dict.fromkeys(_ZERO_OR_MORE, ">= 0"),
    **dict.fromkeys(_ABOVE_ZERO, "> 0"),
    **dict.fromkeys(("amount", "share", "p", "p_init", "di", "rho", "shrinkage", "gamma", "shrink", "shortcut"), "0..1"),
    "quality": "1..100",
    "percentile": "0..100",
    "seed": ">= 0",
}
"""Ranges of parameters by name, as every plug-in of robench means them."""


def expected(key: str, value: Any, *, default: Any, own: Mapping[str, str]) -> str:
    """What a value must be, in words, when it is not; empty when it may be passed.

    Args:
        key: The parameter's name.
        value: As it was written.
        default: The parameter's default; its type is required, where it is not None.
        own: The entry's own ranges by parameter.
    """
    wanted = _type(value, default)
    if wanted:
        return wanted
    range_ = own.get(key) or COMMON.get(key, "")
    if range_ and default is None and value is not None and not _is_number(value):
        return "a number"
    meant = key in own or not _is_number(default) or _within(default, range_)
    if not range_ or not meant or not _is_number(value) or _within(value, range_):
        return ""
    return f"in {range_}" if ".." in range_ else range_


def _type(value: Any, default: Any) -> str:
    """The kind of value that a default asks for, when the value is of another."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    kinds: list[tuple[type | tuple[type, ...], str]] = [(bool, "True or False"), (str, "a text in quotes")]
    kinds += [(int, "a whole number"), (float, "a number"), (tuple, "a list")]
    for kind, words in kinds:
        if isinstance(default, kind):
            if kind is float:
                return "" if _is_number(value) else words
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            return "" if fits else words
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(value: float, range_: str) -> bool:
    """Whether a number is in a range written ``>= 1``, ``> 0`` or ``0..1``."""
    if not range_:
        return True
    low, dots, high = range_.partition("..")
    if dots:
        return float(low) <= value <= float(high)
    sign, _, bound = range_.partition(" ")
    return value >= float(bound) if sign == ">=" else value > float(bound)
