"""A user's own images in a numpy archive."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.data.checks import check_labels
from robench.data.dataset import Dataset, from_arrays
from robench.errors import ConfigError, DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

_LAYOUTS = ("auto", "NCHW", "NHWC", "NHW")
_OWN = "not stated: files of the user"
Arrays = dict[str, np.ndarray]


@facts(version=1, bundled=False)
def npz(path: str, *, split: str = "test", layout: str = "auto", num_classes: int | None = None) -> Dataset:
    """Images ``x`` and labels ``y`` of a ``.npz`` file; ids are positions in the arrays.

    An archive with several splits names them ``x_test, y_test`` or ``test_x, test_y`` and so on; one with plain
    ``x, y`` is a test set. An array ``classes`` of texts names the classes.

    Args:
        path: The file. ``x`` is uint8, or float in [0, 1]; ``y`` is integer (N,) or (N, 1).
        split: ``test`` or any other name found in the archive.
        layout: ``NCHW``, ``NHWC`` or ``NHW``; ``auto`` looks where an extent of 1 or 3 is.
        num_classes: Number of classes; by default the names', else the largest label plus one.

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
    x, y = (arrays[key] for key in splits[split])
    names = _classes(arrays, [arrays[key] for _, key in splits.values()], num_classes)
    spec = DatasetSpec(f"npz:{path}", names, (0, 0, 0), tuple(splits), licence=_OWN, citation=_OWN)
    return from_arrays(spec, _images(x, layout), check_labels(_labels(y), len(names)))


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}  # a single array is no context: TypeError
    except FileNotFoundError as error:
        raise DataError(must("an npz data set", "an existing file", str(path), "correct the path after 'npz:'")) from error
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "write it with numpy.savez and plain number arrays"
        raise DataError(must(path.name, "an npz file without pickled objects", str(error), remedy)) from error


def _splits(arrays: Arrays) -> dict[str, tuple[str, str]]:
    """Split to the keys of its images and labels."""
    found = {"test": ("x", "y")} if {"x", "y"} <= set(arrays) else {}
    for key in arrays:
        if key.startswith("x_") and f"y_{key[2:]}" in arrays:
            found[key[2:]] = (key, f"y_{key[2:]}")
        if key.endswith("_x") and f"{key[:-2]}_y" in arrays:
            found[key[:-2]] = (key, f"{key[:-2]}_y")
    return found


def _classes(arrays: Arrays, labels: list[np.ndarray], num_classes: int | None) -> tuple[str, ...]:
    """Names of the classes; the labels of all splits count, so that every split has the same ones."""
    if "classes" in arrays:
        names = tuple(str(name) for name in np.atleast_1d(arrays["classes"]))
        if num_classes not in (None, len(names)):
            raise DataError(must("num_classes", f"{len(names)}, the archive's classes", num_classes, "leave it out"))
        return names
    largest = max(int(_labels(y).max()) for y in labels)
    return tuple(str(i) for i in range(num_classes or largest + 1))


def _labels(y: np.ndarray) -> Tensor:
    flat: Any = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.dtype.kind not in "iu" or flat.ndim != 1 or not len(flat):
        got = f"{flat.dtype} {flat.shape}"
        raise DataError(must("labels", "integers of shape (N,), at least one", got, "give one class index per image"))
    return torch.from_numpy(flat.astype(np.int64))


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
