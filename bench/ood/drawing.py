"""What all drawn images share."""

from __future__ import annotations

from torch import Tensor

from robench.errors import DataError, must
from robench.ops.random import Draws


def drawable(x: Tensor, draws: Draws) -> None:
    """Refuse images and ids that do not belong together.

    Raises:
        DataError: Not (N, C, H, W), or another number of ids.
    """
    if x.dim() != 4 or len(draws.ids) != len(x):
        got = (tuple(x.shape), len(draws.ids))
        raise DataError(must("images and ids", "(N, C, H, W) and N ids", got, "give one id per image"))


def eight_bit(x: Tensor) -> Tensor:
    """Pixels clipped to [0, 1] and rounded to multiples of 1/255, so that last bits of a machine do not show."""
    return (x.float().clamp(0, 1) * 255).round() / 255
