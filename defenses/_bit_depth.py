"""Bit-depth reduction before the model, at inference time only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.defenses._behind import Behind
from robench.errors import ConfigError, must
from robench.registry import facts


class BitDepth(nn.Module):
    """Rounding of pixels in [0, 1] to 2^bits grey values, which has a zero gradient."""

    substitute = "identity"
    """Stand-in whose gradient an attack takes unless it is told another."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.steps = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.steps).round() / self.steps

    def smooth(self, x: Tensor) -> Tensor:
        """A differentiable copy, same shape: t - sin(2 pi t) / (4 pi) in place of the rounding of t; its slope stays up."""
        t = x * self.steps
        return (t - torch.sin(2 * math.pi * t) / (4 * math.pi)) / self.steps


@facts(version=1, ranges={"bits": "1..8"})
def bit_depth(model: nn.Module, *, bits: int = 3) -> nn.Module:
    """The model behind a reduction of pixels in [0, 1] to ``bits`` bits; the given model is used, not copied.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1].
        bits: Bits per channel that are left, 1 to 8.

    Raises:
        ConfigError: ``bits`` is not in 1..8.

    Source: Xu et al., NDSS 2018 (feature squeezing), section III-A; broken by: Athalye et al., ICML 2018.
    """
    if bits not in range(1, 9):
        raise ConfigError(must("bits of bit_depth", "in 1..8", bits, "e.g. bit_depth(bits=3)"))
    return Behind(BitDepth(bits), model)
