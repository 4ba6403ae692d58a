"""Pruning of single weights by size."""

from __future__ import annotations

import copy

import torch
from torch import nn

from robench.compress._layers import bake
from robench.errors import ConfigError, must
from robench.registry import facts


@facts(version=1, simulated=False)
def prune(model: nn.Module, *, amount: float = 0.5) -> nn.Module:
    """A deep copy in which the smallest weights of all Conv2d and Linear layers together are 0.

    Exactly round(amount * weights) of them by absolute value, ties in the layers' order; biases and norms stay. Dense
    kernels run no faster on it, and no fewer bytes are stored: the count of non-zero weights is what falls.

    Args:
        model: Left as it is.
        amount: Share of the weights set to 0, in [0, 1].

    Raises:
        ConfigError: amount outside [0, 1].
        ModelError: No Conv2d or Linear layer.

    Source: Han et al., NeurIPS 2015, section 3 (magnitude, one shot, without retraining).
    """
    if not 0 <= amount <= 1:
        raise ConfigError(must("amount", "in [0, 1]", amount, "give a share, e.g. 0.5"))
    pruned = copy.deepcopy(model)
    weights = list({id(layer.weight): layer.weight for layer in bake(pruned)}.values())
    sizes = torch.cat([w.detach().abs().flatten().cpu() for w in weights])
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[sizes.argsort(stable=True)[: round(amount * len(sizes))]] = False
    with torch.no_grad():
        for weight, mask in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
            weight.masked_fill_(~mask.view(weight.shape).to(weight.device), 0.0)
    return pruned
