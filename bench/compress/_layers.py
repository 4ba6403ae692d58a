"""The layers that compression touches."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from robench.errors import ModelError, must

Layer = nn.Conv2d | nn.Linear


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer that is called as one.

    The projection inside ``nn.MultiheadAttention`` is not: its weight is read, and it is never called.
    """
    return isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def places(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every place (parent, name, layer) that holds a layer; a shared layer comes once per place."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and is_layer(child):
                yield parent, name, child


def bake(model: nn.Module) -> list[Layer]:
    """The model's distinct layers, with parametrised weights (spectral norm and such) made plain, in place.

    Raises:
        ModelError: The model has no convolution or linear layer.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and is_layer(m)]
    if not layers:
        raise ModelError(must("a model to compress", "one with Conv2d or Linear layers", type(model).__name__, "use float"))
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return layers
