"""Sequences of slight perturbations, for flip rates: robench-P (regenerated), never the published sets.

The strengths are those for 32 x 32 pixels; shifts and blurs in pixels are scaled by the image's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from robench.corrupt._light import brightness
from robench.corrupt._motion import smeared
from robench.corrupt._noise import gaussian_noise, shot_noise
from robench.corrupt._spatter import WATER, coloured, drops
from robench.corrupt.apply import StageDraws, truncated
from robench.corrupt.fixed import at_least, gaussian
from robench.corrupt.words import normals
from robench.errors import ConfigError, must, suggestion
from robench.ops.random import Draws

NOISE_FRAMES = 30
"""Noisy frames after the clean first one."""
_SIDE = 32
Maker = Callable[[Tensor, Draws], Iterator[Tensor]]
"""(images, draws) → frames of all images, each (N, C, H, W) in [0, 1]."""


def _gaussian_noise(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    yield x
    for i in range(NOISE_FRAMES):
        yield gaussian_noise(x, 0.02, draws=_numbered(draws, i))


def _shot_noise(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    yield x
    for i in range(NOISE_FRAMES):
        yield shot_noise(x, 700.0, draws=_numbered(draws, i))


def _numbered(draws: Draws, i: int) -> Draws:
    """The draws of one frame."""
    return StageDraws(draws.seed, draws.ids, f"{getattr(draws, 'prefix', '')}/{i}")


def _motion_blur(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    scale = x.shape[-1] / _SIDE
    for i in range(21):
        angle = torch.full((len(x),), (i - 20) * 9.0, dtype=torch.float64)
        yield smeared(x, angle, radius=6 * scale, sigma=1.8 * scale)


def _zoom_blur(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    yield x
    total = x.clone()
    for i in range(1, 31):
        total += scaled(x, 1 + 0.004 * i)
        yield total / (i + 1)


def _brightness(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    for i in range(31):
        yield brightness(x, (i - 15) * 0.015, draws=draws)


def _translate(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    width = x.shape[-1]
    for i in range(16):
        moved = round((i - 7) * width / _SIDE)
        places = torch.arange(width, device=x.device) - moved
        inside = (places >= 0) & (places < width)
        yield x.index_select(-1, places.clamp(0, width - 1)) * inside


def _rotate(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    for i in range(31):
        cos, sin = math.cos(math.radians(i - 15)), math.sin(math.radians(i - 15))
        yield mapped(x, [[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _scale(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    for i in range(31):
        yield scaled(x, (2 * i + 70) / 100)


def _tilt(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    """A camera of focal length sqrt(w^2 + h^2) pixels turns about both axes at once."""
    focal = math.hypot(*x.shape[-2:])
    for i in range(31):
        angle = math.radians(0.75 * (i - 15))
        cos, sin = math.cos(angle), math.sin(angle)
        forward = [[cos, 0.0, 0.0], [-sin * sin, cos, 0.0], [sin * cos / focal, sin / focal, 1.0]]
        yield mapped(x, torch.linalg.inv(torch.tensor(forward, dtype=torch.float64)).tolist())


def _spatter(x: Tensor, draws: Draws) -> Iterator[Tensor]:
    noise = normals(draws, "liquid", x.shape[-2:]).double() * 0.265 + 0.6
    liquid = gaussian(noise.clamp_(-2, 2), 1.75 * x.shape[-1] / _SIDE)
    liquid = at_least(liquid, 0.7)
    for _ in range(31):
        yield x + coloured(drops(liquid) * 0.6, WATER, x.shape[1])
        liquid = 0.2 * liquid + 0.8 * functional.pad(liquid, (0, 0, 1, 0))[:, :-1]


def scaled(x: Tensor, factor: float) -> Tensor:
    """Images enlarged about their centre, bilinear; black outside."""
    return mapped(x, [[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0], [0.0, 0.0, 1.0]])


def mapped(x: Tensor, back: list[list[float]]) -> Tensor:
    """Images (N, C, H, W) under a projective map, bilinear, black outside.

    Args:
        x: Images.
        back: 3 x 3, from a pixel of the result to where it comes from; (x, y) in pixels from the centre.
    """
    height, width = x.shape[-2:]
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x0 = torch.arange(width, dtype=torch.float64)[None, :] - (width - 1) / 2
    across, down, depth = (row[0] * x0 + row[1] * y + row[2] for row in back)
    grid = torch.stack([across / depth * 2 / max(width - 1, 1), down / depth * 2 / max(height - 1, 1)], dim=-1)
    places = grid.float().to(x.device).expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, places, mode="bilinear", padding_mode="zeros", align_corners=True)


SEQUENCES: Mapping[str, Maker] = MappingProxyType(
    {
        "gaussian_noise": _gaussian_noise,
        "shot_noise": _shot_noise,
        "motion_blur": _motion_blur,
        "zoom_blur": _zoom_blur,
        "spatter": _spatter,
        "brightness": _brightness,
        "translate": _translate,
        "rotate": _rotate,
        "tilt": _tilt,
        "scale": _scale,
    }
)
"""The ten perturbations of CIFAR-10-P's means, in the order of ``cifar-p-eval.py``."""


def sequence(x: Tensor, name: str, *, ids: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Frames of a perturbation, each float32 (N, C, H, W) on the 8-bit grid; deterministic per (id, name, seed).

    Args:
        x: Clean images, float32 (N, C, H, W) in [0, 1].
        name: Name in ``SEQUENCES``.
        ids: Sample ids, int64 (N,).
        seed: Seed of the noise.

    Raises:
        ConfigError: Unknown name.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (ImageNet-P) and ``make_cifar_p.py``.
    """
    if name not in SEQUENCES:
        raise ConfigError(must("a perturbation sequence", "a known one", name, suggestion(name, SEQUENCES)))
    draws = StageDraws(seed, ids.to(x.device), f"sequence/{name}")
    return (truncated(frame) for frame in SEQUENCES[name](x, draws))
