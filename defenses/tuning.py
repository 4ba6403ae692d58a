"""Compressions that train: what is left of a pruned model, or a smaller student."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn

from robench.defenses._distilled import Student
from robench.defenses.training import Images, TrainReport, train
from robench.inference import untouched
from robench.registry import facts
from robench.spec import Ref


@facts(version=1, simulated=False, needs="training", trainable=True)
def finetune(
    model: nn.Module, *, training: Images, checkpoint: Path | None,
    recipe: str = "standard", steps: int = 200, batch_size: int = 64, lr: float = 1e-3, seed: int = 0,
) -> TrainReport:  # fmt: skip
    """Train a model on, in place; weights of Conv2d and Linear layers that are exactly 0 stay 0.

    So it works on what pruning left, and on an unpruned model it is the control with equal steps.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        training: Training images.
        checkpoint: File for the state of an unfinished training, or None.
        recipe: Entry of the recipe table with its arguments.
        steps: Optimiser steps.
        batch_size: Images per step.
        lr: Highest rate of the one-cycle schedule.
        seed: Seed of batches and of the recipe's draws.

    Source: Han et al., NeurIPS 2015, section 3.1 (retraining what is left).
    """
    handles = [weight.register_hook(_Mask(weight)) for weight in _sparse(model)]
    try:
        return train(
            model, training, recipe=recipe, steps=steps, seed=seed, batch_size=batch_size, lr=lr, checkpoint=checkpoint
        )
    finally:
        for handle in handles:
            handle.remove()


@facts(version=1, simulated=False, needs="training", start="arch", trainable=True)
def distill(
    model: nn.Module, *, teacher: nn.Module, training: Images, checkpoint: Path | None,
    arch: str = "small_cnn(width=8)", temperature: float = 4.0, alpha: float = 0.9, steps: int = 200, batch_size: int = 64, lr: float = 3e-3, seed: int = 0,
) -> TrainReport:  # fmt: skip
    """Train a student, in place, on its teacher's probabilities.
    """
    taught = Student(model, teacher)
