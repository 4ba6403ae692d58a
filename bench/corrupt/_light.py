"""Changes of the light."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=2, level="share of the contrast that is left", harder="down", family="digital")
def contrast(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images drawn towards each channel's own mean: (x - mean) * level + mean, clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    mean = _exact_mean(x)
    return (x - mean).mul_(level).add_(mean).clamp_(0, 1)


def _exact_mean(x: Tensor) -> Tensor:
    """Mean over height and width, float32 (N, C, 1, 1); summed in whole numbers, whose order changes nothing."""
    total = (x * 2.0**22).round_().sum((-2, -1), keepdim=True, dtype=torch.float64)
    return (total / (x.shape[-2] * x.shape[-1] * 2.0**22)).float()


@facts(version=1, level="what is added to the value of HSV", harder="up", family="weather")
def brightness(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images whose HSV value (the largest channel) is raised by ``level``, clipped at 1; (N, C, H, W).

    Hue and saturation stay, so every channel scales with the value; one channel is a plain, clipped sum.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    value = x.double().amax(1, keepdim=True)
    raised = (value + level).clamp(0, 1)
    return torch.where(value > 0, x * (raised / value), raised).clamp(0, 1).float()


@facts(version=1, level="(factor, summand) of the saturation", harder="table", family="digital", extra=True, channels=3)
def saturate(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images whose HSV saturation becomes saturation * factor + summand, clipped; (N, 3, H, W).

    Value and hue stay. A grey pixel has no hue; like scikit-image, which calls it red, its green and blue fall.

    Raises:
        DataError: Not three channels.

    Source: Hendrycks & Dietterich, ICLR 2019, extra corruptions and ``make_cifar_c.py``.
    """
    if x.shape[1] != 3:
        raise DataError(must("images for saturate", "of 3 channels", x.shape[1], "leave saturate out of this suite"))
    pixels = x.double()
    value = pixels.amax(1, keepdim=True)
    spread = value - pixels.amin(1, keepdim=True)
    saturation = torch.where(value > 0, spread / value, 0.0)
    raised = (saturation * level[0] + level[1]).clamp_(0, 1)
    coloured = value - (value - pixels) * (raised * value / spread)
    grey = torch.cat([value, value * (1 - raised), value * (1 - raised)], dim=1)
    return torch.where(spread > 0, coloured, grey).clamp_(0, 1).float()
