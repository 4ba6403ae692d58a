"""Blur of a movement: of the camera, and of falling snow."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from robench.corrupt.fixed import Floats
from robench.corrupt.taps import mixed, taps, trailed
from robench.corrupt.words import angles
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=2, level="(radius, standard deviation) in pixels", harder="table", family="blur")
def motion_blur(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """Images smeared one way along an angle drawn from -45 to 45 degrees, edges repeated; (N, C, H, W).

    The published sets were made with ImageMagick's ``MagickMotionBlurImage``. The kernel and its steps are ImageMagick's
    (``GetMotionBlurKernel``, steps rounded to whole pixels); the result is cut to 8 bits here as everything else is, where
    ImageMagick rounds it.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``.
    """
    return smeared(x, angles(draws, "angle", -45.0, 45.0), radius=level[0], sigma=level[1]).clamp_(0, 1)


def smeared(x: Tensor, degrees: Tensor, *, radius: float, sigma: float) -> Tensor:
    """Images under a one-sided Gaussian along an angle each, float32 (N, C, H, W); edges repeated.

    Args:
        x: (N, C, H, W).
        degrees: float64 (N,), on the CPU.
        radius: The kernel has 2 * ceil(radius) + 1 steps of one pixel.
        sigma: Standard deviation in pixels.
    """
    weight = _kernel(radius, sigma)
    return trailed(x, *_steps(degrees.tolist(), len(weight)), weight)


def _kernel(radius: float, sigma: float) -> Floats:
    """Weights of the steps; what lies beyond 2^-21 of the sum changes no 8-bit value and is left out."""
    weight: Floats = np.exp(-(np.arange(2 * math.ceil(radius) + 1) ** 2) / (2 * sigma * sigma))
    rest = 1 - np.cumsum(weight) / weight.sum()
    return weight[: int((rest > 2.0**-21).sum()) + 1] / weight.sum()


def _steps(degrees: list[float], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole pixels down and right at each step, (N, width) each."""
    turned = np.array([(math.sin(math.radians(angle)), math.cos(math.radians(angle))) for angle in degrees]).reshape(-1, 2)
    found = np.ceil(np.arange(width) * turned.T[..., None] - 0.5).astype(np.int64)
    return found[0], found[1]


@facts(version=2, level="(end of the factors, their step)", harder="table", family="blur")
def zoom_blur(x: Tensor, level: tuple[float, float], *, draws: Draws) -> Tensor:
    """The mean of the images and of enlargements about their centre, from 1 in steps up to an end; (N, C, H, W).

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py`` (``scipy.ndimage.zoom``, order 1).
    """
    factors = np.arange(1, level[0], level[1])
    return mixed(x, [_zooms(x.shape[-2], x.shape[-1], tuple(factors.tolist()))]).clamp_(0, 1)


@lru_cache(maxsize=16)
def _zooms(height: int, width: int, factors: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The blur as places and weights of pixels, (H * W, T) each; weights of a pixel sum to 1."""
    total = sparse.identity(height * width, format="csr")
    for factor in factors:
        axes = (sparse.csr_matrix(enlarged(size, factor)) for size in (height, width))
        total = total + sparse.kron(*axes, format="csr")
    return taps(sparse.csr_matrix(total / (len(factors) + 1)))


def enlarged(size: int, factor: float) -> Floats:
    """The matrix (size, size) that enlarges an axis about its centre, linearly between pixels.

    The middle ceil(size / factor) pixels are spread over round(that * factor), of which the middle ``size`` are kept, as
    in ``clipped_zoom`` of ``make_cifar_c.py``.
    """
    kept = math.ceil(size / factor)
    spread = max(round(kept * factor), size)
    places = (np.arange(size) + (spread - size) // 2) * ((kept - 1) / max(spread - 1, 1))
    low = np.floor(places).astype(np.int64).clip(0, max(kept - 2, 0))
    matrix = np.zeros((size, size))
    first = (size - kept) // 2
    here = np.arange(size)
    matrix[here, first + low] += 1 - (places - low)
    matrix[here, (first + low + 1).clip(max=size - 1)] += places - low
    return matrix
