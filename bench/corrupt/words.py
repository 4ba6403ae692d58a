"""Noise for 8-bit images from 16-bit words: a lookup per draw, the same for an image whatever its company."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from robench.ops.random import Draws

LEVELS = 2**16


def read(draws: Draws, stage: str, shape: Sequence[int], table: Tensor) -> Tensor:
    """Entries (N, *shape) of a table of 65536 equally likely ones."""
    words = draws.shorts(stage, shape)
    return table.to(words.device).index_select(0, words.flatten()).reshape(words.shape)


def normals(draws: Draws, stage: str, shape: Sequence[int], *, deviation: float = 1.0) -> Tensor:
    """Normal float32 (N, *shape) of a deviation: the middle of one of 65536 equally likely parts of the distribution.

    The distribution function is off by 2^-17 at most, and no draw lies beyond 4.33 standard deviations.
    """
    return read(draws, stage, shape, quantiles() * deviation)


@lru_cache(maxsize=1)
def quantiles() -> Tensor:
    """The normal distribution's quantile at the middle of each of 65536 parts, float32."""
    return torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).float()


def uniforms(draws: Draws, stage: str, shape: Sequence[int]) -> Tensor:
    """Uniform float64 (N, *shape) in (0, 1): middles of 65536 equal parts."""
    return (draws.shorts(stage, shape).double() + 0.5) / LEVELS


def around_zero(draws: Draws, stage: str, shape: Sequence[int]) -> Tensor:
    """Uniform float32 (N, *shape) in (-1, 1): middles of 65536 equal parts, exact."""
    return draws.shorts(stage, shape).float().mul_(2.0**-15).add_(2.0**-16 - 1)


def angles(draws: Draws, stage: str, low: float, high: float) -> Tensor:
    """One uniform angle per image in [low, high], float64 (N,), on the CPU."""
    return low + (high - low) * uniforms(draws, stage, (1,))[:, 0].cpu()
