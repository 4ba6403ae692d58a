"""How data sets, their splits and their system files are named. Imports no torch."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

from robench.data import PREFIXES
from robench.errors import ConfigError, must
from robench.spec import Ref

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Split → the names that people give it, in any case."""

_SYSTEM = (
    ".*", "*:zone.identifier", "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "synophoto_*",
)  # fmt: skip
"""Files and folders that systems put among images: hidden ones (macOS, notebooks), of zips, NAS, Windows, Synology."""


def split_of(name: str) -> str | None:
    """The split that a name means, in any case; None for others."""
    return next((split for split, names in SPLITS.items() if name.casefold() in names), None)


def almost_split(name: str) -> str | None:
    """The split that one word of a name means, as in ``train_set``, ``val2017`` or ``Test images``; None for others."""
    words = re.split(r"[^a-z]+", name.casefold())
    return next((split for word in words if (split := split_of(word))), None)


def is_system(name: str) -> bool:
    """Whether a file or folder was put there by a system or a program, not by the owner of the images."""
    return any(fnmatchcase(name.casefold(), pattern) for pattern in _SYSTEM)


def parse_data(text: str) -> Ref:
    """A data set's name and arguments: ``digits``, ``cifar10(root='...')``, ``folder:PATH(size=32)``.

    After ``folder:`` or ``npz:`` a path that exists wins, also with parentheses in it; arguments are read from a final
    ``(key=...)`` only. ``folder(path='PATH', size=32)`` is the same as ``folder:PATH(size=32)``.

    Raises:
        ConfigError: The text is neither.
    """
    prefix, colon, rest = text.strip().partition(":")
    if colon and prefix in PREFIXES:
        return _of_path(prefix, rest)
    ref = Ref.parse(text)
    if ref.name not in PREFIXES:
        return ref
    path = ref.kwargs.get("path")
    if not isinstance(path, str) or not path:
        remedy = f"write {ref.name}:PATH or {ref.name}(path='PATH')"
        raise ConfigError(must(f"the path of {ref.name}", "given", path, remedy))
    return Ref.of(f"{ref.name}:{path}", **{k: v for k, v in ref.kwargs.items() if k != "path"})


def _of_path(prefix: str, rest: str) -> Ref:
    if not rest.strip():
        raise ConfigError(must(f"the path of {prefix}", "given", rest, f"write {prefix}:PATH"))
    if _exists(rest):
        return Ref(f"{prefix}:{rest}")
    for match in re.finditer(r"\(", rest) if rest.endswith(")") else ():
        start = match.start()
        if _is_arguments(rest[start:]):
            return Ref(f"{prefix}:{rest[:start]}", Ref.parse(f"f{rest[start:]}").args)
    if re.search(r"\(\s*[A-Za-z_]\w*\s*=[^()]*\)$", rest):  # meant as arguments: say what is wrong with them
        Ref.parse(f"f{rest[rest.rindex('(') :]}")
    return Ref(f"{prefix}:{rest}")


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, a home that is unknown, a null character
        return False


def _is_arguments(text: str) -> bool:
    """Whether a text from a parenthesis to the end is one list of keyword arguments."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and bool(call.keywords) and not call.args
