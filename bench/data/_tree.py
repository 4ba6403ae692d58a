"""The files of a folder data set: splits, classes, links, and what is no image. Nothing is opened."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from robench.data.classes import printable
from robench.data.names import SPLITS, almost_split, is_system, split_of
from robench.errors import ConfigError, DataError, must

FORMATS = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "QOI", "ICO",
    "XBM",
)  # fmt: skip
"""Pillow's decoders of raster images; none that starts a program (EPS) or is no picture of pixels (WMF, HDF5)."""
UNDECODED = (".heic", ".heif", ".jxl", ".svg", ".psd", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2")
"""Suffixes of images that Pillow cannot decode by itself."""
LAYOUTS = ("auto", "classes", "splits")

SYSTEM, NO_IMAGE, NOT_DECODED = "of the system", "no image file", "of a format that is not decoded"
OUTSIDE, SPECIAL, BROKEN_LINK = "outside class folders", "no regular file", "broken link"
LOOP, DOUBLED = "link back to a folder above", "link to a file read already"


@dataclass
class Part:
    """One split."""

    root: Path
    images: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    """Class → its images, sorted by path."""
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason → files that are no images of a class, relative to the root."""
    links_out: list[str] = field(default_factory=list)
    """Links that lead out of the data set's folder, relative to the root; they are followed."""

    def relative(self, path: Path) -> str:
        """A path below the root in composed form (NFC), so that it is the same on every file system."""
        return normal(path.relative_to(self.root).as_posix())


@dataclass(frozen=True)
class Tree:
    """A folder data set before an image is opened."""

    parts: dict[str, Part]
    """Split → its images, in the order train, validation, test."""
    beside: tuple[str, ...] = ()
    """Folders with files beside the splits, which are not read."""

    def classes(self) -> list[str]:
        """Names of the classes with an image in any split."""
        return sorted({name for part in self.parts.values() for name, files in part.images.items() if files})


def normal(name: str) -> str:
    """A name in composed form (NFC): macOS writes letters with accents as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=1)
def decoders() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Suffixes of the images that the installed Pillow decodes."""
    known = decoders()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in known)


def survey(path: str, *, layout: str = "auto") -> Tree:
    """Splits, classes and images of a folder.

    Args:
        path: ``path/CLASS/**`` or ``path/SPLIT/CLASS/**``.
        layout: ``classes`` or ``splits`` where the names do not say which.

    Raises:
        ConfigError: Another layout, or two folders for one split.
        DataError: No such folder, one that cannot be listed, an unclear layout, or names that contradict each other.
    """
    if layout not in LAYOUTS:
        raise ConfigError(must("layout", "one of " + ", ".join(LAYOUTS), layout, "choose one"))
    home = Path(path).expanduser()
    if not home.is_dir():
        raise DataError(must("a folder data set", "an existing folder", path, "correct the path after 'folder:'"))
    roots, beside = _splits(home, layout)
    boundary = home.resolve()
    tree = Tree({split: _part(root, boundary) for split, root in roots.items()}, tuple(beside))
    _require_one_spelling(tree)
    return tree


def _splits(home: Path, layout: str) -> tuple[dict[str, Path], list[str]]:
    """Split to its folder, and folders beside them. A class may be called ``train``: a split is known by folders inside."""
    if layout == "classes":
        return {"test": home}, []
    folders = [Path(entry.path) for entry in _listed(home) if not is_system(entry.name) and _is_folder(entry)]
    named: dict[str, list[Path]] = defaultdict(list)
    others = []
    for place in folders:
        split = split_of(place.name)
        if split and _holds_folders(place):
            named[split].append(place)
        elif not split:
            others.append(place.name)
    for split, places in named.items():
        if len(places) > 1:
            got = " and ".join(sorted(place.name for place in places))
            remedy = f"keep one, or name it: folder:{places[0]}"
            raise ConfigError(must(f"the split {split!r} of {home}", "one folder", got, remedy))
    if not named and layout == "splits":
        raise DataError(must(f"{home}", "a folder with train, val or test in it", "none", "leave layout out"))
    if len(named) == 1 and others and layout == "auto":
        got = f"{next(iter(named.values()))[0].name} beside {', '.join(sorted(others)[:3])}"
        remedy = "say layout='classes' if all of them are classes, layout='splits' if only the split is to be read"
        raise DataError(must(f"the folders of {home}", "classes or splits", got, remedy))
    if not named:
        _require_no_splits(home, others, layout)
        return {"test": home}, []
    return {split: named[split][0] for split in SPLITS if split in named}, sorted(others)


def _require_no_splits(home: Path, folders: list[str], layout: str) -> None:
    """Refuse folders that look like splits under other names (``train_set``, ``val2017``): as classes they mean nothing.

    Raises:
        DataError: Names them.
    """
    alike = {name: meant for name in folders if (meant := almost_split(name)) and _holds_folders(home / name)}
    if layout == "auto" and (len(set(alike.values())) > 1 or (alike and len(alike) == len(folders))):
        names = " and ".join(f"{name!r} to {meant!r}" for name, meant in sorted(alike.items())[:3])
        remedy = f"rename {names}, or say layout='classes' if they are classes"
        got = ", ".join(sorted(alike)[:3])
        raise DataError(must(f"the folders of {home}", "classes, or the splits train, validation and test", got, remedy))


def _holds_folders(place: Path) -> bool:
    return any(not is_system(entry.name) and _is_folder(entry) for entry in _listed(place))


def _part(root: Path, boundary: Path) -> Part:
    part = Part(root)
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for entry in _listed(root):
        place = Path(entry.path)
        if is_system(entry.name):
            part.left[SYSTEM].append(entry.name)
        elif _is_folder(entry):
            _walk(part, place, normal(_valid(entry.name, root)), seen, boundary)
        else:
            part.left[BROKEN_LINK if _is_broken(entry) else _outside(entry.name)].append(entry.name)
    for name in part.images:
        part.images[name].sort(key=lambda file: (part.relative(file), file.as_posix()))
    return part


def _outside(name: str) -> str:
    return OUTSIDE if Path(name).suffix.lower() in suffixes() else NO_IMAGE


def _walk(part: Part, top: Path, name: str, seen: dict[tuple[int, int], tuple[str, Path]], boundary: Path) -> None:
    """Put the images below one class folder into the part; links are followed, and nothing is taken twice."""
    part.images.setdefault(name, [])
    stack = [(top, frozenset([_identity(part.root)]))]
    while stack:
        place, above = stack.pop()
        if _leaves(place, boundary):
            part.links_out.append(part.relative(place))
        own = _identity(place)
        if own in above:
            part.left[LOOP].append(part.relative(place))
            continue
        for entry in _listed(place):
            file = Path(entry.path)
            if is_system(entry.name):
                part.left[SYSTEM].append(part.relative(file))
            elif _is_folder(entry):
                stack.append((file, above | {own}))
            else:
                _file(part, entry, name, seen, boundary)


def _file(
    part: Part, entry: os.DirEntry[str], name: str, seen: dict[tuple[int, int], tuple[str, Path]], boundary: Path
) -> None:
    file = Path(entry.path)
    shown, suffix = part.relative(file), file.suffix.lower()
    reason = _refused(entry, suffix)
    if reason:
        part.left[reason].append(shown)
        return
    own = _identity(file)
    other, first = seen.setdefault(own, (name, file))
    linked = entry.is_symlink() or _through_link(file, part.root) or _through_link(first, part.root) or first.is_symlink()
    if first != file and linked:
        if other != name:
            got = f"{printable(part.relative(first))} and {printable(shown)} are the same file"
            raise DataError(must(f"the images of {part.root}", "each of one class", got, "remove one of the links"))
        part.left[DOUBLED].append(shown)
        return
    if entry.is_symlink() and _leaves(file, boundary):
        part.links_out.append(shown)
    part.images[name].append(file)


def _refused(entry: os.DirEntry[str], suffix: str) -> str:
    """Why a file is no image to be read; empty where it is one."""
    if _is_broken(entry):
        return BROKEN_LINK
    if suffix in UNDECODED:
        return NOT_DECODED
    if suffix not in suffixes():
        return NO_IMAGE
    return "" if stat.S_ISREG(entry.stat().st_mode) else SPECIAL


def _through_link(file: Path, root: Path) -> bool:
    """Whether a folder between the root and the file is a link."""
    return any(place.is_symlink() for place in file.parents if place != root and place.is_relative_to(root))


def _identity(place: Path) -> tuple[int, int]:
    facts = place.stat()
    return facts.st_dev, facts.st_ino


def _is_broken(entry: os.DirEntry[str]) -> bool:
    try:
        entry.stat()
    except OSError:
        return True
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leaves(place: Path, boundary: Path) -> bool:
    """Whether a link leads out of the data set's folder."""
    return place.is_symlink() and not place.resolve().is_relative_to(boundary)


def _listed(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(must(f"the folder {place}", "readable", str(error), "check its permissions")) from error


def _valid(name: str, root: Path) -> str:
    """A class's name, once it is known to be text.

    Raises:
        DataError: Its bytes are no UTF-8, so no table could hold it.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(must(f"the class names in {root}", "UTF-8", ascii(name), "rename the folder")) from error
    return name


def _require_one_spelling(tree: Tree) -> None:
    """Refuse a class that is written ``Cat`` in one split and ``cat`` in another; both in one split are two classes.

    Raises:
        DataError: Names both.
    """
    spelled: dict[str, list[str]] = defaultdict(list)
    for name in tree.classes():
        spelled[name.casefold()].append(name)
    for names in spelled.values():
        where = {name: {split for split, part in tree.parts.items() if part.images.get(name)} for name in names}
        if len(names) > 1 and not any(all(split in where[name] for name in names) for split in tree.parts):
            got = ", ".join(f"{name} in {' and '.join(sorted(where[name]))}" for name in names)
            raise DataError(must("a class", "spelled alike in all splits", got, "rename one of the folders"))


def left_out(left: dict[str, list[str]], *, most: int = 2) -> str:
    """What was not read, by reason, with a few examples each; empty where nothing was left out."""
    return ", ".join(f"{len(files)} {reason} ({_examples(files, most)})" for reason, files in left.items() if files)


def _examples(files: list[str], most: int) -> str:
    told = ", ".join(printable(file, 40) for file in sorted(files)[:most])
    return told + (", ..." if len(files) > most else "")


def pairs(part: Part, classes: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """The images of a part with their labels: class after class."""
    for label, name in enumerate(classes):
        for file in part.images.get(name, ()):
            yield file, label
