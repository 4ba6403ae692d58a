"""Images without an object: textures, noise, and what is left of the data set's own images when they are spoilt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robench.errors import ConfigError, must
from robench.ood.drawing import drawable, eight_bit
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def textures(x: Tensor, *, draws: Draws) -> Tensor:
    """Gratings, crossed gratings, checks and blobs, one kind per image by its id, (N, C, H, W).

    Args:
        x: The data set's own images, for their shape.
        draws: Of the images' ids.
    """
    drawable(x, draws)
    waves = torch.stack([_wave(draws, f"textures/{i}", x.shape[2:]) for i in range(2)])
    blobs = _blobs(draws, x.shape[2:])
    kinds = torch.stack([waves[0], waves.mean(0), (waves[0] * waves[1]).sign(), blobs])
    chosen = kinds[draws.integers("textures/kind", (), len(kinds)), torch.arange(len(x))]
    ends = draws.uniform("textures/ends", (2, x.shape[1], 1, 1))
    low = 0.5 * ends[:, 0]
    high = low + (0.4 + 0.6 * ends[:, 1]) * (1 - low)
    return eight_bit(low + (chosen[:, None] + 1) / 2 * (high - low))


def _wave(draws: Draws, stage: str, size: torch.Size) -> Tensor:
    """A plane wave in [-1, 1] of two to eight periods in any direction, (N, H, W)."""
    u = draws.uniform(stage, (3, 1, 1))
    angle, periods, phase = math.pi * u[:, 0], 2 + 6 * u[:, 1], 2 * math.pi * u[:, 2]
    ys, xs = torch.arange(size[0])[:, None] / size[0], torch.arange(size[1]) / size[1]
    return (2 * math.pi * periods * (angle.cos() * xs + angle.sin() * ys) + phase).sin()


def _blobs(draws: Draws, size: torch.Size) -> Tensor:
    coarse = 2 * draws.uniform("textures/blobs", (1, 5, 5)) - 1
    return torch.nn.functional.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=False)[:, 0].clamp(-1, 1)


@facts(version=1)
def noise(x: Tensor, *, draws: Draws) -> Tensor:
    """Every pixel uniform in [0, 1], (N, C, H, W), drawn per image id.

    Source: Hendrycks & Gimpel, ICLR 2017, section 3.1 (noise as OOD images).
    """
    drawable(x, draws)
    return eight_bit(draws.uniform("noise", tuple(x.shape[1:])))


@facts(version=1)
def inverted(x: Tensor, *, draws: Draws) -> Tensor:
    """The data set's own images with light and dark exchanged, 1 - x."""
    drawable(x, draws)
    return 1 - x


@facts(version=1)
def scrambled(x: Tensor, *, draws: Draws, parts: int = 4) -> Tensor:
    """The data set's own images, cut into parts x parts pieces that change places, by image id; a rest stays in place.

    Raises:
        ConfigError: Fewer than two parts, or more than pixels.
    """
    drawable(x, draws)
    height, width = (s // max(parts, 1) for s in x.shape[2:])
    if parts < 2 or not min(height, width):
        raise ConfigError(must("parts of scrambled", f"in 2..{min(x.shape[2:])}", parts, "e.g. parts=4"))
    inner = x[:, :, : parts * height, : parts * width]
    pieces = inner.unflatten(3, (parts, width)).unflatten(2, (parts, height)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = draws.bits("scrambled", (parts * parts,)).argsort(dim=1, stable=True)
    moved = pieces[torch.arange(len(x))[:, None], order].unflatten(1, (parts, parts))
    out = x.clone()
    out[:, :, : parts * height, : parts * width] = moved.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return out
