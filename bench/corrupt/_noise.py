"""Noise of the sensor. Every pixel is drawn from one 16-bit word, which is finer than any step of an 8-bit image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from robench.corrupt.words import LEVELS, normals, quantiles, read
from robench.ops.random import Draws
from robench.registry import facts

_SPARE_BITS = 2
_PARTS = LEVELS >> _SPARE_BITS
"""Equally likely parts of a photon count's distribution, and the bits of a word that are not needed for them."""


@facts(version=2, level="standard deviation", harder="up", family="noise")
def gaussian_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images plus normal noise of standard deviation ``level`` (pixels in [0, 1]), clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    return normals(draws, "noise", x.shape[1:], deviation=level).add_(x).clamp_(0, 1)


@facts(version=2, level="standard deviation of a white pixel", harder="up", family="noise", extra=True)
def speckle_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images plus normal noise in proportion to each pixel: x + x * N(0, level), clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, extra corruptions and ``make_cifar_c.py``.
    """
    return read(draws, "noise", x.shape[1:], quantiles() * level + 1).mul_(x).clamp_(0, 1)


@facts(version=1, level="share of the values that are lost", harder="up", family="noise")
def impulse_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images of which a share ``level`` of the values, channel by channel, becomes 0 or 1 in equal parts; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1; ``skimage.util.random_noise(mode='s&p')``.
    """
    return read(draws, "impulse", x.shape[1:], _impulses(round(level * LEVELS))).add_(x).clamp_(0, 1)


@lru_cache(maxsize=8)
def _impulses(lost: int) -> Tensor:
    """What each 16-bit word adds to a pixel before clipping: -1 for the first half of the lost ones, then 1, else 0."""
    words = torch.arange(LEVELS)
    return (words < lost).float() - 2 * (words < lost // 2).float()


@facts(version=2, level="photons of a white pixel", harder="down", family="noise", grid=True)
def shot_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Photon counts Poisson(x * level) / level of the 8-bit pixels, clipped and on the 8-bit grid; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    parts = draws.shorts("photons", x.shape[1:]).bitwise_right_shift_(_SPARE_BITS)
    rows = to_grey(x).mul_(_PARTS).to(torch.int32).add_(parts)
    found = _photons(float(level)).to(x.device).index_select(0, rows.flatten())
    return found.float().div_(255).reshape(x.shape)


def to_grey(x: Tensor) -> Tensor:
    """Pixels in [0, 1] rounded to whole numbers 0..255, float32."""
    return (x * 255).round_()


@lru_cache(maxsize=5)
def _photons(level: float) -> Tensor:
    """8-bit value (cut, not rounded) for each of 256 grey values and 2^14 equally likely parts, uint8 (256 * 2^14,).

    Source: inversion of the distribution function (Devroye 1986, section III.2) at the parts' middles.
    """
    rates = np.arange(256) / 255 * level
    counts = np.arange(int(level + 8 * np.sqrt(level) + 20))
    below = stats.poisson.cdf(counts[None, :], rates[:, None])
    ends = np.ceil(below * _PARTS - 0.5).clip(0, _PARTS).astype(np.int64)
    ends[:, -1] = _PARTS
    values = np.floor(np.minimum(counts / level, 1.0) * 255 + 1e-9).astype(np.uint8)
    return torch.from_numpy(np.repeat(np.tile(values, 256), np.diff(ends, axis=1, prepend=0).ravel()))
