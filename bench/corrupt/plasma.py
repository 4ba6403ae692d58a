"""Height maps by the diamond-square algorithm, for fog and frost."""

from __future__ import annotations

from torch import Tensor

from robench.corrupt.words import around_zero
from robench.ops.random import Draws

_WIBBLE = 100.0
"""The first step draws from +- _WIBBLE ** 2, as in ``plasma_fractal`` of ``make_cifar_c.py``."""


def plasma(draws: Draws, stage: str, side: int, *, decay: float) -> Tensor:
    """Height maps in [0, 1] that reach both ends and close on themselves at the edges; float64 (N, side, side).

    Args:
        draws: One map per id.
        stage: Stage of the draws.
        side: A power of two, at least 2.
        decay: By what the noise shrinks from one scale to the next, above 1; the larger, the smoother.

    Source: Fournier, Fussell & Carpenter, CACM 1982 (midpoint displacement); ``plasma_fractal`` of ``make_cifar_c.py``.
    """
    noise = around_zero(draws, stage, (side * side - 1,)).double()
    heights = noise.new_zeros(len(noise), side, side)
    used, step, wibble = 0, side, _WIBBLE
    while step >= 2:
        half, count = step // 2, (side // step) ** 2
        parts = noise[:, used : used + 3 * count].mul_(wibble * wibble).reshape(-1, 3, side // step, side // step)
        corner = heights[:, ::step, ::step]
        below = corner + corner.roll(-1, 1)
        centre = (below + below.roll(-1, 2)) / 4 + parts[:, 0]
        heights[:, half::step, half::step] = centre
        heights[:, ::step, half::step] = (centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)) / 4 + parts[:, 1]
        heights[:, half::step, ::step] = (centre + centre.roll(1, 2) + corner + corner.roll(-1, 1)) / 4 + parts[:, 2]
        used, step, wibble = used + 3 * count, half, wibble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights.div_(heights.amax((1, 2), keepdim=True))
