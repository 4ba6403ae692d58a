"""Weight-only quantisation: weights on a grid of few levels, arithmetic in floating point."""

from __future__ import annotations

import copy

from torch import nn

from robench.compress._layers import bake
from robench.compress.packing import Grid, Packed, attach
from robench.errors import ConfigError, ModelError, must
from robench.registry import facts


@facts(version=1, simulated=True)
def int8_weights(model: nn.Module) -> nn.Module:
    """A deep copy, in eval mode, whose Conv2d and Linear weights are on 255 levels per output channel; inputs stay float.

    Symmetric, scale max|w| / 127. The arithmetic is that of a float model, so its time says nothing; its bytes are
    those of the packed file (``pack``).

    Args:
        model: Left as it is.

    Raises:
        ModelError: No Conv2d or Linear layer, or weights that are not finite.

    Source: Nagel et al., arXiv 2106.08295, section 2.2 (per channel); Krishnamoorthi, arXiv 1806.08342, section 3.1.
    """
    return _rounded(model, Grid(8, 0))


@facts(version=1, simulated=True)
def int4_weights(model: nn.Module, *, group: int = 32) -> nn.Module:
    """A deep copy, in eval mode, whose Conv2d and Linear weights are on 15 levels per group; inputs stay float.

    Symmetric, scale max|w| / 7 for every ``group`` consecutive weights of an output channel, the last group of a channel
    smaller. Bytes are those of the packed file, two weights to a byte.

    Args:
        model: Left as it is.
        group: Weights that share a scale, at least 1; 0 is the whole channel.

    Raises:
        ConfigError: group below 0.
        ModelError: No Conv2d or Linear layer, or weights that are not finite.

    Source: Dettmers & Zettlemoyer, ICML 2023, section 3 (4 bits, block-wise scales); Frantar et al., ICLR 2023 (groups).
    """
    if group < 0:
        raise ConfigError(must("group", "0 or more", group, "e.g. 32; 0 is one scale per output channel"))
    return _rounded(model, Grid(4, group))


def _rounded(model: nn.Module, grid: Grid) -> nn.Module:
    twin = copy.deepcopy(model).eval()
    for layer in bake(twin):
        if not bool(layer.weight.isfinite().all()):
            raise ModelError(must("the weights to quantise", "finite", "nan or inf", "train or export the model again"))
        weight = layer.weight.data
        codes, scales = grid.encode(weight)
        weight.copy_(grid.decode(codes, scales, weight.shape))
        attach(layer, Packed(grid, codes.cpu(), scales.cpu()))
    return twin
