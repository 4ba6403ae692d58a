"""Published -C folders of the user's: CIFAR-10-C's arrays, ImageNet-C's folders.

Source: Hendrycks & Dietterich, ICLR 2019; layouts as on Zenodo (records 2535967 and 2235448).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robench.data._folder import FileReader, folder
from robench.data.checks import check_split
from robench.data.dataset import Dataset
from robench.data.listing import LABELS, is_array, listed
from robench.errors import ConfigError, DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

SEVERITIES = 5
_OWN = "not stated: files of the user"


@facts(version=1, bundled=False)
def published_c(*, split: str = "test", root: str = "", corruption: str = "gaussian_noise", severity: int = 1) -> Dataset:
    """One corruption at one severity of a published -C folder, as a test set; ids are indices of the clean images.

    Args:
        split: ``test``.
        root: The folder, see ``robench.data.listing.listed``.
        corruption: Its name there.
        severity: 1 to 5.

    Raises:
        ConfigError: Another split or severity.
        DataError: Files missing or of another layout.
    """
    check_split(split, ("test",))
    if severity not in range(1, SEVERITIES + 1) or isinstance(severity, bool):
        raise ConfigError(must("severity", "1, 2, 3, 4 or 5", severity, "choose one of them"))
    digest = listed(root, corruption)
    name = f"published({Path(root).name}) {corruption} {severity}"
    if not is_array(root, corruption):
        found = folder(str(Path(root) / corruption / str(severity)))
        return replace(found, spec=replace(found.spec, name=name, splits=("test",)))
    images, labels = _arrays(root, corruption)
    count = len(images) // SEVERITIES
    classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    shape = (images.shape[3], *images.shape[1:3])
    spec = DatasetSpec(name, classes, shape, ("test",), licence=_OWN, citation=_OWN, sha256=f"{digest}/{severity}")
    reader = _rows(images, torch.arange(count) + (severity - 1) * count)
    return Dataset(spec, torch.arange(count), labels[:count], reader)


def severities(data: Dataset, root: str, corruption: str) -> tuple[Dataset, ...]:
    """The five published versions of the data set's images, easiest first.

    Arrays are matched by id (the index in the official test split), files by class and name.

    Raises:
        DataError: Files missing, of another size, or whose labels are not the data set's.
    """
    if is_array(root, corruption):
        return _of_arrays(data, root, corruption)
    return _of_files(data, Path(root) / corruption)


def _of_arrays(data: Dataset, root: str, corruption: str) -> tuple[Dataset, ...]:
    images, labels = _arrays(root, corruption)
    count = len(images) // SEVERITIES
    if (images.shape[3], *images.shape[1:3]) != data.spec.shape:
        got = (images.shape[3], *images.shape[1:3])
        raise DataError(
            must(f"the images of {corruption}.npy", f"of shape {data.spec.shape}", got, "name the data's own folder")
        )
    if len(data) and (int(data.ids.min()) < 0 or int(data.ids.max()) >= count):
        told = f"{int(data.ids.min())}..{int(data.ids.max())}"
        raise DataError(must("the ids of the clean images", f"in 0..{count - 1}", told, "use the official test split"))
    if not torch.equal(labels[data.ids], data.labels):
        wrong = int((labels[data.ids] != data.labels).sum())
        expected = f"those of {data.spec.name}"
        raise DataError(must(f"{LABELS} of {root}", expected, f"{wrong} others", "use the official test split in its order"))
    return tuple(replace(data, reader=_rows(images, data.ids + s * count)) for s in range(SEVERITIES))


def _arrays(root: str, corruption: str) -> tuple[np.ndarray, Tensor]:
    """Images (5 N, H, W, C) of uint8, severity after severity, not read yet; labels int64 (N or 5 N,)."""
    path = Path(root) / f"{corruption}.npy"
    try:
        images, labels = np.load(path, mmap_mode="r"), np.load(Path(root) / LABELS)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(must(str(path), "a readable array", str(error), "download it again")) from error
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) % SEVERITIES or not len(images):
        got = f"{images.dtype} {images.shape}"
        raise DataError(must(path.name, "uint8 (5 N, H, W, C)", got, "use the published files"))
    if labels.ndim != 1 or len(labels) not in (len(images), len(images) // SEVERITIES) or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {labels.shape}"
        raise DataError(must(LABELS, f"{len(images)} integers", got, "use the published files"))
    return images, torch.from_numpy(labels.astype(np.int64))


def _rows(images: np.ndarray, places: Tensor) -> Callable[[Tensor], Tensor]:
    """A reader of some rows of an array."""

    def read(rows: Tensor) -> Tensor:
        part = np.ascontiguousarray(images[places[rows].numpy()])
        return torch.from_numpy(part).permute(0, 3, 1, 2).to(torch.float32) / 255

    return read


def _of_files(data: Dataset, home: Path) -> tuple[Dataset, ...]:
    clean = _paths(data)
    return tuple(_level(data, home / str(s), clean) for s in range(1, SEVERITIES + 1))


def _level(data: Dataset, home: Path, clean: list[Path]) -> Dataset:
    paths = tuple(str(home / path.parent.name / path.name) for path in clean)
    for path in paths:
        if not Path(path).is_file():
            remedy = "use the folder made from these clean images"
            raise DataError(must("the corrupted version of each image", "there", f"no {path}", remedy))
    with Image.open(paths[0]) as first:
        size = (first.height, first.width)
    if size != data.spec.shape[1:]:
        remedy = f"pass size={size[0]} with the clean images"
        raise DataError(must(f"images of {home}", f"of {data.spec.shape[1:]} pixels", size, remedy))
    return replace(data, reader=FileReader(paths, data.spec.shape, "stretch"))


def _paths(data: Dataset) -> list[Path]:
    """The files of the clean images, in order."""
    reader: Any = data.reader
    rows = torch.arange(len(data))
    if hasattr(reader, "rows"):
        reader, rows = reader.reader, reader.rows
    if not isinstance(reader, FileReader):
        expected = "a folder data set"
        raise DataError(
            must("the clean images beside published folders", expected, data.spec.name, "use --data folder:PATH")
        )
    return [Path(reader.paths[row]) for row in rows.tolist()]
