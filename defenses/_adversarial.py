"""Adversarial training: losses on images that a small projected gradient ascent has made worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import ConfigError, must, suggestion
from robench.ops.norms import per_sample, steepest
from robench.ops.random import Draws
from robench.registry import facts

_NORMS = ("linf", "l2")


@facts(version=1)
def pgd_at(
    model: nn.Module, x: Tensor, y: Tensor, *,
    draws: Draws, step: int, eps: float = 0.1, steps: int = 7, step_size: float | None = None, norm: str = "linf",
) -> Tensor:  # fmt: skip
    """Mean cross-entropy on adversarial images of the batch, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images (the start: uniform in the linf ball, on the l2 sphere).
        step: Step of the training; each has its own draws.
        eps: Radius, in units of pixels in [0, 1].
        steps: Gradient steps of the search, made in eval mode.
        step_size: Length of a step; None is 2.5 eps / steps.
        norm: ``linf`` or ``l2``, the norm of the radius and of the steps.

    Raises:
        ConfigError: Another norm.

    Source: Madry et al., ICLR 2018, section 2.1; step size: section 5.
    """
    if norm not in _NORMS:
        raise ConfigError(must("pgd_at's norm", "one of " + ", ".join(_NORMS), norm, suggestion(norm, _NORMS)))
    if norm == "l2":
        noise = draws.normal("pgd_at/start", tuple(x.shape[1:]), step=step).to(x)
        start = x + eps * steepest(noise, "l2")
    else:
        start = x + eps * (2 * draws.uniform("pgd_at/start", tuple(x.shape[1:]), step=step) - 1)
    with frozen_statistics(model):
        told: dict[str, Any] = {"eps": eps, "steps": steps, "step_size": step_size, "norm": norm}
        worse = ascend(lambda z: F.cross_entropy(model(z), y), x, start, **told)
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
    loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, eps: float, steps: int, step_size: float | None = None,
    norm: str = "linf",
) -> Tensor:  # fmt: skip
    """Images (N, C, H, W) within distance eps of ``x`` and in [0, 1], after steepest steps that raise ``loss``.

    Args:
        loss: Images -> scalar; only its gradient with respect to the images is taken.
        x: Centre of the ball, pixels in [0, 1].
        start: First iterate; it is projected before the first step.
        eps: Radius in units of [0, 1].
        steps: Number of gradient steps.
        step_size: Length of a step in units of [0, 1]; None is 2.5 eps / steps.
        norm: ``linf`` (signed steps) or ``l2`` (normalised steps).

    Source: Madry et al., ICLR 2018, section 2.1.
    """
    size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)

    def within(points: Tensor) -> Tensor:
        return points.clamp(low, high) if norm == "linf" else _within_l2(points, x, eps)

    x_adv = within(start)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x_adv), x_adv)
        x_adv = within(x_adv.detach() + size * steepest(gradient, norm))
    return x_adv.detach()


def _within_l2(points: Tensor, x: Tensor, eps: float) -> Tensor:
    """Points pulled to within eps of ``x``, then into the box."""
    delta = points - x
    length = torch.linalg.vector_norm(delta.flatten(1), 2, dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return (x + delta * per_sample((eps / length).clamp(max=1), delta)).clamp(0, 1)
