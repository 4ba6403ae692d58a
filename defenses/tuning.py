"""Compressions that train: on what pruning left, or a smaller student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robench.defenses._distilled import Student
from robench.defenses.training import Images, TrainReport, train
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


class _Mask:
    """Lets no gradient at a weight that is 0, so that AdamW, whose decay keeps 0 too, never moves it."""

    def __init__(self, weight: Tensor) -> None:
        self.kept = weight.detach() != 0

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.kept


def _sparse(model: nn.Module) -> list[nn.Parameter]:
    """Distinct weights of convolutions and linear layers that hold zeros."""
    layers = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    weights = {id(layer.weight): layer.weight for layer in layers if isinstance(layer.weight, nn.Parameter)}
    return [w for w in weights.values() if bool(torch.any(w == 0))]
