"""Noise of the sensor."""

from __future__ import annotations

from torch import Tensor

from robench.corrupt.poisson import poisson_inverse
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, level="standard deviation", harder="up")
def gaussian_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images plus normal noise of standard deviation ``level`` (pixels in [0, 1]), clipped; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    return (x + draws.normal("noise", x.shape[1:]) * level).clamp(0, 1)


@facts(version=1, level="photons of a white pixel", harder="down")
def shot_noise(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Photon counts Poisson(x * level) / level, clipped to [0, 1]; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    u = (draws.bits("photons", x.shape[1:]).double() + 0.5) * 2.0**-32
    return (poisson_inverse(x.double() * level, u) / level).clamp(0, 1).float()
