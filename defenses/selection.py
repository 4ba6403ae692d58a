"""Early stopping: of several moments of one training, the weights that do best on a held-out part of the same sample."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.data.dataset import Dataset
from robench.data.sampling import held_out
from robench.defenses.training import TrainReport, accuracy, read_state, train
from robench.errors import ConfigError, ModelError, must
from robench.files import write_atomically
from robench.models.weights import weights_sha256


@dataclass(frozen=True)
class Selected:
    """What a training with early stopping leaves beside the weights."""

    report: TrainReport
    """Of the weights that were chosen; ``steps`` and ``n`` are those of the training, its validation images left out."""
    step: int
    """After which step the chosen weights were."""
    validation_accuracy: float
    """Highest of all moments, hence optimistic; never a test result."""
    validation_n: int


@dataclass
class _Best:
    """The best weights so far, kept beside the checkpoint, so that a resumed training chooses the same."""

    path: Path | None
    identity: str
    step: int = 0
    accuracy: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def restore(self) -> None:
        if self.path is None or not self.path.exists():
            return
        whole = read_state(self.path)
        if whole.get("identity") != self.identity:
            raise ModelError(must(f"the file {self.path}", "of this training", "one of another", "remove or rename it"))
        self.step, self.accuracy, self.weights = whole["step"], whole["accuracy"], whole["weights"]

    def offer(self, model: nn.Module, step: int, accuracy: float) -> None:
        """Keep the weights if they are better than all before; of equals the first stays."""
        if accuracy <= self.accuracy:
            return
        self.step, self.accuracy = step, accuracy
        self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        if self.path is not None:
            buffer = io.BytesIO()
            whole = {"identity": self.identity, "step": step, "accuracy": accuracy, "weights": self.weights}
            torch.save(whole, buffer)
            write_atomically(self.path, buffer.getvalue())


def train_selected(
    model: nn.Module,
    data: Dataset,
    *,
    validation: float,
    steps: int,
    seed: int,
    looks: int = 10,
    checkpoint: Path | None = None,
    **training: Any,
) -> Selected:
    """Train ``model`` in place on a part of ``data`` and leave the weights that did best on the rest of it.

    Nothing but ``data`` is looked at, so that with a scarce sample the choice is made by scarce images too. Validation
    labels carry the sample's label noise.

    Args:
        model: As for ``train``.
        data: The sample.
        validation: Share of the sample, stratified, that is held out and never trained on.
        steps: Optimiser steps.
        seed: Seed of the division and of the training.
        looks: How many times, evenly spaced and at last after the last step, the validation images are looked at.
        checkpoint: As for ``train``; the best weights are kept beside it.
        **training: Passed on to ``train``.

    Raises:
        ConfigError: The share is not in (0, 1), or there are more looks than steps.
        DataError: The sample is too small to divide.
        ModelError: As ``train``.

    Source: Prechelt, 1998 (early stopping), with the whole budget spent, so that arms take equal steps.
    """
    if not 1 <= looks <= steps:
        raise ConfigError(must("the looks of a training", f"in 1..{steps}", looks, "look at most once a step"))
    part, chosen = held_out(data, validation, seed=seed)
    best = _Best(checkpoint and checkpoint.with_name("best-" + checkpoint.name), f"{weights_sha256(model)}/{seed}/{steps}")
    best.restore()
    moments = {round(steps * (i + 1) / looks) for i in range(looks)}

    def look(done: int, total: int, loss: float) -> None:
        if done in moments:
            model.eval()
            best.offer(model, done, accuracy(model, chosen))
            model.train()

    report = train(model, part, steps=steps, seed=seed, checkpoint=checkpoint, progress=look, **training)
    model.load_state_dict(best.weights)
    if best.path is not None:
        best.path.unlink(missing_ok=True)
    report = replace(report, train_accuracy=accuracy(model, part), weights_sha256=weights_sha256(model))
    return Selected(report, best.step, best.accuracy, len(chosen))
