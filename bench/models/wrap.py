"""Normalisation as a part of the model, so that every model takes pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must


class Normalised(nn.Module):
    """A net behind ``(lo + x (hi - lo) - mean) / std``; takes images (N, C, H, W) in [0, 1].

    Args:
        net: The bare net.
        mean: One value, or one per channel, in units of ``input_range``.
        std: Likewise, positive.
        input_range: Lowest and highest pixel value the net was trained with, e.g. (0, 255).

    Raises:
        ConfigError: ``std`` is not positive, ``input_range`` is empty, or mean and std have different lengths.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        input_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        _check(mean, std, input_range)
        self.net = net
        self.low, self.span = float(input_range[0]), float(input_range[1]) - float(input_range[0])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((self.low + x * self.span - self.mean) / self.std)
        return logits


def _check(mean: Sequence[float], std: Sequence[float], input_range: tuple[float, float]) -> None:
    if len(mean) != len(std):
        raise ConfigError(must("std", f"as long as mean ({len(mean)})", tuple(std), "give one value, or one per channel"))
    if not all(s > 0 for s in std):
        raise ConfigError(must("std", "positive", tuple(std), "give the standard deviation of the training pixels"))
    if not input_range[0] < input_range[1]:
        raise ConfigError(must("input_range", "(low, high) with low < high", tuple(input_range), "e.g. 0,1 or 0,255"))
