"""Whether images and labels are what robench speaks of; used by the loaders and by the Python API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robench.errors import ConfigError, DataError, must, suggestion

_ROUNDING = 1e-5
"""An excess up to this is arithmetic (a resize, a round trip through another range), not another unit."""


def check_images(x: Any) -> Tensor:
    """The same images, once they are known to be usable.

    Args:
        x: float32 (N, C, H, W), N at least 1, finite and in [0, 1].

    Raises:
        DataError: Not a tensor, wrong dtype or shape, NaN or infinite, or outside [0, 1].
    """
    if not isinstance(x, Tensor):
        raise DataError(must("images", "a torch.Tensor", type(x).__name__, "convert with torch.as_tensor"))
    if x.dtype != torch.float32:
        remedy = "divide by 255: x.float() / 255" if x.dtype == torch.uint8 else "convert with x.float()"
        raise DataError(must("images", "float32 in [0, 1]", str(x.dtype), remedy))
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(must("images", "of shape (N, C, H, W), none of them 0", tuple(x.shape), "add or reorder dimensions"))
    _check_range(x.detach())
    return x


def _check_range(x: Tensor) -> None:
    bad = ~torch.isfinite(x).flatten(1).all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        got = f"NaN or infinity in {int(bad.sum())} images, first at row {row}"
        raise DataError(must("images", "finite", got, "repair or leave out these images"))
    low, high = float(x.min()), float(x.max())
    excess = max(-low, high - 1.0)
    if excess > 0:
        got = f"values from {low:.9g} to {high:.9g}, outside by {excess:.3g}"
        raise DataError(must("images", "in [0, 1]", got, _range_remedy(low, high, excess)))


def _range_remedy(low: float, high: float, excess: float) -> str:
    if excess <= _ROUNDING:
        return "rounding only: clamp with x.clamp(0, 1)"
    if low >= 0 and 2 < high <= 255:
        return "divide by 255 if these are 8-bit values"
    return "pass plain pixels: normalisation belongs in the model (robench.models.Normalised)"


def check_labels(y: Any, num_classes: int) -> Tensor:
    """The same labels, once they are known to be usable.

    Args:
        y: int64 (N,), each in 0..num_classes-1.
        num_classes: Number of classes.

    Raises:
        DataError: Not a tensor, wrong dtype or shape, or a label out of range.
    """
    if not isinstance(y, Tensor):
        raise DataError(must("labels", "a torch.Tensor", type(y).__name__, "convert with torch.as_tensor"))
    if y.dtype != torch.int64:
        raise DataError(must("labels", "int64", str(y.dtype), "convert with y.long() if they are class indices"))
    if y.ndim != 1:
        raise DataError(must("labels", "of shape (N,)", tuple(y.shape), "give one class index per image"))
    bad = ((y < 0) | (y >= num_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        got = f"{int(y[row])} at row {row} ({len(bad)} such labels)"
        remedy = "count classes from 0, or correct the number of classes"
        raise DataError(must("labels", f"in 0..{num_classes - 1}", got, remedy))
    return y


def check_split(split: str, splits: Sequence[str]) -> str:
    """The same split, once it is known to exist.

    Raises:
        ConfigError: The data set has no such split.
    """
    if split not in splits:
        raise ConfigError(must("split", "one of " + ", ".join(splits), split, suggestion(split, splits)))
    return split
