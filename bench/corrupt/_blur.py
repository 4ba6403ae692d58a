"""Blur of the lens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robench.ops.random import Draws
from robench.registry import facts

TRUNCATE = 4.0
"""Radius of the kernel in standard deviations, as in scipy and skimage."""


@facts(version=1, level="standard deviation in pixels", harder="up")
def gaussian_blur(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images under a Gaussian of ``level`` pixels, edges repeated; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019 (extra corruptions); ``scipy.ndimage.gaussian_filter(mode='nearest')``.
    """
    weights = gaussian_kernel(level)
    return _along(_along(x.double(), weights, dim=-2), weights, dim=-1).float()


def gaussian_kernel(sigma: float) -> list[float]:
    """Weights of a sampled Gaussian, summing to 1; 2 * int(4 sigma + 0.5) + 1 of them."""
    radius = int(TRUNCATE * sigma + 0.5)
    raw = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-radius, radius + 1)]
    return [w / math.fsum(raw) for w in raw]


def _along(x: Tensor, weights: list[float], *, dim: int) -> Tensor:
    """Weighted sum of shifted copies; tap by tap, because a convolution's rounding may depend on the batch."""
    size, radius = x.shape[dim], len(weights) // 2
    here = torch.arange(size, device=x.device)
    out = torch.zeros_like(x)
    for tap, weight in enumerate(weights):
        out += x.index_select(dim, (here + (tap - radius)).clamp(0, size - 1)) * weight
    return out
