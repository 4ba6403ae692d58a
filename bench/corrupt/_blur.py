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
    count, _, height, width = x.shape
    soft = gaussian(x, sigma).mul_(255).add_(2.0**-10).floor_().div_(255)
    words = draws.shorts("glass", (rounds, 2, height, width))
    origin = torch.arange(count * height * width, dtype=torch.int32, device=x.device)
    for turn in range(rounds):
        origin = origin.index_select(0, _copied((words[:, turn] * (2 * reach) >> 16) - reach, reach))
    planes = soft.transpose(0, 1).flatten(1)
    moved = torch.stack([plane.index_select(0, origin).reshape(count, height, width) for plane in planes], dim=1)
    return gaussian(moved, sigma).clamp_(0, 1).float()


def _copied(offsets: Tensor, reach: int) -> Tensor:
    """Where each pixel's value was before the round, from offsets (N, 2, H, W) in -reach..reach-1; int32 (N * H * W,).

    A pixel copies its source as it was (a place beyond the last pixel says so), or where that one's own copy had already
    been made, what it had copied: so on along chains, by doubling.
    """
    count, _, height, width = offsets.shape
    total = count * height * width
    inner = torch.zeros(height, width, dtype=torch.int32, device=offsets.device)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = 1
    places = torch.arange(2 * total, dtype=torch.int32, device=offsets.device)
    away = ((offsets[:, 0] * width + offsets[:, 1]) * inner).flatten()
    source = places[:total] + away
    done = inner.flatten().repeat(count).index_select(0, source).mul_(away.clamp_(0, 1))
    places[:total] = source.add_(total).sub_(done.mul_(total))
    while total and int(places[:total].min()) < total:
        places[:total] = places.index_select(0, places[:total])
    return places[:total] - total
