"""The one training loop: seeded batches, AdamW on a one-cycle rate, checkpoints that resume bit by bit."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robench.defenses import TABLE_AUGMENTATIONS, TABLE_RECIPES
from robench.errors import ConfigError, DataError, ModelError, must
from robench.files import write_atomically
from robench.models.weights import DAMAGED, weights_sha256
from robench.ops.random import Draws, permutation
from robench.registry import Table
from robench.spec import Ref

RECIPES = Table("recipes", TABLE_RECIPES)
"""Our recipes and those of the entry-point group ``robench.recipes``."""
AUGMENTATIONS = Table("augmentations", TABLE_AUGMENTATIONS)
"""Our augmentations and those of the entry-point group ``robench.augmentations``."""
TRAIN_PRECISIONS = ("float32", "bfloat16")

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss of the batch)."""


class Images(Protocol):
    """What training needs of a data set; ``robench.data.Dataset`` has it."""

    @property
    def ids(self) -> Any: ...
    @property
    def labels(self) -> Any: ...
    def images(self, rows: Any) -> Tensor: ...


@dataclass(frozen=True)
class TrainReport:
    """What a training leaves beside the weights."""

    steps: int
    seed: int
    n: int
    """Training images."""
    train_accuracy: float
    """Share of the training images, unchanged, that the final model in eval mode classifies rightly."""
    weights_sha256: str


@dataclass(frozen=True)
class _Source:
    images: Callable[[Tensor], Tensor]
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def train(
    model: nn.Module,
    x: Tensor | Images,
    y: Tensor | None = None,
    *,
    recipe: Ref | str = "standard",
    steps: int,
    seed: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    augment: Ref | str = "",
    precision: str = "float32",
    ids: Tensor | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
    progress: Progress | None = None,
) -> TrainReport:
    """Train ``model`` in place, leave it in eval mode, and report; the same arguments give the same bits.

    The number of steps does not depend on the number of images, so that arms of different size are comparable. Each
    epoch is a permutation seeded by (seed, epoch), of which every image is used at most once.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K); its weights are the start.
        x: Images (N, C, H, W), or a data set with ``ids``, ``labels`` and ``images(rows)``.
        y: Labels, int64 (N,); left out for a data set.
        recipe: Entry of the recipe table with its arguments, e.g. ``pgd_at(eps=0.1)``.
        steps: Optimiser steps.
        seed: Seed of batches and of the recipe's draws.
        batch_size: Images per step; all of them where there are fewer.
        lr: Highest rate of the one-cycle schedule.
        augment: Entry of the augmentation table with its arguments, done to each batch before the recipe; empty: none.
        precision: ``bfloat16`` computes the loss under autocast, on channels-last images; the weights stay float32.
        ids: Sample ids, int64 (N,), of a tensor ``x``; default 0..N-1.
        checkpoint: File that holds the state every ``every`` steps; if it is there, training goes on from it.
        every: Steps between checkpoints.
        progress: Called after each step, before it is saved, so that no step's call is lost when a training goes on.

    Raises:
        DataError: No images, or labels that do not fit them.
        ModelError: The loss is not finite, or the checkpoint is of another training or damaged.
        ConfigError: Unknown recipe, augmentation or precision.
        StoreError: The checkpoint cannot be written.
    """
    source = _source(x, y, ids)
    loss = _Loss.of(recipe, augment, precision=precision, seed=seed, num_classes=_width(model, source) if augment else 0)
    state = _State(model, lr, channels_last=precision == "bfloat16")
    identity = _identity(model, source, plan=(*loss.told, steps, seed, batch_size, lr)) if checkpoint else ""
    first = state.restore(checkpoint, identity) if checkpoint else 0
    model.train()
    for step in range(first, steps):
        rows = batch_rows(len(source), batch_size, seed=seed, step=step)
        value = _step(state, source, loss, rows=rows, rate=learning_rate(step, steps, lr), step=step)
        if progress:
            progress(step + 1, steps, value)
        if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
            state.save(checkpoint, identity, step + 1)
    model.eval()
    return TrainReport(steps, seed, len(source), accuracy(model, source), weights_sha256(model))


def batch_rows(n: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Positions (int64) of the images of one step; those of one epoch are disjoint, and its rest is left out."""
    size = min(n, batch_size)
    epoch, batch = divmod(step, n // size)
    return permutation(seed, "train/order", n, step=epoch)[batch * size : (batch + 1) * size]


def learning_rate(step: int, steps: int, lr: float) -> float:
    """Rate of a step: linear rise over the first fifth up to ``lr``, then half a cosine down to 0.

    Source: Smith & Topin, 2018 (one-cycle); Loshchilov & Hutter, ICLR 2017 (cosine).
    """
    done, rise = step + 1, max(1.0, 0.2 * steps)
    if done <= rise:
        return lr * done / rise
    return lr * 0.5 * (1 + math.cos(math.pi * (done - rise) / (steps - rise)))


def _source(x: Tensor | Images, y: Tensor | None, ids: Tensor | None) -> _Source:
    if isinstance(x, Tensor):
        labels = torch.as_tensor([] if y is None else y, dtype=torch.int64)
        found = _Source(x.__getitem__, labels, torch.arange(len(x)) if ids is None else ids)
        count = len(x)
    else:
        found = _Source(x.images, torch.as_tensor(x.labels, dtype=torch.int64), torch.as_tensor(x.ids, dtype=torch.int64))
        count = len(found.ids)
    if not count or len(found.labels) != count or len(found.ids) != count:
        got = (count, len(found.labels), len(found.ids))
        raise DataError(must("images, labels and ids", "equally many, at least one", got, "give each image its label"))
    return found


@dataclass(frozen=True)
class _Loss:
    """A recipe's loss on augmented batches, in one precision."""

    recipe: Ref
    augment: Ref | None
    precision: str
    seed: int
    num_classes: int = 0
    """Number of the model's logits, for augmentations that mix labels."""

    @classmethod
    def of(cls, recipe: Ref | str, augment: Ref | str, *, precision: str, seed: int, num_classes: int) -> _Loss:
        """Check the names and fill in their defaults."""
        if precision not in TRAIN_PRECISIONS:
            expected = "one of " + ", ".join(TRAIN_PRECISIONS)
            raise ConfigError(must("the precision of a training", expected, precision, "use float32"))
        change = AUGMENTATIONS.resolve(augment) if augment else None
        return cls(RECIPES.resolve(recipe), change, precision, seed, num_classes)

    @property
    def told(self) -> tuple[str, ...]:
        """What names the loss in a checkpoint."""
        return (str(self.recipe), str(self.augment or ""), self.precision)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, step: int) -> Tensor:
        known = self.recipe.kwargs
        if self.augment is not None:
            changed = AUGMENTATIONS[self.augment.name].load()
            x, y = changed(x, y, num_classes=self.num_classes, draws=draws, step=step, **self.augment.kwargs)
        low = self.precision == "bfloat16"
        x = x.contiguous(memory_format=torch.channels_last) if low and x.dim() == 4 else x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            value: Tensor = RECIPES[self.recipe.name].load()(model, x, y, draws=draws, step=step, **known)
        return value


def _step(state: _State, source: _Source, loss: _Loss, *, rows: Tensor, rate: float, step: int) -> float:
    device = state.device
    x, y = source.images(rows).to(device), source.labels[rows].to(device)
    value = loss(state.model, x, y, draws=Draws(loss.seed, source.ids[rows].to(device)), step=step)
    if not bool(value.isfinite()):
        got = f"{value.item()} at step {step}"
        raise ModelError(must("the training loss", "finite", got, "lower lr, or check the images"))
    state.descend(value, rate)
    return float(value.item())


class _State:
    """Model and optimiser, and how they go to a file and back."""

    def __init__(self, model: nn.Module, lr: float, *, channels_last: bool = False) -> None:
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.lr = model, lr
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2, foreach=False, fused=False)

    def descend(self, loss: Tensor, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, path: Path, identity: str, step: int) -> None:
        whole = {
            "identity": identity,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(whole, buffer)
        write_atomically(path, buffer.getvalue())

    def restore(self, path: Path, identity: str) -> int:
        """Steps done so far: 0 where there is no checkpoint."""
        if not path.exists():
            return 0
        whole = read_state(path)
        if whole.get("identity") != identity:
            raise ModelError(must(f"the checkpoint {path}", "of this training", "one of another", "remove or rename it"))
        self.model.load_state_dict(whole["model"])
        self.optimizer.load_state_dict(whole["optimizer"])
        return int(whole["step"])


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        ModelError: It is damaged.
    """
    try:
        whole: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ModelError(must(f"the checkpoint {path}", "readable", str(error)[:120], "remove it to start anew")) from error
    return whole


def _identity(model: nn.Module, source: _Source, *, plan: tuple[Any, ...]) -> str:
    """Names a training by its start, its images' ids and labels, and its settings."""
    digest = hashlib.sha256(repr((weights_sha256(model), *plan)).encode())
    digest.update(source.ids.cpu().numpy().tobytes())
    digest.update(source.labels.cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _width(model: nn.Module, source: _Source) -> int:
    """Number of logits, found in eval mode, which moves no running statistics."""
    device = next(model.parameters()).device
    return int(model.eval()(source.images(torch.zeros(1, dtype=torch.int64)).to(device)).shape[1])


@torch.no_grad()
def accuracy(model: nn.Module, source: Images, *, width: int = 256) -> float:
    """Share of the images that the model, in the mode it is in, classifies as labelled; ``width`` at a time."""
    device = next(model.parameters()).device
    right = 0
    for rows in torch.arange(len(source.labels)).split(width):
        logits = model(source.images(rows).to(device))
        right += int((logits.argmax(1).cpu() == source.labels[rows].cpu()).sum())
    return right / len(source.labels)
