"""Pruning of single weights: by size or at random, over all layers together or in each."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robench.compress._layers import bake
from robench.errors import ConfigError, must, suggestion
from robench.ops.random import Draws
from robench.registry import facts

_SCOPES = ("global", "layer")
_CRITERIA = ("magnitude", "random")


@facts(version=1, simulated=False, trainable=True)
def prune(
    model: nn.Module, *, amount: float = 0.5, scope: str = "global", criterion: str = "magnitude", seed: int = 0
) -> nn.Module:
    """A deep copy in which a share of the weights of Conv2d and Linear layers is 0.

    Exactly round(amount * weights) of them, ties in the layers' order; biases and norms stay. Dense kernels run no
    faster on it, and no fewer bytes are stored: the count of non-zero weights is what falls.

    Args:
        model: Left as it is.
        amount: Share of the weights set to 0, in [0, 1].
        scope: ``global`` chooses among all layers' weights together, ``layer`` takes the same share of each layer.
        criterion: ``magnitude`` removes the smallest, ``random`` any (the control that knows nothing).
        seed: Of the random criterion.

    Raises:
        ConfigError: amount outside [0, 1], or an unknown scope or criterion.
        ModelError: No Conv2d or Linear layer.

    Source: Han et al., NeurIPS 2015, section 3 (magnitude, one shot, without retraining); Blalock et al., MLSys 2020,
    section 3 (global and layer-wise, random control).
    """
    if not 0 <= amount <= 1:
        raise ConfigError(must("amount", "in [0, 1]", amount, "give a share, e.g. 0.5"))
    for what, value, known in (("scope", scope, _SCOPES), ("criterion", criterion, _CRITERIA)):
        if value not in known:
            raise ConfigError(must(what, "one of " + ", ".join(known), value, suggestion(value, known)))
    pruned = copy.deepcopy(model)
    weights = list({id(layer.weight): layer.weight for layer in bake(pruned)}.values())
    random = criterion == "random"
    sizes = [_chances(w, i, seed) if random else w.detach().abs().flatten().cpu() for i, w in enumerate(weights)]
    with torch.no_grad():
        for weight, keep in zip(weights, kept(sizes, amount, together=scope == "global"), strict=True):
            weight.masked_fill_(~keep.view(weight.shape).to(weight.device), 0.0)
    return pruned


def _chances(weight: Tensor, layer: int, seed: int) -> Tensor:
    """A draw for every weight of a layer, flat."""
    return Draws(seed, torch.arange(weight.numel())).uniform("prune", (1,), step=layer)[:, 0]


def kept(sizes: Sequence[Tensor], amount: float, *, together: bool) -> list[Tensor]:
    """Per layer whether each weight stays, bool as its sizes (flat): all but the lowest share of them.

    Exactly round(amount * sizes) go, ties in the layers' order.

    Args:
        sizes: What each weight of a layer is worth, one flat tensor per layer.
        amount: Share that goes, in [0, 1].
        together: Whether the layers are taken as one, or each by itself.
    """
    if not together:
        return [kept([size], amount, together=True)[0] for size in sizes]
    whole = torch.cat(list(sizes))
    keep = torch.ones_like(whole, dtype=torch.bool)
    keep[whole.argsort(stable=True)[: round(amount * len(whole))]] = False
    return list(keep.split([len(size) for size in sizes]))
