"""Snow, frost and fog."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from robench.corrupt._motion import enlarged, smeared
from robench.corrupt.fixed import at_least, separable, weights
from robench.corrupt.plasma import plasma
from robench.corrupt.words import angles, normals
from robench.ops.random import Draws
from robench.registry import facts

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
_FROST_SEED = 1903_12261
_FROST = ((0.31, 0.58, 0.65, 0.07), (0.79, 0.80, 0.84, 0.08), (0.76, 0.79, 0.84, 0.08), (0.54, 0.60, 0.65, 0.115),
          (0.44, 0.48, 0.53, 0.17))  # fmt: skip
"""Mean red, green, blue and contrast of the five textures; of the order of the published ones'."""
_FROST_SIDES = 5
"""A texture's side in sides of the image."""
_FROST_DECAY = 1.08


@facts(version=2, level="(mean, deviation, zoom, threshold, radius, sigma, share of the image)", harder="table",
       family="weather")  # fmt: skip
def snow(x: Tensor, level: tuple[float, ...], *, draws: Draws) -> Tensor:
    """Images whitened and covered with smeared flakes and the same flakes turned by half a circle; (N, C, H, W).

    The flakes are smeared as in ``motion_blur``, which says what differs from the published sets' ImageMagick.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    mean, deviation, zoom, threshold, radius, sigma, share = level
    noise = normals(draws, "flakes", (1, *x.shape[-2:])).double().mul_(deviation).add_(mean)
    flakes = separable(noise.clamp_(-2, 2), *(_enlarging(n, zoom).to(x.device) for n in x.shape[-2:]))
    flakes = at_least(flakes, threshold).clamp_(0, 1).mul_(255).floor_().float().div_(255)
    flakes = smeared(flakes, angles(draws, "angle", -135.0, -45.0), radius=radius, sigma=sigma)
    flakes = flakes.mul_(255).round_().div_(255)
    whitened = torch.maximum(x, grey(x).mul(1.5).add_(0.5))
    return whitened.mul_(1 - share).add_(x * share).add_(flakes + flakes.flip(-1, -2)).clamp_(0, 1)


@lru_cache(maxsize=16)
def _enlarging(size: int, factor: float) -> Tensor:
    return weights(enlarged(size, factor), device=torch.device("cpu"))


def grey(x: Tensor) -> Tensor:
    """Luminance of images (N, 3, H, W), or the images themselves where they have another number of channels."""
    if x.shape[1] != 3:
        return x
    return x[:, :1] * _GREY[0] + x[:, 1:2] * _GREY[1] + x[:, 2:] * _GREY[2]


@facts(version=2, level="(thickness, decay of the fractal)", harder="table", family="weather")
def fog(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images behind a fractal haze, darkened so that their brightest value stays; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    thickness, decay = level
    height, width = x.shape[-2:]
    haze = plasma(draws, "haze", power_of_two(max(height, width)), decay=decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True) if len(x) else x[:, :1, :1, :1]
    return (haze * thickness).float().add(x).mul_(brightest / (brightest + thickness)).clamp_(0, 1)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and 2."""
    return max(2, 1 << (size - 1).bit_length())


@facts(version=1, level="(share of the image, share of the frost)", harder="table", family="weather", procedural=True)
def frost(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images under procedural frost (not the published textures): image * a + texture * b, clipped; (N, C, H, W).

    The published sets lay a random cutting of one of five photographs over each image, whose licence is unknown. Here the
    five textures are rough fractals of similar brightness, tint and contrast, five images wide, the same on every machine.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``; the textures are robench's own.
    """
    count, channels, height, width = x.shape
    textures = _textures(power_of_two(_FROST_SIDES * max(height, width)), channels).to(x.device)
    side = textures.shape[-1]
    words = draws.shorts("cutting", (3,)).long()
    chosen = (words[:, 0] * len(_FROST)) >> 16
    rows, cols = (
        (((words[:, i, None] * side) >> 16) + torch.arange(n, device=x.device)) % side for i, n in ((1, height), (2, width))
    )
    places = (chosen[:, None, None] * side + rows[:, :, None]) * side + cols[:, None, :]
    cut = textures.flatten(1)[:, places.flatten()].reshape(channels, count, height, width).transpose(0, 1)
    return (x * level[0] + cut * level[1]).clamp_(0, 1)


@lru_cache(maxsize=4)
def _textures(side: int, channels: int) -> Tensor:
    """The five textures, float32 (C, 5, side, side), which close on themselves at the edges."""
    maps = plasma(Draws(_FROST_SEED, torch.arange(len(_FROST))), "frost", side, decay=_FROST_DECAY)
    ridges = 1 - (2 * maps - 1).abs()
    ridges = (ridges - ridges.mean((1, 2), keepdim=True)) / ridges.std((1, 2), keepdim=True)
    tints = torch.tensor(_FROST, dtype=torch.float64)
    colours = tints[:, :3] if channels == 3 else tints[:, :3].mean(1, keepdim=True).expand(-1, channels)
    return (colours.T[..., None, None] + ridges * tints[:, 3, None, None]).clamp(0, 1).float()
