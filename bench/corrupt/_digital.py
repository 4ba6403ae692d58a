"""Fewer pixels; on 8-bit images, as the published code's are."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from robench.corrupt._noise import to_grey
from robench.ops.random import Draws
from robench.registry import facts

_NUDGE = 2.0**-10
"""Less than the distance of any mean of fewer than 500 whole numbers from half way, more than float32's error."""
_BITS = 22
"""Fractional bits of Pillow's 8-bit resampling weights (``Resample.c``)."""


@facts(version=1, level="share of the side that is left", harder="down", family="digital", grid=True)
def pixelate(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images shrunk to int(side * level) pixels by box averaging and enlarged again, on the 8-bit grid; (N, C, H, W).

    Bit-equal to Pillow's two ``resize(..., Image.Resampling.BOX)``.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    height, width = x.shape[-2:]
    return _through_boxes(x, int(height * level), int(width * level))


@facts(version=1, level="share of the side that is left", harder="down", family="digital", own=True,
       grid=True)  # fmt: skip
def pixelate_uneven(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """As ``pixelate``, with the columns rounded up, (N, C, H, W): finer steps between few pixels."""
    height, width = x.shape[-2:]
    return _through_boxes(x, int(height * level), math.ceil(width * level))


def _through_boxes(x: Tensor, rows: int, cols: int) -> Tensor:
    """Images shrunk to rows x cols pixels (at least one each) and enlarged again, on the 8-bit grid."""
    pixels = to_grey(x)
    small = _box(_box(pixels, max(1, cols), dim=-1), max(1, rows), dim=-2)
    for dim in (-1, -2):  # enlarging, a box holds one pixel
        small = _summed(small, _boxes(small.shape[dim], x.shape[dim])[0], dim=dim)
    return small.div_(255)


def _box(pixels: Tensor, size: int, *, dim: int) -> Tensor:
    """Resize one axis of whole float32 pixels by box averaging, rounded like Pillow."""
    filled, share, half = _boxes(pixels.shape[dim], size)
    shape = (1, -1) if dim == -1 else (-1, 1)
    share, half = (part.to(pixels.device).reshape(shape) for part in (share, half))
    return _summed(pixels, filled, dim=dim).mul_(share).add_(half).floor_()


def _summed(pixels: Tensor, filled: Tensor, *, dim: int) -> Tensor:
    """Sums (..., size) or (..., size, W) of the pixels that a matrix (size, old) of zeros and ones chooses."""
    filled = filled.to(pixels.device)
    return pixels @ filled.T if dim == -1 else filled @ pixels


@lru_cache(maxsize=64)
def _boxes(old: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which old pixels lie in each new one (size, old), one over their number, and what rounds their mean, (size,) each.

    A mean that lies half way goes where Pillow's weight of ``_BITS`` bits puts it.
    """
    spans = [_span(i, old, old / size) for i in range(size)]
    filled = torch.zeros(size, old)
    for row, (first, last) in zip(filled, spans, strict=True):
        row[first:last] = 1
    counts = [last - first for first, last in spans]
    up = [int(0.5 + 2.0**_BITS / count) * count >= 2**_BITS for count in counts]
    half = torch.tensor([0.5 + (_NUDGE if above else -_NUDGE) for above in up])
    return filled, 1 / torch.tensor(counts, dtype=torch.float32), half


def _span(i: int, old: int, scale: float) -> tuple[int, int]:
    """First and one-past-last old pixel in the box of new pixel ``i``; the box is open at its start."""
    centre, side = (i + 0.5) * scale, max(scale, 1.0)
    first, last = max(0, int(centre - side / 2 + 0.5)), min(old, int(centre + side / 2 + 0.5))
    inside = [p for p in range(first, last) if -0.5 < (p - centre + 0.5) * (1 / side) <= 0.5]
    return inside[0], inside[-1] + 1
