"""Drops of water and mud on the lens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robench.corrupt._weather import grey
from robench.corrupt.edges import box, canny, distance, equalised
from robench.corrupt.fixed import at_least, gaussian
from robench.corrupt.words import normals
from robench.ops.random import Draws
from robench.registry import facts

WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
"""Pale turquoise and brown; a picture of one channel gets their luminance."""
_FARTHEST = 20
_DARK = 1e-9
"""Less than the least shine, and not 0."""
_RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


@facts(version=1, level="(mean, deviation, smoothness, threshold, strength, 1 for mud)", harder="table", family="weather",
       extra=True)  # fmt: skip
def spatter(x: Tensor, level: tuple[float, ...], *, draws: Draws) -> Tensor:
    """Images with drops of water (last number 0) or mud (1) on the lens; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, extra corruptions and ``make_cifar_c.py`` (OpenCV's edges and distances).
    """
    mean, deviation, smoothness, threshold, strength, mud = level
    noise = normals(draws, "liquid", x.shape[-2:]).double().mul_(deviation).add_(mean)
    liquid = gaussian(noise.clamp_(-2, 2), smoothness)
    if mud:
        cover = at_least(gaussian((liquid > threshold).float(), strength), 0.8).float()[:, None]
        return (x * (1 - cover)).add_(coloured(cover, MUD, x.shape[1])).clamp_(0, 1)
    shine = drops(at_least(liquid, threshold)).mul_(strength)
    return coloured(shine, WATER, x.shape[1]).add(x).clamp_(0, 1)


def drops(liquid: Tensor) -> Tensor:
    """How much each pixel shines, float32 (N, 1, H, W) in [0, 1], from the liquid's height (N, H, W) in [0, 1].

    An image without a drop is all zero, where the published code divides zero by zero.
    """
    height = (liquid * 255).floor().clamp(0, 255).to(torch.int32)
    away = distance(canny(height, 50, 150), most=_FARTHEST)
    away = equalised((box(away) / 9 + 1e-5).floor(), levels=_FARTHEST + 1)
    padded = functional.pad(away[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    rows, cols = away.shape[-2:]
    relief = torch.zeros_like(away)
    for i, line in enumerate(_RELIEF):
        for j, weight in enumerate(line):
            relief.add_(padded[:, i : i + rows, j : j + cols], alpha=weight)
    shine = height.float() * (box(relief.clamp_(0, 255)) / 9).round()
    most = shine.amax((1, 2), keepdim=True) if len(shine) else shine[:, :1, :1]
    return shine.div_(most.clamp_min(_DARK))[:, None]


def coloured(cover: Tensor, colour: tuple[float, float, float], channels: int) -> Tensor:
    """A cover (N, 1, H, W) in a colour, or in its luminance where the images have no colours."""
    tone = torch.tensor(colour, device=cover.device)[None, :, None, None]
    return cover * (tone if channels == 3 else grey(tone))
