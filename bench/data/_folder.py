"""A user's own images: one folder per class, read when asked for."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from robench.data.checks import check_split
from robench.data.dataset import Dataset
from robench.errors import ConfigError, DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
_SPLITS = ("train", "validation", "test")
_MODES = {1: "L", 3: "RGB"}
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_OWN = "not stated: files of the user"
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


@facts(version=1, bundled=False)
def folder(path: str, *, split: str = "test", size: int | None = None, fit: str = "stretch", channels: int = 3) -> Dataset:
    """Images of ``path/CLASS/**`` or ``path/SPLIT/CLASS/**``, opened when asked for; ids number the sorted paths.

    Without folders ``train``, ``validation`` or ``test`` that hold folders in turn, all is the split ``test``.
    Classes are those of all splits, sorted. Only headers and the hash are read at first.

    Args:
        path: The folder.
        split: ``train``, ``validation`` or ``test``, where there is one.
        size: Height and width to resize to (bilinear, antialiased); None asks for images of one size.
        fit: ``stretch`` ignores the aspect ratio, ``crop`` cuts the centre square first.
        channels: 3 for RGB, 1 for grey.

    Raises:
        ConfigError: Unknown split or fit, or an impossible size or number of channels.
        DataError: No images, one that cannot be read or is not 8-bit, or sizes that differ.
    """
    _check_options(size, fit, channels)
    home = Path(path)
    parts = _parts(home)
    root = parts[check_split(split, tuple(parts))]
    classes = tuple(sorted({name for part in parts.values() for name in _folders(part)}))
    files = [(file, label) for label, name in enumerate(classes) for file in _files(root / name)]
    if not files:
        expected = "one folder per class, with images (" + " ".join(_SUFFIXES) + ")"
        raise DataError(must("a folder data set", expected, str(root), "correct the path after 'folder:'"))
    paths = tuple(str(file) for file, _ in files)
    sizes, digest = _survey(root, [file for file, _ in files])
    shape = (channels, *_common_size(sizes, paths, size))
    spec = DatasetSpec(f"folder:{path}", classes, shape, tuple(parts), licence=_OWN, citation=_OWN, sha256=digest)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Dataset(spec, torch.arange(len(files)), labels, FileReader(paths, shape, fit))


@dataclass(frozen=True)
class FileReader:
    """Images in files, decoded at each call."""

    paths: tuple[str, ...]
    shape: tuple[int, int, int]
    """(channels, height, width) of every image."""
    fit: str

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), *self.shape)
        for i, row in enumerate(rows.tolist()):
            out[i] = torch.from_numpy(self._pixels(Path(self.paths[row]))).permute(2, 0, 1).to(torch.float32) / 255
        return out

    def _pixels(self, path: Path) -> np.ndarray:
        channels, height, width = self.shape
        try:
            with Image.open(path) as image:
                plain = image.convert(_MODES[channels])
        except _DAMAGED as error:
            raise _unreadable(path, error) from error
        if plain.size != (width, height):
            resize = ImageOps.fit if self.fit == "crop" else Image.Image.resize
            plain = resize(plain, (width, height), Image.Resampling.BILINEAR)
        return np.array(plain).reshape(height, width, channels)


def _check_options(size: int | None, fit: str, channels: int) -> None:
    if channels not in _MODES:
        raise ConfigError(must("channels", "1 (grey) or 3 (RGB)", channels, "choose one"))
    if fit not in ("stretch", "crop"):
        raise ConfigError(must("fit", "'stretch' or 'crop'", fit, "choose one"))
    if size is not None and size < 1:
        raise ConfigError(must("size", "at least 1 pixel", size, "e.g. size=224"))


def _parts(home: Path) -> dict[str, Path]:
    """Split to its folder. A class may be called ``train``: a split is known by the folders inside."""
    if not home.is_dir():
        raise DataError(must("a folder data set", "an existing folder", str(home), "correct the path after 'folder:'"))
    found = {name: home / name for name in _SPLITS if (home / name).is_dir() and _folders(home / name)}
    return found or {"test": home}


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _files(path: Path) -> list[Path]:
    found = (file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."))
    return sorted((file for file in found if file.is_file()), key=lambda file: file.as_posix())


def _survey(root: Path, files: list[Path]) -> tuple[list[tuple[int, int]], str]:
    """(height, width) of each file, and the hash of relative paths, lengths and bytes."""
    sizes, digest = [], hashlib.sha256()
    for file in files:
        try:
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                mode, (width, height) = image.mode, image.size
        except _DAMAGED as error:
            raise _unreadable(file, error) from error
        if mode not in _EIGHT_BIT:
            remedy = "convert it, choosing how to scale its values"
            raise DataError(must(str(file), "an 8-bit image", f"mode {mode}", remedy))
        sizes.append((height, width))
        digest.update(f"{file.relative_to(root).as_posix()}\n{len(data)}\n".encode())
        digest.update(data)
    return sizes, digest.hexdigest()


def _common_size(sizes: list[tuple[int, int]], paths: tuple[str, ...], size: int | None) -> tuple[int, int]:
    if size is not None:
        return size, size
    for path, other in zip(paths, sizes, strict=True):
        if other != sizes[0]:
            (h, w), (h0, w0) = other, sizes[0]
            remedy = f"pass size={min(h0, w0)} to resize them"
            raise DataError(must("images of a folder", f"all {h0}x{w0} as the first", f"{h}x{w} in {path}", remedy))
    return sizes[0]


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(must(str(path), "a readable image", str(error), "repair or remove it"))
