"""A user's own images in a numpy archive."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.data.checks import check_labels
from robench.data.classes import LABELS_ONLY, MOST_CLASSES
from robench.data.dataset import Dataset, from_arrays
from robench.data.names import split_of
from robench.errors import ConfigError, DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec, Ref, canonical, sha256

_LAYOUTS = ("auto", "NCHW", "NHWC", "NHW")
_OWN = "not stated: files of the user"
_DAMAGED = (
    OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, RuntimeError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise on damaged or enormous archives in practice."""
Arrays = dict[str, np.ndarray]


@facts(version=2, bundled=False)
def npz(
    path: str, *, split: str = "test", layout: str = "auto", num_classes: int | None = None, first_label: int = 0
) -> Dataset:
    """Images ``x`` and labels ``y`` of a ``.npz`` file; ids are positions in the arrays.

    An archive with several splits names them ``x_test, y_test`` or ``test_x, test_y`` and so on (``val``, ``valid`` and
    ``dev`` are validation); one with plain ``x, y`` is a test set. An array ``classes`` of texts names the classes.
    Labels that are exactly 1..K are refused, since they may count from 1 or lack class 0.

    Args:
        path: The file. ``x`` is uint8, or float in [0, 1]; ``y`` is integer (N,) or (N, 1), or whole numbers as float.
        split: ``test`` or any other name found in the archive.
        layout: ``NCHW``, ``NHWC`` or ``NHW``; ``auto`` looks where an extent of 1 or 3 is.
        num_classes: Number of classes; by default the names', else the largest label plus one.
        first_label: What the first class is called in ``y``: 0, or 1 where labels count from 1.

    Raises:
        ConfigError: Unknown layout.
        DataError: File or split missing, pickled objects, values or labels out of range, an ambiguous layout.
    """
    if layout not in _LAYOUTS:
        raise ConfigError(must("layout", "one of " + ", ".join(_LAYOUTS), layout, "say how x is laid out"))
    arrays = _read(Path(path))
    splits = _splits(arrays)
    if split not in splits:
        got = f"{split!r} of an archive with {', '.join(arrays) or 'nothing'}"
        raise DataError(must("split", f"x, y or x_{split}, y_{split} in the archive", got, "name the arrays so"))
    x = arrays[splits[split][0]]
    labels = {name: _labels(arrays[key], first_label) for name, (_, key) in splits.items()}
    given = {"layout": layout, "num_classes": num_classes, "first_label": first_label}
    asked = Ref.of(f"npz:{path}", **{k: v for k, v in given.items() if v not in ("auto", None, 0)})
    every = torch.cat(list(labels.values()))
    names = _classes(arrays, every, num_classes, first_label, asked)
    shift = f" minus {first_label}" if first_label else ""
    order = "names of the archive" if "classes" in arrays else f"{LABELS_ONLY}{shift}"
    used = () if "classes" in arrays else tuple(every.unique().tolist())
    about: dict[str, Any] = {"licence": _OWN, "citation": _OWN, "order": order}
    about["used"] = used if len(used) < len(names) else ()
    spec = DatasetSpec(f"npz:{path}", names, (0, 0, 0), tuple(splits), **about)
    found = from_arrays(spec, _images(x, layout), check_labels(labels[split], len(names)))
    identity = sha256(canonical([found.spec.sha256, list(names)]))
    return replace(found, spec=replace(found.spec, sha256=identity))


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}  # a single array is no context: TypeError
    except FileNotFoundError as error:
        raise DataError(must("an npz data set", "an existing file", str(path), "correct the path after 'npz:'")) from error
    except _DAMAGED as error:
        remedy = "write it with numpy.savez and plain number arrays"
        raise DataError(must(path.name, "an npz file without pickled objects", str(error), remedy)) from error


def _splits(arrays: Arrays) -> dict[str, tuple[str, str]]:
    """Split to the keys of its images and labels.

    Raises:
        DataError: Two pairs of arrays for one split.
    """
    found: dict[str, tuple[str, str]] = {}
    for key in arrays:
        if key == "x":
            name, other = "test", "y"
        elif key.startswith("x_"):
            name, other = key[2:], f"y_{key[2:]}"
        elif key.endswith("_x"):
            name, other = key[:-2], f"{key[:-2]}_y"
        else:
            continue
        split = split_of(name) or name
        if other in arrays and found.setdefault(split, (key, other)) != (key, other):
            raise DataError(
                must(f"the split {split!r}", "in the archive once", f"{found[split][0]} and {key}", "leave one out")
            )
    return found


def _classes(arrays: Arrays, labels: Tensor, num_classes: int | None, first_label: int, asked: Ref) -> tuple[str, ...]:
    """Names of the classes; the labels of all splits count, so that every split has the same ones.

    Raises:
        DataError: Labels below 0, more classes than ``MOST_CLASSES``, labels exactly 1..K, or names that do not fit.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        got = f"{low + first_label} at row {int((labels == low).nonzero()[0])} of all labels"
        raise DataError(
            must("labels", f"at least {first_label}", got, "leave unlabelled images out, or correct first_label")
        )
    if max(high + 1, num_classes or 0) > MOST_CLASSES or (num_classes is not None and num_classes < 1):
        count = num_classes if num_classes is not None and not 1 <= num_classes <= MOST_CLASSES else high + first_label
        raise DataError(must("labels and num_classes", f"for 1..{MOST_CLASSES} classes", count, "correct the labels"))
    named = _named(arrays["classes"]) if "classes" in arrays else None
    if named is not None and num_classes not in (None, len(named)):
        raise DataError(must("num_classes", f"{len(named)}, the archive's classes", num_classes, "leave it out"))
    count = num_classes or (len(named) if named else high + 1)
    told = num_classes is not None or (named is not None and len(named) > high)
    if not told and low == 1 and len(labels.unique()) == high:
        got = f"exactly 1..{high}"
        one, other = asked.replaced(first_label=first_label + 1), asked.replaced(num_classes=high + 1)
        remedy = f"say {one} if they count from 1, or {other} if class 0 has no image"
        raise DataError(must("labels", "counted from 0", got, remedy))
    return named or tuple(str(i) for i in range(count))


def _named(names: np.ndarray) -> tuple[str, ...]:
    """The member ``classes`` as texts."""
    if names.ndim != 1 or names.dtype.kind not in "USiu" or not 1 <= len(names) <= MOST_CLASSES:
        got = f"{names.dtype} {names.shape}"
        raise DataError(must("the array classes", f"one row of 1..{MOST_CLASSES} names", got, "give one text per class"))
    try:
        found = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())
    except UnicodeDecodeError as error:
        raise DataError(must("the array classes", "UTF-8", str(error), "write texts")) from error
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(must("the array classes", "different names", f"{twice!r} twice", "rename one"))
    return found


def _labels(y: np.ndarray, first_label: int) -> Tensor:
    """Labels that count from 0, int64 (N,); whole floats are taken as the integers that they are."""
    flat: Any = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    whole = flat.dtype.kind in "iu" or (flat.dtype.kind == "f" and bool((flat == np.floor(flat)).all()))
    if not whole or flat.ndim != 1 or not len(flat) or not np.isfinite(flat).all():
        got = f"{flat.dtype} {flat.shape}"
        remedy = "give one class index per image (of one-hot labels y.argmax(1))"
        raise DataError(must("labels", "integers of shape (N,), at least one", got, remedy))
    if float(flat.max()) - first_label >= MOST_CLASSES or float(flat.min()) < -MOST_CLASSES:
        got = f"{flat.min()}..{flat.max()}"
        raise DataError(must("labels", f"in {first_label}..{first_label + MOST_CLASSES - 1}", got, "correct the labels"))
    return torch.from_numpy(flat.astype(np.int64)) - first_label


def _images(x: np.ndarray, layout: str) -> Tensor:
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(must("images", "uint8, or float in [0, 1]", str(x.dtype), "convert them before saving"))
    kept = x if x.dtype == np.uint8 else x.astype(np.float32)
    found = _layout(x.shape) if layout == "auto" else layout
    if kept.ndim != len(found) or 0 in kept.shape:
        raise DataError(must("images", f"laid out as {found}, no extent 0", x.shape, "pass layout='NCHW', 'NHWC' or 'NHW'"))
    if found == "NHW":
        kept = kept[:, None]
    return torch.from_numpy(np.ascontiguousarray(kept.transpose(0, 3, 1, 2) if found == "NHWC" else kept))


def _layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "NHW"
    first, last = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (1, -1))
    if first == last:
        raise DataError(must("the layout of images", "clear from their shape", shape, "pass layout='NCHW' or layout='NHWC'"))
    return "NCHW" if first else "NHWC"
