"""Losses of JPEG files."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from robench.corrupt._digital import to_bytes
from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, level="quality", harder="down", family="digital")
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


@facts(version=1, level="quality", harder="down", family="digital", own=True)
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
