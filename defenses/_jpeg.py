"""JPEG compression before the model, at inference time only."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from robench.defenses._behind import Behind
from robench.errors import ConfigError, must
from robench.registry import facts


def compressed(image: Tensor, quality: int) -> Tensor:
    """One image (C, H, W) in [0, 1] after JPEG, on the CPU: grey for one channel, colour for three."""
    pixels = np.asarray((image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.atleast_3d(np.asarray(Image.open(buffer)))
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1).to(torch.float32) / 255


_GREY = 128 / 255
_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], dtype=torch.float64
)
"""RGB to luma and two chromas around 0. Source: JFIF 1.02, section 7 (ITU-T T.871)."""


@functools.cache
def quantisation(quality: int) -> Tensor:
    """Pillow's quantisation tables of luma and chroma, float64 (2, 8, 8), row by row, in units of [0, 1]."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization  # type: ignore[attr-defined]
    return torch.tensor([tables[0], tables[1]], dtype=torch.float64).view(2, 8, 8) / 255


def cosines() -> Tensor:
    """The orthonormal transform of 8 values, float64 (8, 8): frequency by place. Source: ITU-T T.81, section A.3.3."""
    place = torch.arange(8, dtype=torch.float64)
    waves = torch.cos((2 * place[None] + 1) * place[:, None] * math.pi / 16) / 2
    waves[0] /= math.sqrt(2)
    return waves


def _softened(x: Tensor, table: Tensor) -> Tensor:
    """Channels (N, C, H, W) around 0 whose blocks' frequencies are nearly rounded to multiples of the table's steps."""
    height, width = x.shape[2:]
    filled = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = filled.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    waves = cosines().to(x)
    counts = waves @ blocks @ waves.T / table
    counts = counts - torch.sin(2 * math.pi * counts) / (4 * math.pi)
    restored = (waves.T @ (counts * table) @ waves).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return restored[..., :height, :width]


class Jpeg(nn.Module):
    """A JPEG round trip of every image, through which no gradient leads."""

    substitute = "smooth"
    """Stand-in whose gradient an attack takes unless it is told another; below quality 75 it finds more than identity."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([compressed(image, self.quality) for image in x]).to(x)

    def smooth(self, x: Tensor) -> Tensor:
        """A differentiable copy of the round trip, (N, C, H, W): JPEG's own transform and tables, rounding softened.

        Source: Shin & Song, NeurIPS MLSec 2017 (differentiable JPEG), with t - sin(2 pi t) / (4 pi) in place of their cubic,
        whose slope is never below one half.
        """
        tables = quantisation(self.quality).to(x)
        if x.shape[1] == 1:
            return _softened(x - _GREY, tables[0]) + _GREY
        mixed = torch.einsum("kc,nchw->nkhw", _YCC.to(x), x)
        small = functional.avg_pool2d(mixed[:, 1:], 2, ceil_mode=True, count_include_pad=False)
        colour = functional.interpolate(_softened(small, tables[1]), scale_factor=2, mode="bilinear")
        colour = colour[..., : x.shape[2], : x.shape[3]]
        whole = torch.cat([_softened(mixed[:, :1] - _GREY, tables[0]) + _GREY, colour], 1)
        return torch.einsum("ck,nkhw->nchw", torch.linalg.inv(_YCC).to(x), whole)


@facts(version=1)
def jpeg(model: nn.Module, *, quality: int = 75) -> nn.Module:
    """The model behind a JPEG round trip of its images; the given model is used, not copied.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1] with one or three channels.
        quality: JPEG quality of Pillow, 1 to 95.

    Raises:
        ConfigError: ``quality`` is not in 1..95.

    Source: Guo et al., ICLR 2018, section 3.2; broken by: Athalye et al., ICML 2018.
    """
    if quality not in range(1, 96):
        raise ConfigError(must("quality of jpeg", "in 1..95", quality, "e.g. jpeg(quality=75)"))
    return Behind(Jpeg(quality), model)
