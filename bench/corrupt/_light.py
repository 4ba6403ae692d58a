"""Changes of the light."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, level="share of the contrast that is left", harder="down")
def contrast(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images drawn towards each channel's own mean: (x - mean) * level + mean, clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    mean = _exact_mean(x)
    return ((x.double() - mean) * level + mean).clamp(0, 1).float()


def _exact_mean(x: Tensor) -> Tensor:
    """Mean over height and width, float64 (N, C, 1, 1); summed in integers, whose order changes nothing."""
    total = (x.double() * 2.0**32).round().to(torch.int64).sum((-2, -1), keepdim=True)
    return total.double() / (x.shape[-2] * x.shape[-1] * 2.0**32)


@facts(version=1, level="what is added to the value of HSV", harder="up")
def brightness(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images whose HSV value (the largest channel) is raised by ``level``, clipped at 1; (N, C, H, W).

    Hue and saturation stay, so every channel scales with the value; one channel is a plain, clipped sum.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    value = x.double().amax(1, keepdim=True)
    raised = (value + level).clamp(0, 1)
    return torch.where(value > 0, x * (raised / value), raised).clamp(0, 1).float()
