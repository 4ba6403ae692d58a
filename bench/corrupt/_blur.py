"""Blur of the lens and of glass before it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from robench.corrupt.fixed import Floats, convolution, folded, gaussian
from robench.corrupt.taps import PORTION, mixed
from robench.corrupt.words import LEVELS
from robench.ops.random import Draws
from robench.registry import facts

_WIDEST_SMALL_DISK = 8
"""Up to this radius the disk lies in 17 x 17 pixels and its edge is smoothed over 3, beyond it over 5."""


@facts(version=2, level="standard deviation in pixels", harder="up", family="blur", extra=True)
def gaussian_blur(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images under a Gaussian of ``level`` pixels, edges repeated; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019 (extra corruptions); ``scipy.ndimage.gaussian_filter(mode='nearest')``.
    """
    return gaussian(x, level).float()


@facts(version=2, level="(radius of the disk, smoothing of its edge) in pixels", harder="table", family="blur")
def defocus_blur(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images under a disk with a smoothed edge, mirrored at the border; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py`` (``cv2.filter2D``).
    """
    return mixed(x, _under(*level, x.shape[-2], x.shape[-1])).clamp_(0, 1)


def _under(radius: float, smoothing: float, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places and weights of what the disk lies over, (pixels, T) each, some rows of the image at a time."""
    rows, cols, parts = _steps(radius, smoothing, height, width)
    some = max(1, PORTION // cols.numel())
    for lines in rows.split(some):
        places = (lines[:, None] + cols).flatten(0, 1)
        yield places, parts.expand(len(places), -1)


@lru_cache(maxsize=32)
def _steps(radius: float, smoothing: float, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """First pixels of the rows int32 (H, T), columns int32 (W, T) and weights float32 (T,) of what the disk adds.

    Weights below 2^-30 change no 8-bit value and are left out.
    """
    kernel = disk(radius, smoothing)
    steps = np.argwhere(kernel > 2.0**-30)
    rows, cols = (
        folded(np.arange(size)[:, None] + away - len(kernel) // 2, size, border="mirror").astype(np.int32)
        for size, away in zip((height, width), steps.T, strict=True)
    )
    return torch.from_numpy(rows * np.int32(width)), torch.from_numpy(cols), torch.from_numpy(kernel[tuple(steps.T)]).float()


def disk(radius: float, smoothing: float) -> Floats:
    """The kernel: pixels whose centres lie in the disk, equal weights, under a Gaussian of 3 or 5 pixels; (K, K).

    The upper and the lower half are the same.
    """
    small = radius <= _WIDEST_SMALL_DISK
    reach, taps = (_WIDEST_SMALL_DISK, 3) if small else (math.ceil(radius), 5)
    here = np.arange(-reach, reach + 1)
    filled = (here[:, None] ** 2 + here[None, :] ** 2 <= radius**2).astype(np.float64)
    offsets = np.arange(taps) - taps // 2
    smooth = np.exp(-(offsets**2) / (2 * smoothing**2))
    edge = convolution(len(here), smooth / smooth.sum(), border="mirror")
    kernel: Floats = edge @ (filled / filled.sum()) @ edge.T
    return kernel


@facts(version=1, level="(standard deviation, reach in pixels, rounds)", harder="table", family="blur")
def glass_blur(x: Tensor, level: tuple[float, float, float], *, draws: Draws) -> Tensor:
    """Images blurred, their pixels replaced by near ones, and blurred again; (N, C, H, W). Exact, not approximated.

    The published code means to swap two pixels of a colour image, but assigns through views: each pixel, from the last
    row and column to the first, takes the value that its drawn neighbour has *at that time*, and the neighbour keeps its
    own. So it is here, with chains of such copies followed by doubling.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    sigma, reach, rounds = level[0], int(level[1]), int(level[2])
    count, channels, height, width = x.shape
    soft = gaussian(x, sigma).mul_(255).add_(2.0**-10).floor_().div_(255)
    words = draws.shorts("glass", (rounds, 2, height, width))
    origin = torch.arange(height * width, device=x.device).expand(count, -1)
    for turn in range(rounds):
        origin = origin.gather(1, _copied(((words[:, turn] * (2 * reach)) // LEVELS - reach).long(), reach))
    moved = soft.flatten(2).gather(2, origin[:, None].expand(-1, channels, -1)).reshape(x.shape)
    return gaussian(moved, sigma).clamp_(0, 1).float()


def _copied(offsets: Tensor, reach: int) -> Tensor:
    """Where each pixel's value was before the round, int64 (N, H * W), from offsets (N, 2, H, W) in -reach..reach-1."""
    _, _, height, width = offsets.shape
    size = height * width
    place = torch.arange(size, device=offsets.device).reshape(height, width)
    inner = torch.zeros_like(place, dtype=torch.bool)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    source = torch.where(inner, place + offsets[:, 0] * width + offsets[:, 1], place).flatten(1)
    done = (source > place.flatten()) & inner.flatten()[source]
    link = torch.where(done, source, source + size)
    while bool((link < size).any()):
        link = torch.where(link < size, link.gather(1, link.clamp(max=size - 1)), link)
    return link - size
