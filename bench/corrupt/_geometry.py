"""Changes of the pose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, level="degrees", harder="up", family="geometry", own=True)
def rotation(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images turned about their centre by +level or -level degrees, a fair coin per image; (N, C, H, W).

    Bilinear, black outside the picture; positive is counter-clockwise as seen. Not part of CIFAR-C: a choice of ours.
    """
    left = draws.bits("sign", (1,))[:, 0] % 2 == 0
    out = torch.empty_like(x)
    out[left] = rotate(x[left], level)
    out[~left] = rotate(x[~left], -level)
    return out


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Images turned counter-clockwise about their centre, bilinear with zeros outside; (N, C, H, W)."""
    height, width = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dy = torch.arange(height, device=x.device, dtype=torch.float64)[:, None] - (height - 1) / 2
    dx = torch.arange(width, device=x.device, dtype=torch.float64)[None, :] - (width - 1) / 2
    row = dx * sin + dy * cos + (height - 1) / 2
    col = dx * cos - dy * sin + (width - 1) / 2
    top, fore = row.floor(), col.floor()
    out = torch.zeros_like(x, dtype=torch.float64)
    for r, c in ((top, fore), (top, fore + 1), (top + 1, fore), (top + 1, fore + 1)):
        weight = (1 - (row - r).abs()) * (1 - (col - c).abs())
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        out += x[..., r.long().clamp(0, height - 1), c.long().clamp(0, width - 1)] * (weight * inside)
    return out.clamp(0, 1).float()
