"""TRADES: accuracy on clean images, and agreement between clean and adversarial predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses._inner import ascend, frozen_statistics
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    draws: Draws,
    step: int,
    eps: float = 0.1,
    steps: int = 7,
    step_size: float | None = None,
    beta: float = 6.0,
) -> Tensor:
    """Mean of cross-entropy(clean) + beta KL(clean || adversarial) over the batch, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images (Gaussian start of deviation 0.001).
        step: Step of the training; each has its own draws.
        eps: linf radius in units of [0, 1].
        steps: Gradient steps of the search for the largest divergence, made in eval mode.
        step_size: Length of a step; None is 2.5 eps / steps.
        beta: Weight of the divergence (the paper's 1 / lambda).

    Source: Zhang et al., ICML 2019, equation (5) and algorithm 1; beta: section 5.2.
    """
    size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    start = x + 0.001 * draws.normal("trades/start", tuple(x.shape[1:]), step=step)
    with frozen_statistics(model):
        with torch.no_grad():
            clean = model(x)
        x_adv = ascend(lambda z: divergence(clean, model(z)), x, start, eps=eps, steps=steps, step_size=size)
    logits = model(x)
    return F.cross_entropy(logits, y) + beta * divergence(logits, model(x_adv))


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(logits) || softmax(other)) in nats, a scalar; logits (N, K)."""
    return F.kl_div(other.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)
