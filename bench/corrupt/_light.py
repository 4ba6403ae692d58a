"""Changes of the light."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import facts

_NEXT_TO_BLACK = 2.0**-40
"""Stands for 0 in a divisor, or in a colour that is to be divided by itself."""


@facts(version=3, level="share of the contrast that is left", harder="down", family="digital")
def contrast(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images drawn towards each channel's own mean: (x - mean) * level + mean, clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    mean = _exact_mean(x)
    return (x * level).add_(mean * (1 - level)).clamp_(0, 1)


def _exact_mean(x: Tensor) -> Tensor:
    """Mean over height and width, float32 (N, C, 1, 1); summed in whole numbers, whose order changes nothing.

    Their unit is the smallest of which float32 holds the sum of a row.
    """
    height, width = x.shape[-2:]
    unit = 2.0 ** (width.bit_length() - 24)
    rows = (x / unit).round_().sum(-1, keepdim=True)
    return rows.sum(-2, keepdim=True, dtype=torch.float64).mul_(unit / (height * width)).float()


@facts(version=2, level="what is added to the value of HSV", harder="up", family="weather")
def brightness(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images whose HSV value (the largest channel) is raised by ``level``, clipped at 1; (N, C, H, W).

    Hue and saturation stay, so every channel scales with the value; one channel is a plain, clipped sum.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    pixels = x.clamp_min(_NEXT_TO_BLACK)
    value = pixels.amax(1, keepdim=True)
    return pixels.mul_((value + level).clamp_(0, 1).div_(value)).clamp_(0, 1)


@facts(version=2, level="(factor, summand) of the saturation", harder="table", family="digital", extra=True, channels=3)
def saturate(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images whose HSV saturation becomes saturation * factor + summand, clipped; (N, 3, H, W).

    Value and hue stay. A grey pixel has no hue; like scikit-image, which calls it red, its green and blue fall.

    Raises:
        DataError: Not three channels.

    Source: Hendrycks & Dietterich, ICLR 2019, extra corruptions and ``make_cifar_c.py``.
    """
    if x.shape[1] != 3:
        raise DataError(must("images for saturate", "of 3 channels", x.shape[1], "leave saturate out of this suite"))
    value = x.amax(1, keepdim=True)
    short = value - x
    spread = short.amax(1, keepdim=True)
    saturation = spread / value.clamp_min(_NEXT_TO_BLACK)
    raised = saturation.mul_(level[0]).add_(level[1]).clamp_(0, 1).mul_(value)
    flat = (spread == 0).float()
    short[:, 1:] += flat
    return torch.sub(value, short.mul_(raised.div_(spread.add_(flat)))).clamp_(0, 1)
