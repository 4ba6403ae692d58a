"""How the zoo's weights are made again from their recorded recipe and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from robench.data._digits import digits
from robench.data.dataset import Dataset
from robench.defenses.training import Progress, TrainReport, train
from robench.files import write_atomically
from robench.models.weights import fresh
from robench.zoo.entries import ZooEntry
from robench.zoo.loading import entry, load


def build(name: str, out: Path, *, progress: Progress | None = None) -> ZooEntry:
    """Train the zoo net ``name`` and write ``NAME.safetensors`` and ``NAME.json`` into ``out``.

    A training that was interrupted goes on from ``.NAME.checkpoint`` in the same folder. On the machine and with the
    versions of the recording, the weights are bit-identical to the recorded ones; elsewhere, rounding differs.

    Args:
        name: Name of the zoo.
        out: Folder for the two files; made where it is missing.
        progress: Called after each step with (steps done, steps in all, loss).

    Returns:
        The entry with the newly measured hash and accuracies.

    Raises:
        ConfigError: The zoo has no such net.
        StoreError: The folder cannot be written.
    """
    found = entry(name)
    model = _start(found)
    checkpoint = out / f".{name}.checkpoint"
    with single_thread():
        report = train(
            model, digits(split="train"), recipe=found.recipe, steps=found.steps, seed=found.seed,
            batch_size=found.batch_size, lr=found.lr, checkpoint=checkpoint, every=100, progress=progress,
        )  # fmt: skip
        facts = _facts(model, digits(split="test"), report)
    write_atomically(out / f"{name}.safetensors", safetensors.torch.save(model.state_dict()))
    write_atomically(out / f"{name}.json", (json.dumps(facts, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    return ZooEntry(**{**vars(found), **facts})


def _start(found: ZooEntry) -> nn.Module:
    model = fresh(found.arch, seed=found.seed)
    if found.start:
        inner = [part for part in model.children() if list(part.parameters())]
        inner[0].load_state_dict(load(found.start).state_dict())
    return model


def _facts(model: nn.Module, test: Dataset, report: TrainReport) -> dict[str, float | int | str]:
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in test.batches(64))
    return {
        "sha256": report.weights_sha256,
        "accuracy": right / len(test),
        "n": len(test),
        "train_accuracy": report.train_accuracy,
    }


@contextmanager
def single_thread() -> Iterator[None]:
    """One intra-op thread, so that sums are taken in one order; the former number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
