"""Two of every four weights: the pattern that sparse tensor cores run."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from robench.compress._layers import bake, is_layer
from robench.compress.notes import note
from robench.errors import ModelError, must
from robench.registry import facts

log = logging.getLogger(__name__)

_GROUP, _ZEROS = 4, 2


@facts(version=1, simulated=False, trainable=True)
def prune_2_4(model: nn.Module) -> nn.Module:
    """A deep copy in which two of every four weights along the input dimension are 0, in layers where it divides by 4.

    Groups are four consecutive input features (of a convolution: input channels at one place of its kernel); the two
    smallest of each go, of equal ones the later. Other layers stay as they are, are logged, and named by
    ``robench.compress.notes.noted``. Only sparse tensor cores run faster on it, and of those Linear layers only.

    Args:
        model: Left as it is.

    Raises:
        ModelError: No layer has an input dimension that is a multiple of 4.

    Source: Mishra et al., arXiv 2104.08378, sections 3 and 4.1.
    """
    pruned = copy.deepcopy(model)
    layers = bake(pruned)
    names = {id(m): name for name, m in pruned.named_modules() if is_layer(m)}
    left = [names[id(layer)] or type(layer).__name__ for layer in layers if layer.weight.shape[1] % _GROUP]
    if len(left) == len(layers):
        raise ModelError(must("a model for 2:4 pruning", "one with input dimensions of 4k", left, "use prune(amount=0.5)"))
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers if layer.weight.shape[1] % _GROUP == 0}.values():
            weight.masked_fill_(~two_of_four(weight), 0.0)
    if left:
        text = f"2:4 left {len(left)} of {len(layers)} layers dense (input dimension no multiple of 4): {', '.join(left)}"
        log.warning(text)
        note(pruned, text)
    return pruned


def two_of_four(weight: Tensor) -> Tensor:
    """Which weights (out, in, ...) stay: the two largest of every four consecutive ones along ``in``; bool, same shape."""
    groups = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, _GROUP))
    order = groups.argsort(dim=-1, stable=True, descending=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : _GROUP - _ZEROS], True)
    return keep.flatten(-2).movedim(-1, 1)
