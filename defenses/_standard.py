"""Training without any protection."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def standard(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, step: int) -> Tensor:
    """Mean cross-entropy of the batch, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Not used.
        step: Not used.
    """
    return F.cross_entropy(model(x), y)
