"""The value every loader returns, and seeded stratified parts of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robench.data.checks import check_images, check_labels
from robench.data.classes import agree, agreed
from robench.errors import ConfigError, DataError, must
from robench.ops.random import permutation
from robench.spec import DatasetSpec

Reader = Callable[[Tensor], Tensor]
"""Rows, int64 (B,), to images, float32 (B, C, H, W) in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images that are read when asked for, with their labels and stable ids."""

    spec: DatasetSpec
    """Facts of the whole split; a part made by ``take`` keeps them, the content hash included."""
    ids: Tensor
    """int64 (N,): index of each sample in its source."""
    labels: Tensor
    """int64 (N,), in 0..len(spec.classes)-1."""
    reader: Reader
    true_labels: Tensor | None = None
    """int64 (N,): the labels before label noise was put on ``labels``; None where there is no noise."""

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.spec.classes))
        if self.ids.dtype != torch.int64 or self.ids.shape != self.labels.shape:
            got = f"{self.ids.dtype} {tuple(self.ids.shape)}"
            raise DataError(must("ids", f"int64 {tuple(self.labels.shape)}", got, "give one integer per label"))

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Tensor | None = None) -> Tensor:
        """Images of some positions (all by default), float32 (B, C, H, W) in [0, 1].

        Args:
            rows: int64 (B,), positions in 0..len-1.

        Raises:
            DataError: A position outside the set, or a file that can no longer be read.
        """
        return self.reader(torch.arange(len(self)) if rows is None else self._positions(rows))

    def take(self, rows: Tensor) -> Dataset:
        """The data set of some positions, int64 (B,), in that order; no image is read.

        Raises:
            DataError: A position outside the set.
        """
        rows = self._positions(rows)
        true = None if self.true_labels is None else self.true_labels[rows]
        return replace(
            self, ids=self.ids[rows], labels=self.labels[rows], reader=_picked(self.reader, rows), true_labels=true
        )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images, labels, ids) of consecutive positions, ``size`` at a time; the last may be smaller.

        Raises:
            ConfigError: The size is not positive.
        """
        if size < 1:
            raise ConfigError(must("a batch size", "at least 1", size, "ask for one image or more"))
        for start in range(0, len(self), size):
            rows = torch.arange(start, min(start + size, len(self)))
            yield self.images(rows), self.labels[rows], self.ids[rows]

    def _positions(self, rows: Tensor) -> Tensor:
        if rows.dtype != torch.int64 or rows.ndim != 1:
            raise DataError(must("rows", "int64 (B,)", f"{rows.dtype} {tuple(rows.shape)}", "give positions, not a mask"))
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            got = f"{int(rows.min())}..{int(rows.max())}"
            raise DataError(must("rows", f"in 0..{len(self) - 1}", got, "count positions from 0 within the set"))
        return rows


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Images held in memory."""

    array: Tensor
    """(N, C, H, W): uint8 in 0..255, or float32 in [0, 1]."""

    def __call__(self, rows: Tensor) -> Tensor:
        part = self.array[rows]
        return part.to(torch.float32) / 255 if part.dtype == torch.uint8 else part


@dataclass(frozen=True, eq=False)
class _Picked:
    reader: Reader
    rows: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return self.reader(self.rows[rows])


def _picked(reader: Reader, rows: Tensor) -> _Picked:
    if isinstance(reader, _Picked):
        return _Picked(reader.reader, reader.rows[rows])
    return _Picked(reader, rows)


def from_arrays(spec: DatasetSpec, array: Tensor, labels: Tensor, *, ids: Tensor | None = None) -> Dataset:
    """A data set held in memory, its content hash filled in.

    Args:
        spec: Facts; shape and sha256 are replaced by those of the content.
        array: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].
        labels: int64 (N,).
        ids: int64 (N,); positions by default.

    Raises:
        DataError: Values out of range, or numbers of images and labels that differ.
    """
    if len(array) != len(labels):
        raise DataError(must(f"images and labels of {spec.name}", "as many", (len(array), len(labels)), "restore the files"))
    if array.dtype != torch.uint8:
        check_images(array)
    _, channels, height, width = array.shape
    known = replace(spec, shape=(channels, height, width), sha256=content_hash(array, labels))
    return Dataset(known, torch.arange(len(labels)) if ids is None else ids, labels, ArrayReader(array))


def in_model_classes(dataset: Dataset, **given: Any) -> Dataset:
    """The same images with labels that are indices of a model's outputs.

    Args:
        dataset: The data set in its own classes.
        given: ``classes`` or ``class_map``, as for ``robench.data.classes.agree``.

    Raises:
        ConfigError: As ``agree``.
    """
    agreement = agree(dataset.spec.classes, used=dataset.spec.used, **given)
    index = torch.tensor(agreement.index, dtype=torch.int64)
    true = None if dataset.true_labels is None else index[dataset.true_labels]
    return replace(dataset, spec=agreed(dataset.spec, agreement), labels=index[dataset.labels], true_labels=true)


def content_hash(array: Tensor, labels: Tensor) -> str:
    """Hexadecimal SHA-256 of dtypes, shapes and bytes of images and labels."""
    digest = hashlib.sha256()
    for part in (array, labels):
        digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def stratified_order(labels: Tensor, seed: int, stage: str) -> Tensor:
    """A seeded order, int64 (N,), of which every prefix has each class within about one sample of its share.

    Each class is shuffled, its k-th of n samples is put at (k + 1/2) / n, and all are sorted by that place. So the
    first m samples hold m·n/N of a class, rounded, and every shorter prefix is part of a longer one.

    Args:
        labels: int64 (N,), not negative.
        seed: Another seed gives another order.
        stage: Name of the purpose; another purpose gives an independent order.
    """
    place = torch.zeros(len(labels), dtype=torch.float64)
    for label in torch.bincount(labels).nonzero().flatten().tolist():
        rows = (labels == label).nonzero().flatten()
        shuffled = rows[permutation(seed, stage, len(rows), step=label + 1)]
        place[shuffled] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    # The sort is stable, so samples of equal place keep the order of this shuffle and no class is always first.
    ties = permutation(seed, stage, len(labels))
    return ties[torch.argsort(place[ties], stable=True)]


def subset(dataset: Dataset, n: int, *, seed: int) -> Dataset:
    """A seeded stratified subset of ``n`` samples, in the order of the source.

    For one seed, a smaller subset is part of a larger one.

    Raises:
        ConfigError: ``n`` is not in 1..len(dataset).
    """
    if not 1 <= n <= len(dataset):
        raise ConfigError(must("the size of a subset", f"in 1..{len(dataset)}", n, "ask for no more images than there are"))
    return _prefix(dataset, stratified_order(dataset.labels, seed, "subset"), n)


def fractions(dataset: Dataset, fractions: Sequence[float], *, seed: int) -> tuple[Dataset, ...]:
    """Seeded stratified fractions, one data set for each, in the given order of fractions.

    They are nested: for one seed, a smaller fraction is part of a larger one, also across calls.

    Args:
        dataset: What to take a part of.
        fractions: Each in (0, 1].
        seed: Another seed gives other samples.

    Raises:
        ConfigError: A fraction is not in (0, 1].
        DataError: A fraction leaves a class without a sample; the class is named.
    """
    order = stratified_order(dataset.labels, seed, "fraction")
    return tuple(_fraction(dataset, order, value) for value in fractions)


def _fraction(dataset: Dataset, order: Tensor, fraction: float) -> Dataset:
    if not 0 < fraction <= 1:
        raise ConfigError(must("a fraction", "in (0, 1]", fraction, "e.g. 0.1 for ten percent"))
    part = _prefix(dataset, order, round(fraction * len(dataset)))
    counts = torch.bincount(part.labels, minlength=len(dataset.spec.classes))
    empty = [name for name, count in zip(dataset.spec.classes, counts.tolist(), strict=True) if not count]
    if empty:
        what = f"the fraction {fraction} of {dataset.spec.name} ({len(part)} of {len(dataset)} samples)"
        raise DataError(must(what, "at least one sample per class", f"none of {', '.join(empty)}", "use a larger fraction"))
    return part


def _prefix(dataset: Dataset, order: Tensor, n: int) -> Dataset:
    return dataset.take(order[:n].sort().values)
