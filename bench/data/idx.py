"""MNIST and Fashion-MNIST from their IDX files.

Source: LeCun, Cortes & Burges, the MNIST database, "File formats for the MNIST database".
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robench.data._sources import find, missing, read_bytes
from robench.data.checks import check_split
from robench.data.dataset import Dataset, from_arrays
from robench.errors import DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

_STEMS = {"train": "train", "test": "t10k"}

_MNIST = DatasetSpec(
    name="mnist",
    classes=tuple("0123456789"),
    shape=(1, 28, 28),
    splits=("train", "test"),
    licence="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 1998",
)
_FASHION = DatasetSpec(
    name="fashion_mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    shape=(1, 28, 28),
    splits=("train", "test"),
    licence="MIT",
    citation="Xiao, Rasul & Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking, arXiv:1708.07747, 2017",
)


@facts(version=1, classes=10, shape=(1, 28, 28), splits=("train", "test"), bundled=False)
def mnist(*, split: str = "test", root: str = "data/mnist") -> Dataset:
    """MNIST, 28x28 grey digits, from IDX files, gzipped or not; ids are official indices within the split.

    Args:
        split: ``train`` or ``test``.
        root: Folder with the files; ``raw`` and ``MNIST/raw`` below it are searched too.

    Raises:
        ConfigError: Unknown split.
        DataError: Files missing, damaged or truncated.
    """
    origin = "the four files of https://yann.lecun.com/exdb/mnist (mirror: https://ossci-datasets.s3.amazonaws.com/mnist)"
    return _load(_MNIST, split, root, folders=("", "raw", "MNIST/raw"), origin=origin)


@facts(version=1, classes=10, shape=(1, 28, 28), splits=("train", "test"), bundled=False, flips=True)
def fashion_mnist(*, split: str = "test", root: str = "data/fashion-mnist") -> Dataset:
    """Fashion-MNIST, 28x28 grey clothing, from IDX files, gzipped or not; ids are official indices within the split.

    Args:
        split: ``train`` or ``test``.
        root: Folder with the files; ``raw`` and ``FashionMNIST/raw`` below it are searched too.

    Raises:
        ConfigError: Unknown split.
        DataError: Files missing, damaged or truncated.
    """
    origin = "the four files of https://github.com/zalandoresearch/fashion-mnist (data/fashion)"
    return _load(_FASHION, split, root, folders=("", "raw", "FashionMNIST/raw"), origin=origin)


def _load(spec: DatasetSpec, split: str, root: str, *, folders: tuple[str, ...], origin: str) -> Dataset:
    stem = _STEMS[check_split(split, spec.splits)]
    images, labels = (
        _array(spec.name, root, f"{stem}-{kind}", folders=folders, ndim=ndim, origin=origin)
        for kind, ndim in (("images", 3), ("labels", 1))
    )
    return from_arrays(spec, images[:, None], labels.to(torch.int64))


def _array(name: str, root: str, stem: str, *, folders: tuple[str, ...], ndim: int, origin: str) -> Tensor:
    names = [f"{stem}{dot}idx{ndim}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    path = find(root, folders, names)
    if path is None:
        raise missing(name, root, names[:2], origin=origin)
    array = read_idx(path, ndim)
    if ndim == 3 and array.shape[1:] != (28, 28):
        raise DataError(must(f"images of {path.name}", "28x28", tuple(array.shape[1:]), f"get {origin}"))
    return array


def read_idx(path: Path, ndim: int) -> Tensor:
    """The array of an IDX file of unsigned bytes, uint8 with ``ndim`` dimensions.

    Args:
        path: The file; unpacked where its name ends in ``.gz``.
        ndim: Number of dimensions its header must announce.

    Raises:
        DataError: Another header, or more or fewer bytes than it announces.
    """
    data, head = read_bytes(path), 4 + 4 * ndim
    if len(data) < head or data[:4] != bytes((0, 0, 8, ndim)):
        expected = f"an IDX file of bytes, starting 00 00 08 {ndim:02d}"
        raise DataError(must(path.name, expected, data[:4].hex(" "), "download it again"))
    shape = struct.unpack(f">{ndim}I", data[4:head])
    if len(data) - head != math.prod(shape):
        what = f"the length of {path.name}, whose header announces {'x'.join(map(str, shape))},"
        remedy = "it is truncated or damaged: download it again"
        raise DataError(must(what, f"{head + math.prod(shape)} bytes", len(data), remedy))
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape).copy())
