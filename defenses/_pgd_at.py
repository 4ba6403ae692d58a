"""Adversarial training on projected gradient ascent."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses._inner import ascend, frozen_statistics
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def pgd_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    draws: Draws,
    step: int,
    eps: float = 0.1,
    steps: int = 7,
    step_size: float | None = None,
) -> Tensor:
    """Mean cross-entropy on adversarial images of the batch, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images (the start in the ball).
        step: Step of the training; each has its own draws.
        eps: linf radius in units of [0, 1].
        steps: Gradient steps of the search, made in eval mode.
        step_size: Length of a step; None is 2.5 eps / steps.

    Source: Madry et al., ICLR 2018, section 2.1; step size: section 5.
    """
    size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    start = x + eps * (2 * draws.uniform("pgd_at/start", tuple(x.shape[1:]), step=step) - 1)
    with frozen_statistics(model):
        x_adv = ascend(lambda z: F.cross_entropy(model(z), y), x, start, eps=eps, steps=steps, step_size=size)
    return F.cross_entropy(model(x_adv), y)
