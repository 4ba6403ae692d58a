"""A user's own images: one folder per class, read when asked for."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from robench.data._tree import Part, Tree, decoders, left_out, pairs, suffixes, survey
from robench.data.checks import check_split
from robench.data.classes import MOST_CLASSES, natural, printable
from robench.data.dataset import Dataset
from robench.errors import ConfigError, DataError, must
from robench.registry import facts
from robench.spec import DatasetSpec

_MODES = {1: "L", 3: "RGB"}
_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_OWN = "not stated: files of the user"
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, LookupError, NotImplementedError, MemoryError,
    UnidentifiedImageError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders raise on damaged files in practice."""
_ORIENTATION = 0x0112
"""EXIF tag of the camera's orientation. Source: Exif 2.32, CIPA DC-008."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""


@facts(version=2, bundled=False)
def folder(
    path: str,
    *,
    split: str = "test",
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    order: str = "auto",
    layout: str = "auto",
    exif: str = "apply",
    damaged: str = "refuse",
) -> Dataset:
    """Images of ``path/CLASS/**`` or ``path/SPLIT/CLASS/**``, opened when asked for; ids number the sorted paths.

    Without folders such as ``train``, ``val`` or ``test`` that hold folders in turn, all is the split ``test``. Classes are
    those with an image in any split. Everything that was not read is in ``spec.notes``.

    Args:
        path: The folder.
        split: ``train``, ``validation`` or ``test``, where there is one.
        size: Height and width to resize to (bilinear, antialiased); None asks for images of one size.
        fit: ``stretch`` ignores the aspect ratio, ``crop`` cuts the centre square first.
        channels: 3 for RGB, 1 for grey.
        order: Of the classes: ``auto`` counts names that are all integers and sorts others by text; ``number``, ``text``.
        layout: ``classes`` or ``splits``, where the folders' names do not say which.
        exif: ``apply`` turns photos upright as their EXIF orientation says, as people see them; ``ignore`` takes pixels as
            stored, as ``torchvision.datasets.ImageFolder`` does.
        damaged: ``refuse``, or ``skip`` images that cannot be decoded; they are counted.

    Raises:
        ConfigError: Unknown split or option, two folders for one split, or an impossible size or number of channels.
        DataError: No images, one that cannot be read or is not 8-bit, sizes that differ, or an unclear layout.
    """
    _check_options({"fit": fit, "exif": exif, "damaged": damaged}, size, channels)
    tree = survey(path, layout=layout)
    part = tree.parts[_part_of(tree, split, path)]
    names = tree.classes()
    if len(names) > MOST_CLASSES:
        raise DataError(must(f"the classes of {path}", f"at most {MOST_CLASSES}", len(names), "name another folder"))
    classes, called = natural(names, order)
    found = [(file, label, _looked_at(file)) for file, label in pairs(part, classes)]
    _check_images(found, damaged)
    kept = [(file, label, seen) for file, label, seen in found if not seen.error]
    if not kept:
        expected = "one folder per class, with images (" + " ".join(sorted(suffixes())) + ")"
        raise DataError(must("a folder data set", expected, str(part.root), "correct the path after 'folder:'"))
    upright = exif == "apply"
    paths = tuple(str(file) for file, _, _ in kept)
    shape = (channels, *_common_size([seen.upright if upright else seen.size for _, _, seen in kept], paths, size))
    digest = _identity(part, kept, classes, upright)
    notes = _notes(path, tree, part, found, upright=upright)
    known = DatasetSpec(f"folder:{path}", classes, shape, tuple(tree.parts), licence=_OWN, citation=_OWN)
    spec = replace(known, sha256=digest, order=f"folder {called}", notes=notes)
    labels = torch.tensor([label for _, label, _ in kept], dtype=torch.int64)
    return Dataset(spec, torch.arange(len(kept)), labels, FileReader(paths, shape, fit, upright))


@dataclass(frozen=True)
class FileReader:
    """Images in files, decoded at each call."""

    paths: tuple[str, ...]
    shape: tuple[int, int, int]
    """(channels, height, width) of every image."""
    fit: str
    upright: bool = True
    """Whether the EXIF orientation is applied."""

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), *self.shape)
        for i, row in enumerate(rows.tolist()):
            out[i] = torch.from_numpy(self._pixels(Path(self.paths[row]))).permute(2, 0, 1).to(torch.float32) / 255
        return out

    def _pixels(self, path: Path) -> np.ndarray:
        channels, height, width = self.shape
        try:
            with Image.open(path, formats=decoders()) as image:
                plain = _turned(image, self.upright).convert(_MODES[channels])
        except _DAMAGED as error:
            raise _unreadable(path, str(error)) from error
        if plain.size != (width, height):
            resize = ImageOps.fit if self.fit == "crop" else Image.Image.resize
            plain = resize(plain, (width, height), Image.Resampling.BILINEAR)
        return np.array(plain).reshape(height, width, channels)


@dataclass(frozen=True)
class _Look:
    """What is known of one file once it was decoded."""

    sha256: str
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    """(height, width) as stored."""
    orientation: int = 1
    frames: bool = False
    """Whether there is more than one picture in it; the first is taken."""
    transparent: bool = False
    error: str = ""

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) once turned upright."""
        return self.size[::-1] if self.orientation in _SIDEWAYS else self.size


def _turned(image: Image.Image, upright: bool) -> Image.Image:
    return ImageOps.exif_transpose(image) if upright and _orientation(image) != 1 else image


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF numbers them; 1, upright, where nothing or nonsense is said."""
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _looked_at(file: Path) -> _Look:
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return _Look("", error=str(error))
    return _decoded(str(file), digest)


@lru_cache(maxsize=1 << 18)
def _decoded(path: str, digest: str) -> _Look:
    """One file decoded once per process and content: only so is a cut image found before a run; JPEGs at an eighth."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=decoders()) as image:
            warnings.simplefilter("ignore")
            mode, (width, height), orientation = image.mode, image.size, _orientation(image)
            frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # MPO: a JPEG with its preview
            transparent = image.has_transparency_data
            image.draft("RGB" if mode == "RGB" else "L", (max(1, width // 8), max(1, height // 8)))
            image.load()
    except _DAMAGED as error:
        return _Look(digest, error=str(error) or type(error).__name__)
    return _Look(digest, mode, (height, width), orientation, frames, transparent)


def _check_options(choices: dict[str, str], size: int | None, channels: int) -> None:
    known = {"fit": ("stretch", "crop"), "exif": ("apply", "ignore"), "damaged": ("refuse", "skip")}
    for name, value in choices.items():
        if value not in known[name]:
            raise ConfigError(must(name, " or ".join(repr(k) for k in known[name]), value, "choose one"))
    if channels not in _MODES:
        raise ConfigError(must("channels", "1 (grey) or 3 (RGB)", channels, "choose one"))
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ConfigError(must("size", "a whole number of pixels, at least 1", size, "e.g. size=224"))


def _part_of(tree: Tree, split: str, path: str) -> str:
    if split == "test" and "test" not in tree.parts:
        known = ", ".join(part.root.name for part in tree.parts.values())
        remedy = f"name the folder to evaluate on, e.g. folder:{Path(path) / next(reversed(tree.parts.values())).root.name}"
        got = f"'test' of a folder with {known}"
        raise ConfigError(must(f"split of {path}", "one of " + ", ".join(tree.parts), got, remedy))
    return check_split(split, tuple(tree.parts))


def _check_images(found: list[tuple[Path, int, _Look]], damaged: str) -> None:
    """Refuse images that cannot be decoded, unless they are to be skipped, and such as are not 8-bit."""
    broken = [(file, seen.error) for file, _, seen in found if seen.error]
    if broken and damaged == "refuse":
        file, error = broken[0]
        raise _unreadable(file, error, len(broken) - 1)
    for file, _, seen in found:
        if not seen.error and seen.mode not in _EIGHT_BIT:
            remedy = "convert it, choosing how to scale its values"
            raise DataError(must(str(file), "an 8-bit image", f"mode {seen.mode}", remedy))


def _identity(part: Part, kept: list[tuple[Path, int, _Look]], classes: tuple[str, ...], upright: bool) -> str:
    """Hash of relative paths, contents and labels, of the classes in order, and of whether EXIF turns images."""
    digest = hashlib.sha256(f"{len(classes)} classes, upright {upright}\n".encode())
    for name in classes:
        digest.update(f"{name}\n".encode())
    for file, label, seen in kept:
        digest.update(f"{part.relative(file)}\n{label} {seen.sha256}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _notes(path: str, tree: Tree, part: Part, found: list[tuple[Path, int, _Look]], *, upright: bool) -> tuple[str, ...]:
    """What was read and what was not, one line each."""
    left = {reason: list(files) for reason, files in part.left.items()}
    broken = [part.relative(file) for file, _, seen in found if seen.error]
    left |= {"damaged": broken} if broken else {}
    total = len(found) + sum(len(files) for files in part.left.values())
    name = f"folder:{path}" if len(tree.parts) == 1 else f"folder:{path}, {part.root.name}"
    told = f"; left out: {left_out(left)}" if left_out(left) else ""
    lines = [f"read {len(found) - len(broken)} of {total} files of {printable(name, 200)}{told}"]
    lines += _beside(path, tree, part)
    kinds: dict[str, list[str]] = defaultdict(list)
    for file, _, seen in found:
        for kind in _kinds(seen, upright):
            kinds[kind].append(part.relative(file))
    return (*lines, *(f"{len(files)} of these images {kind} ({_example(files)})" for kind, files in kinds.items()))


def _kinds(seen: _Look, upright: bool) -> list[str]:
    """What is done to an image that is not plain RGB or grey."""
    turned = "are turned upright by their EXIF orientation" if upright else "keep their stored orientation against EXIF"
    told = {
        turned: seen.orientation != 1,
        "have transparency, which is dropped": seen.transparent,
        "hold several pictures, of which the first is taken": seen.frames,
        "are CMYK, converted without a colour profile": seen.mode == "CMYK",
    }
    return [kind for kind, applies in told.items() if applies and not seen.error]


def _beside(path: str, tree: Tree, part: Part) -> list[str]:
    """Folders that are no part of a split, and classes and links that need a word."""
    lines = []
    if tree.beside:
        lines.append(f"not read: {left_out({'folders beside the splits': list(tree.beside)})} of {printable(path, 200)}")
    empty = sorted(set(part.images) - set(tree.classes()))
    if empty:
        lines.append(f"{left_out({'folders without an image are no classes': empty})}")
    if part.links_out:
        lines.append(f"{left_out({'links out of the folder were followed': part.links_out})}")
    without = [name for name in tree.classes() if not part.images.get(name)]
    if without:
        lines.append(f"{left_out({f'classes without an image in {part.root.name}': without})}")
    return lines


def _example(files: list[str]) -> str:
    return printable(sorted(files)[0]) + (", ..." if len(files) > 1 else "")


def _common_size(sizes: list[tuple[int, int]], paths: tuple[str, ...], size: int | None) -> tuple[int, int]:
    if size is not None:
        return size, size
    for path, other in zip(paths, sizes, strict=True):
        if other != sizes[0]:
            (h, w), (h0, w0) = other, sizes[0]
            remedy = f"pass size={min(h0, w0)} to resize them"
            raise DataError(must("images of a folder", f"all {h0}x{w0} as the first", f"{h}x{w} in {path}", remedy))
    return sizes[0]


def _unreadable(path: Path, error: str, more: int = 0) -> DataError:
    """The error for an image that cannot be decoded, with how many others there are."""
    got = printable(error, 160) + (f" (and {more} more such images)" if more else "")
    return DataError(must(str(path), "a readable image", got, "repair or remove it, or leave such out with damaged='skip'"))
