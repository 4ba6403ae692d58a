"""Bit-depth reduction before the model, at inference time only."""

from __future__ import annotations

from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.registry import facts


class BitDepth(nn.Module):
    """A model behind rounding to 2^bits grey values; the rounding has a zero gradient, and none is substituted."""

    def __init__(self, model: nn.Module, bits: int) -> None:
        super().__init__()
        self.model = model
        self.steps = 2**bits - 1
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x * self.steps).round() / self.steps)
        return logits


@facts(version=1)
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
    return BitDepth(model, bits)
