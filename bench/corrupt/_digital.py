"""Losses of digital storage; both work on 8-bit images, as the files they imitate do."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import facts

_BITS = 22
"""Fractional bits of Pillow's 8-bit resampling weights (``Resample.c``)."""


@facts(version=1, level="share of the side that is left", harder="down")
def pixelate(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images shrunk to int(side * level) pixels by box averaging and enlarged again, on the 8-bit grid; (N, C, H, W).

    Bit-equal to Pillow's two ``resize(..., Image.Resampling.BOX)``.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    height, width = x.shape[-2:]
    return _through_boxes(x, int(height * level), int(width * level))


@facts(version=1, level="share of the side that is left", harder="down")
def pixelate_uneven(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """As ``pixelate``, with the columns rounded up, (N, C, H, W): finer steps between few pixels."""
    height, width = x.shape[-2:]
    return _through_boxes(x, int(height * level), math.ceil(width * level))


def _through_boxes(x: Tensor, rows: int, cols: int) -> Tensor:
    """Images shrunk to rows x cols pixels (at least one each) and enlarged again, on the 8-bit grid."""
    pixels = to_bytes(x)
    for tall, wide in ((max(1, rows), max(1, cols)), x.shape[-2:]):
        pixels = _box(_box(pixels, wide, dim=-1), tall, dim=-2)
    return pixels.float() / 255


def to_bytes(x: Tensor) -> Tensor:
    """Pixels in [0, 1] rounded to whole numbers 0..255, int64."""
    return (x.double() * 255).round().clamp(0, 255).to(torch.int64)


def _box(pixels: Tensor, size: int, *, dim: int) -> Tensor:
    """Resize one axis of int64 pixels by box averaging, rounded like Pillow (fixed point, half up)."""
    old = pixels.shape[dim]
    spans = [_span(i, old, old / size) for i in range(size)]
    start, stop = (torch.tensor(column, device=pixels.device) for column in zip(*spans, strict=True))
    weight = (0.5 + 2.0**_BITS / (stop - start).double()).long()
    shape = [-1 if d == dim % pixels.dim() else 1 for d in range(pixels.dim())]
    total = torch.full_like(pixels.index_select(dim, start), 1 << (_BITS - 1))
    for tap in range(max(last - first for first, last in spans)):
        here = (start + tap < stop).long() * weight
        total += pixels.index_select(dim, (start + tap).clamp(max=old - 1)) * here.reshape(shape)
    return (total >> _BITS).clamp(0, 255)


def _span(i: int, old: int, scale: float) -> tuple[int, int]:
    """First and one-past-last old pixel in the box of new pixel ``i``; the box is open at its start."""
    centre, side = (i + 0.5) * scale, max(scale, 1.0)
    first, last = max(0, int(centre - side / 2 + 0.5)), min(old, int(centre + side / 2 + 0.5))
    inside = [p for p in range(first, last) if -0.5 < (p - centre + 0.5) * (1 / side) <= 0.5]
    return inside[0], inside[-1] + 1


@facts(version=1, level="quality", harder="down")
def jpeg(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images written as JPEG files of quality ``level`` and read back by Pillow; (N, C, H, W) with 1 or 3 channels.

    Raises:
        DataError: Neither one nor three channels.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    if x.shape[1] not in (1, 3):
        raise DataError(must("images for jpeg", "of 1 or 3 channels", x.shape[1], "leave jpeg out of this suite"))
    pixels = to_bytes(x).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    files = np.stack([_through_file(image, math.floor(level)) for image in pixels]) if len(pixels) else pixels
    return torch.from_numpy(files).to(x.device).permute(0, 3, 1, 2).float() / 255


@facts(version=1, level="quality", harder="down")
def jpeg_thumbnail(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images shrunk to a quarter of their side, written as JPEG of quality ``level``, and enlarged again; (N, C, H, W).

    For the enlarged 8 x 8 digits, on whose smooth 32 x 32 pictures JPEG itself costs next to nothing.

    Raises:
        DataError: Neither one nor three channels.
    """
    if not len(x):
        return x
    small = functional.interpolate(x, size=(max(1, x.shape[2] // 4), max(1, x.shape[3] // 4)), mode="area")
    stored = jpeg(small, level, draws=draws)
    return functional.interpolate(stored, size=x.shape[2:], mode="bilinear", align_corners=False).clamp(0, 1)


def _through_file(image: np.ndarray, quality: int) -> np.ndarray:
    """One uint8 (H, W, C) picture through a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)
