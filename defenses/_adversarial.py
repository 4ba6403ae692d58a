"""Adversarial training: losses on images that a small projected gradient ascent has made worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def pgd_at(
    model: nn.Module, x: Tensor, y: Tensor, *,
    draws: Draws, step: int, eps: float = 0.1, steps: int = 7, step_size: float | None = None,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy on adversarial images of the batch, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images (a uniform start in the ball).
        step: Step of the training; each has its own draws.
        eps: linf radius in units of [0, 1].
        steps: Gradient steps of the search, made in eval mode.
        step_size: Length of a step; None is 2.5 eps / steps.

    Source: Madry et al., ICLR 2018, section 2.1; step size: section 5.
    """
    start = x + eps * (2 * draws.uniform("pgd_at/start", tuple(x.shape[1:]), step=step) - 1)
    with frozen_statistics(model):
        worse = ascend(lambda z: F.cross_entropy(model(z), y), x, start, eps=eps, steps=steps, step_size=step_size)
    return F.cross_entropy(model(worse), y)


@facts(version=1)
def trades(
    model: nn.Module, x: Tensor, y: Tensor, *,
    draws: Draws, step: int, eps: float = 0.1, steps: int = 7, step_size: float | None = None, beta: float = 6.0,
) -> Tensor:  # fmt: skip
    """Mean of cross-entropy(clean) + beta KL(clean || adversarial) over the batch, a scalar.

    The search looks for the largest divergence from a Gaussian start of deviation 0.001; what is not listed here is as
    in ``pgd_at``.

    Args:
        beta: Weight of the divergence (the paper's 1 / lambda).

    Source: Zhang et al., ICML 2019, equation (5) and algorithm 1; beta: section 5.2.
    """
    start = x + 0.001 * draws.normal("trades/start", tuple(x.shape[1:]), step=step)
    with frozen_statistics(model):
        with torch.no_grad():
            clean = model(x)
        worse = ascend(lambda z: divergence(clean, model(z)), x, start, eps=eps, steps=steps, step_size=step_size)
    logits = model(x)
    return F.cross_entropy(logits, y) + beta * divergence(logits, model(worse))


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(logits) || softmax(other)) in nats, a scalar; logits (N, K)."""
    return F.kl_div(other.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, so that a search does not move running statistics; the mode of every part is restored."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for part, mode in modes:
            part.training = mode


def ascend(
    loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, eps: float, steps: int, step_size: float | None = None
) -> Tensor:
    """Images (N, C, H, W) within linf distance eps of ``x`` and in [0, 1], after signed steps that raise ``loss``.

    Args:
        loss: Images -> scalar; only its gradient with respect to the images is taken.
        x: Centre of the ball, pixels in [0, 1].
        start: First iterate; it is projected before the first step.
        eps: Radius in units of [0, 1].
        steps: Number of gradient steps.
        step_size: Length of a step in units of [0, 1]; None is 2.5 eps / steps.

    Source: Madry et al., ICLR 2018, section 2.1.
    """
    size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = start.clamp(low, high)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x_adv), x_adv)
        x_adv = (x_adv.detach() + size * gradient.sign()).clamp(low, high)
    return x_adv.detach()
