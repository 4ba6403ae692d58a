"""Weighted sums of pixels in whole numbers that float64 holds exactly: no order of summation can change a bit of them.

So a matrix product may be used, whose order of summation depends on the batch and the machine.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

PIXEL_BITS = 22
WEIGHT_BITS = 29
"""Pixels are multiples of 2^-22 and weights of 2^-29: a pixel in [-2, 2] times weights whose absolute values sum to 2 at
most stays below 2^53 units of 2^-51."""

Floats = NDArray[np.float64]


def separable(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """x (..., H, W) with rows and columns through a matrix of ``weights`` each (output from input), float64.

    What comes in, and what each of the two products gives, is rounded half to even to multiples of 2^-22.
    """
    whole = (x * 2.0**PIXEL_BITS).round_().double()
    across = (whole @ cols.T).round_()
    return (rows @ across).round_().mul_(2.0**-PIXEL_BITS)


def weights(matrix: Floats, *, device: torch.device) -> Tensor:
    """A matrix of weights in multiples of 2^-29, float64; a row that sums to 1 still does, exactly."""
    units = np.round(matrix * 2.0**WEIGHT_BITS)
    sums_to_one = np.abs(matrix.sum(1) - 1) < 1e-9
    rest = np.where(sums_to_one, 2.0**WEIGHT_BITS - units.sum(1), 0.0)
    units[np.arange(len(units)), np.abs(matrix).argmax(1)] += rest
    return torch.from_numpy(units * 2.0**-WEIGHT_BITS).to(device)


def convolution(size: int, kernel: Floats, *, border: str) -> Floats:
    """The matrix (size, size) of a correlation with an odd kernel, its centre on each pixel.

    Args:
        size: Pixels along the axis.
        kernel: (2 r + 1,).
        border: ``nearest`` (edge repeated), ``reflect`` (d c b a | a b c d) or ``mirror`` (d c b | a b c d).
    """
    radius = len(kernel) // 2
    places = folded(np.arange(size)[:, None] + np.arange(-radius, radius + 1)[None, :], size, border=border)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None].repeat(len(kernel), 1), places), np.broadcast_to(kernel, places.shape))
    return matrix


def folded(places: NDArray[np.int64], size: int, *, border: str) -> NDArray[np.int64]:
    """Positions outside 0..size-1 brought inside by the border's rule."""
    if border == "nearest" or size == 1:
        return places.clip(0, size - 1)
    period = 2 * size if border == "reflect" else 2 * size - 2
    turned = places % period
    return np.where(turned < size, turned, (period - 1 if border == "reflect" else period) - turned)


@lru_cache(maxsize=64)
def gaussian_weights(size: int, sigma: float, truncate: float, border: str) -> Tensor:
    """The matrix of a sampled Gaussian of 2 int(truncate sigma + 0.5) + 1 weights, as scipy's ``gaussian_filter1d``."""
    radius = int(truncate * sigma + 0.5)
    here = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * here**2)
    return weights(convolution(size, kernel / kernel.sum(), border=border), device=torch.device("cpu"))


def gaussian(x: Tensor, sigma: float, *, truncate: float = 4.0, border: str = "nearest") -> Tensor:
    """Images under a Gaussian of ``sigma`` pixels, float64 (..., H, W); unchanged where sigma is 0."""
    if sigma <= 0:
        return x.double()
    rows, cols = (gaussian_weights(n, sigma, truncate, border).to(x.device) for n in x.shape[-2:])
    return separable(x, rows, cols)


def at_least(x: Tensor, least: float) -> Tensor:
    """float64 x with 0 in the place of what is below ``least``."""
    return functional.threshold(x, math.nextafter(least, -math.inf), 0.0)
