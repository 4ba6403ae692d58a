"""CIFAR-10 and CIFAR-100 from their official binary or Python archives.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the data sets' page (layouts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robench.data._pickles import read_pickle
from robench.data._sources import find, missing, read_bytes
from robench.data.checks import check_split
from robench.data.dataset import Dataset, from_arrays
from robench.errors import DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

_PIXELS = 3 * 32 * 32
_CITATION = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, University of Toronto 2009"
_LICENCE = "none stated by the authors; they ask for the citation"

_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class _Layout:
    """How an archive names its files and lays out its records."""

    spec: DatasetSpec
    folders: tuple[str, ...]
    batches: dict[str, tuple[str, ...]]
    """Split to file names without ``.bin``."""
    label_bytes: int
    """Bytes before the pixels of a binary record; the last of them is the label."""
    label_key: str
    """Key of the labels in a pickled batch."""
    origin: str


_CIFAR10 = _Layout(
    spec=DatasetSpec(
        name="cifar10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(3, 32, 32),
        splits=("train", "test"),
        licence=_LICENCE,
        citation=_CITATION,
    ),
    folders=("", "cifar-10-batches-bin", "cifar-10-batches-py"),
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_bytes=1,
    label_key="labels",
    origin="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
_CIFAR100 = _Layout(
    spec=DatasetSpec(
        name="cifar100",
        classes=tuple(_FINE.split()),
        shape=(3, 32, 32),
        splits=("train", "test"),
        licence=_LICENCE,
        citation=_CITATION,
    ),
    folders=("", "cifar-100-binary", "cifar-100-python"),
    batches={"train": ("train",), "test": ("test",)},
    label_bytes=2,
    label_key="fine_labels",
    origin="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
)


@facts(version=1, classes=10, shape=(3, 32, 32), splits=("train", "test"), bundled=False, flips=True)
def cifar10(*, split: str = "test", root: str = "data/cifar-10") -> Dataset:
    """CIFAR-10, 32x32 colour, from the official binary or Python archive; ids are official indices within the split.

    Args:
        split: ``train`` or ``test``.
        root: Folder with the batches, or the one that holds ``cifar-10-batches-bin`` or ``-py``.

    Raises:
        ConfigError: Unknown split.
        DataError: Files missing, damaged, or pickles that hold more than data.
    """
    return _load(_CIFAR10, split, root)


@facts(version=1, classes=100, shape=(3, 32, 32), splits=("train", "test"), bundled=False, flips=True)
def cifar100(*, split: str = "test", root: str = "data/cifar-100") -> Dataset:
    """CIFAR-100 with its 100 fine labels, from the official binary or Python archive; ids are indices within the split.

    Args:
        split: ``train`` or ``test``.
        root: Folder with the files, or the one that holds ``cifar-100-binary`` or ``cifar-100-python``.

    Raises:
        ConfigError: Unknown split.
        DataError: Files missing, damaged, or pickles that hold more than data.
    """
    return _load(_CIFAR100, split, root)


def _load(layout: _Layout, split: str, root: str) -> Dataset:
    names = layout.batches[check_split(split, layout.spec.splits)]
    parts = [_read(path, layout) for path in _paths(layout, names, root)]
    return from_arrays(layout.spec, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def _paths(layout: _Layout, names: Sequence[str], root: str) -> list[Path]:
    """Files of the batches; trailing ones may be absent (a shortened copy), but none in between."""
    first = find(root, layout.folders, (f"{names[0]}.bin", names[0]))
    if first is None:
        raise missing(layout.spec.name, root, (f"{names[0]}.bin", names[0]), origin=layout.origin)
    paths = [first.with_name(name + first.suffix) for name in names]
    there = [path.is_file() for path in paths]
    if there != sorted(there, reverse=True):
        gap = paths[there.index(False)].name
        what = f"the training batches of {layout.spec.name}"
        raise DataError(must(what, "without a gap", f"no {gap}", f"get {layout.origin}"))
    return [path for path, exists in zip(paths, there, strict=True) if exists]


def _read(path: Path, layout: _Layout) -> tuple[Tensor, Tensor]:
    read = _read_binary if path.suffix == ".bin" else _read_pickled
    pixels, labels = read(path, layout)
    x = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return x, torch.from_numpy(labels.astype(np.int64))


def _read_binary(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    data, record = np.frombuffer(read_bytes(path), dtype=np.uint8), layout.label_bytes + _PIXELS
    if not len(data) or len(data) % record:
        remedy = "it is truncated or of another data set: download it again"
        raise DataError(must(f"the length of {path.name}", f"a positive multiple of {record} bytes", len(data), remedy))
    rows = data.reshape(-1, record)
    return rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1]


def _read_pickled(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path)
    pixels, labels = batch.get("data"), batch.get(layout.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(must(f"'data' of {path.name}", f"uint8 (N, {_PIXELS})", got, "use the official files"))
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        what = f"{layout.label_key!r} of {path.name}"
        raise DataError(must(what, f"a list of {len(pixels)} integers", type(labels).__name__, "use the official files"))
    return pixels, np.array(labels, dtype=np.int64)
