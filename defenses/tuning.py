"""Compressions that train: on what pruning left, or a smaller student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robench.compress._layers import is_layer
from robench.compress._prune import kept
from robench.defenses._distilled import Student
from robench.defenses.training import Images, TrainReport, train
from robench.errors import ConfigError, ModelError, must
from robench.registry import facts
from robench.spec import Ref


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a training within a compression has at hand."""

    images: Images
    teacher: nn.Module
    """The model before compression, frozen and in eval mode."""
    checkpoint: Path | None = None
    """File for the state of an unfinished training."""


@facts(version=1, simulated=False, needs="training", start="parent", trainable=True)
def finetune(
    model: nn.Module, *, lesson: Lesson,
    recipe: str = "standard", steps: int = 200, batch_size: int = 64, lr: float = 1e-3, seed: int = 0,
) -> TrainReport:  # fmt: skip
    """Train a model on, in place; weights of Conv2d and Linear layers that are exactly 0 stay 0.

    So it works on what pruning left; on an unpruned model it is the dense control with equal steps.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        lesson: Training images; the teacher is not used.
        recipe: Entry of the recipe table with its arguments.
        steps: Optimiser steps.
        batch_size: Images per step.
        lr: Highest rate of the one-cycle schedule.
        seed: Seed of batches and of the recipe's draws.

    Source: Han et al., NeurIPS 2015, section 3.1 (retraining what is left).
    """
    handles = [weight.register_hook(_Mask(weight)) for weight in _sparse(model)]
    try:
        return train(model, lesson.images, recipe=recipe, steps=steps, seed=seed, batch_size=batch_size, lr=lr,
                     checkpoint=lesson.checkpoint)  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()


@facts(version=1, simulated=False, needs="training", start="arch", trainable=True)
def distill(
    model: nn.Module, *, lesson: Lesson,
    arch: str = "small_cnn(width=8)", temperature: float = 4.0, alpha: float = 0.9, steps: int = 200, seed: int = 0,
) -> TrainReport:  # fmt: skip
    """Train a fresh student, in place, on its teacher's probabilities; ``alpha=0`` is the plain control with equal steps.

    Args:
        model: The student, of the architecture ``arch``.
        lesson: Training images and the teacher.
        arch: Architecture of the student; the caller has built it.
        temperature: Divides the logits of both, above 0.
        alpha: Weight of the teacher in [0, 1].
        steps: Optimiser steps of 64 images, at a highest rate of 0.003.
        seed: Seed of the student's start, of batches and of the recipe's draws.

    Source: Hinton et al., arXiv 1503.02531, section 2.
    """
    recipe = Ref.of("distilled", temperature=temperature, alpha=alpha)
    return train(Student(model, lesson.teacher), lesson.images, recipe=recipe, steps=steps, seed=seed,
                 checkpoint=lesson.checkpoint)  # fmt: skip


@facts(version=1, simulated=False, needs="training", start="parent", trainable=True)
def prune_gradually(
    model: nn.Module, *, lesson: Lesson,
    amount: float = 0.9, steps: int = 300, batch_size: int = 64, lr: float = 1e-3, seed: int = 0,
) -> TrainReport:  # fmt: skip
    """Train a model on, in place, while ever more of its smallest weights are set to 0, along a cubic schedule.

    Over the first three quarters of the steps the share rises as ``cubic`` says; a weight that went stays 0. Afterwards
    exactly round(amount * weights) of all Conv2d and Linear layers' weights together are 0. The dense control is
    ``amount=0``. An unfinished training begins anew.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        lesson: Training images; neither the teacher nor the checkpoint is used.
        amount: Share of the weights that is 0 at the end, in [0, 1].
        steps: Optimiser steps.
        batch_size: Images per step.
        lr: Highest rate of the one-cycle schedule.
        seed: Seed of batches.

    Raises:
        ConfigError: amount outside [0, 1].
        ModelError: No Conv2d or Linear layer.

    Source: Zhu & Gupta, arXiv 1710.01878, section 3, equation 1.
    """
    if not 0 <= amount <= 1:
        raise ConfigError(must("amount", "in [0, 1]", amount, "give a share, e.g. 0.9"))
    weights = _weights(model)
    if not weights:
        raise ModelError(must("a model to prune", "one with Conv2d or Linear layers", type(model).__name__, "use finetune"))
    rise = max(1, 3 * steps // 4)
    gone = [torch.zeros_like(w, dtype=torch.bool) for w in weights]

    @torch.no_grad()
    def thin(done: int, total: int, loss: float) -> None:
        """Set to 0 what went, again after every step: the optimiser's momentum would move it."""
        sizes = [w.detach().abs().masked_fill(g, -1.0).flatten().cpu() for w, g in zip(weights, gone, strict=True)]
        for weight, zero, keep in zip(weights, gone, kept(sizes, amount * cubic(done / rise), together=True), strict=True):
            zero |= ~keep.view(weight.shape).to(weight.device)
            weight.masked_fill_(zero, 0.0)

    return train(model, lesson.images, steps=steps, seed=seed, batch_size=batch_size, lr=lr, progress=thin)


def cubic(progress: float) -> float:
    """Share of the final sparsity, in [0, 1], after a share of the schedule: 1 - (1 - progress)^3, and 1 beyond its end.

    Source: Zhu & Gupta, arXiv 1710.01878, equation 1.
    """
    return 1.0 - (1.0 - min(progress, 1.0)) ** 3


class _Mask:
    """Lets no gradient at a weight that is 0, so that AdamW, whose decay keeps 0 too, never moves it."""

    def __init__(self, weight: Tensor) -> None:
        self.kept = weight.detach() != 0

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.kept


def _sparse(model: nn.Module) -> list[nn.Parameter]:
    """Distinct weights of convolutions and linear layers that hold zeros."""
    return [w for w in _weights(model) if bool(torch.any(w == 0))]


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """Distinct weights of convolutions and linear layers; those that a parametrisation computes are none."""
    layers = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and is_layer(m)]
    return list({id(w): w for w in layers if isinstance(w, nn.Parameter)}.values())
