"""The inner maximisation of adversarial training: a small projected gradient ascent in the linf ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
    loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, eps: float, steps: int, step_size: float
) -> Tensor:
    """Images (N, C, H, W) within linf distance eps of ``x`` and in [0, 1], after signed steps that raise ``loss``.

    Args:
        loss: Images -> scalar; only its gradient with respect to the images is taken.
        x: Centre of the ball, pixels in [0, 1].
        start: First iterate; it is projected before the first step.
        eps: Radius in units of [0, 1].
        steps: Number of gradient steps.
        step_size: Length of a step in units of [0, 1].

    Source: Madry et al., ICLR 2018, section 2.1.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = start.clamp(low, high)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x_adv), x_adv)
        x_adv = (x_adv.detach() + step_size * gradient.sign()).clamp(low, high)
    return x_adv.detach()
