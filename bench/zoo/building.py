"""How the zoo's weights are made again from their recorded recipe and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from robench.data import PREFIXES, TABLE
from robench.data.dataset import Dataset, fractions
from robench.data.names import parse_data
from robench.defenses.training import Progress, TrainReport, train
from robench.errors import ConfigError, must
from robench.files import write_atomically
from robench.models.weights import fresh, weights_sha256
from robench.registry import Table
from robench.zoo.entries import ZooEntry
from robench.zoo.loading import entry, load

DATA = Table("data", TABLE, PREFIXES)


def build(name: str, out: Path, *, data: str = "", progress: Progress | None = None) -> ZooEntry:
    """Train the zoo net ``name`` and write ``NAME.safetensors`` and ``NAME.json`` into ``out``.

    A training that was interrupted goes on from ``.NAME.checkpoint`` in the same folder. On the machine and with the
    versions of the recording, the weights are bit-identical to the recorded ones; elsewhere, rounding differs.

    Args:
        name: Name of the zoo.
        out: Folder for the two files; made where it is missing.
        data: Where the images are, e.g. ``cifar10(root='data')``; digits need none.
        progress: Called after each step with (steps done, steps in all, loss).

    Returns:
        The entry with the newly measured hash and accuracies.

    Raises:
        ConfigError: The zoo has no such net.
        StoreError: The folder cannot be written.
    """
    found = entry(name)
    train_images, test_images = (_images(found, data, split) for split in ("train", "test"))
    model = _start(found)
    checkpoint = out / f".{name}.checkpoint"
    with single_thread():
        report = train(
            model, fractions(train_images, [found.fraction], seed=found.seed)[0],
            recipe=found.recipe, steps=found.steps, seed=found.seed, batch_size=found.batch_size, lr=found.lr,
            augment=found.augment, precision=found.precision, checkpoint=checkpoint, every=100, progress=progress,
        )  # fmt: skip
        kept = _kept(model, half=found.half)
        facts = {**_facts(model, test_images, report), "sha256": weights_sha256(model)}
    write_atomically(out / f"{name}.safetensors", safetensors.torch.save(kept))
    write_atomically(out / f"{name}.json", (json.dumps(facts, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    return ZooEntry(**{**vars(found), **facts})


def _images(found: ZooEntry, data: str, split: str) -> Dataset:
    """One split of the images that an entry was trained on.

    Raises:
        ConfigError: Another data set than the entry's.
    """
    ref = parse_data(data or found.data)
    if ref.name != found.data:
        raise ConfigError(must("--data", f"{found.data}, which the net was trained on", data, "name that data set"))
    reader: Callable[..., Dataset] = DATA[ref.name].load()
    return reader(**{**ref.kwargs, "split": split})


def _kept(model: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """What goes into the file; with ``half`` the model's matrices and kernels are rounded to float16 first, in place."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in state.items()}
        model.load_state_dict(state)
    return state


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
        "train_n": report.n,
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
