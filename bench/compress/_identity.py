"""The arm without compression."""

from __future__ import annotations

import copy

from torch import nn

from robench.registry import facts


@facts(version=1, simulated=False, trainable=True)
def identity(model: nn.Module) -> nn.Module:
    """A deep copy of the model as it is, the control of every compression.

    Args:
        model: Any model.
    """
    return copy.deepcopy(model)
