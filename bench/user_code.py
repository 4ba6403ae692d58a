"""The files of code that a result rests on and that are neither Python's, nor installed, nor robench's own. Runs none."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from robench.errors import ConfigError, ModelError, must

_INSTALLED = ("site-packages", "dist-packages")
"""Folders of packages that an installer put there: their distribution's version names them."""
_PACKAGES = ("robench", "robench.attacks", "robench.defenses", "robench.reports")
"""Our own packages, which may lie anywhere when they are installed in place."""


def is_users(file: Path | str) -> bool:
    """Whether a file of code is the user's own: not of the standard library, not installed, not of robench."""
    path = Path(file).resolve()
    return path.suffix == ".py" and not set(_INSTALLED) & set(path.parts) and not any(map(path.is_relative_to, _foreign()))


@lru_cache(maxsize=1)
def _foreign() -> tuple[Path, ...]:
    """Folders of the standard library and of robench."""
    library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    own = [place for name in _PACKAGES for place in getattr(sys.modules.get(name), "__path__", ())]
    return tuple(Path(place).resolve() for place in (*library, *own))


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_imports(files: Iterable[Path | str], *, places: Iterable[Path | str] = ()) -> tuple[Path, ...]:
    """The files and every file of the user's that they import, at any depth and in any function, sorted.

    Modules are looked for where Python would find them, and in ``places`` last; nothing is executed.
    """
    found: set[Path] = set()
    waiting = [Path(file).resolve() for file in files]
    while waiting:
        path = waiting.pop()
        if path in found or not is_users(path) or not path.is_file():
            continue
        found.add(path)
        waiting += _imported(path, tuple(places))
    return tuple(sorted(found))


def _imported(path: Path, places: tuple[Path | str, ...]) -> list[Path]:
    """Files of the modules that a file names in its imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found: list[Path] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [file for alias in node.names for file in _absolute(alias.name.split("."), places)]
        elif isinstance(node, ast.ImportFrom):
            for parts in _named(node):
                folder = path.parents[node.level - 1] if node.level else None
                found += list(_below(folder, parts)) if folder else _absolute(parts, places)
    return found


def _named(node: ast.ImportFrom) -> list[list[str]]:
    """What ``from a import b`` may mean: the module ``a``, or the module ``a.b``."""
    base = node.module.split(".") if node.module else []
    return [[*base, alias.name] for alias in node.names]


def _absolute(parts: list[str], places: tuple[Path | str, ...]) -> list[Path]:
    """Files of ``a``, ``a.b``, ... as far as they are modules, for an import by its whole name."""
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return [file for place in places for file in _below(Path(place), parts)]
    own = [Path(spec.origin)] if spec.origin and spec.has_location else []
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return own + [file for folder in folders for file in _below(folder, parts[1:])]


def _below(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Files of the modules along a path of names under a folder."""
    for part in parts:
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
        folder = folder / part
    if (folder / "__init__.py").is_file():
        yield folder / "__init__.py"


def content_of_module(module: str) -> str:
    """SHA-256 of what a plug-in's module comes with: every file of its package, and what of the user's that imports.

    Names count relative to the package, so that the same package in another folder has the same hash; a module that is
    not found has the hash of nothing.
    """
    files = files_of_module(module)
    top = _top(module)
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(top) if top and path.is_relative_to(top) else path.name
        digest.update(f"{name}\0{_hash_at(path, *_stamp(path))}\n".encode())
    return digest.hexdigest()


def files_of_module(module: str) -> tuple[Path, ...]:
    """The files of the top-level package of a module, or its one file, and what of the user's they import.

    Raises:
        ConfigError: The module is there and has no file, so that nothing would tell when it is changed.
    """
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return ()
    folders = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    own = [path for folder in folders for path in sorted(folder.rglob("*")) if _counts(path, folder)]
    if not own and spec.origin and spec.has_location:
        named = Path(spec.origin).resolve()
        own = [path for path in (named, *named.parents) if path.is_file()][:1]  # of a module in an archive the archive
    if not own:
        remedy = "install it as files of Python code"
        raise ConfigError(must(f"the module {module!r}", "code in files, whose content is part of a result", "none", remedy))
    return tuple(sorted({*own, *with_imports(own)}))


def _top(module: str) -> Path | None:
    spec = importlib.util.find_spec(module.partition(".")[0])
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]).resolve() if folders else None


def _counts(path: Path, package: Path) -> bool:
    """Whether a file is content of a package: no bytecode, and nothing whose name, or folder's in it, begins with a dot."""
    inside = path.relative_to(package).parts
    return path.is_file() and path.suffix not in (".pyc", ".pyo") and not any(part.startswith(".") for part in inside)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)
def _hash_at(path: Path, time_ns: int, size: int) -> str:
    """The hash of a file that was last written at a time."""
    return sha256_of(path)


def require_unchanged(files: Iterable[tuple[str, str]]) -> None:
    """Refuse to go on with code that is no longer the planned one: (path, SHA-256) pairs.

    Raises:
        ModelError: Names the first file that was changed or removed.
    """
    remedy = "run the same command again: it plans with the file as it is now"
    for path, planned in files:
        try:
            now = sha256_of(path)
        except OSError as error:
            raise ModelError(must(f"the file {path}", "as it was when the run was planned", str(error), remedy)) from error
        if now != planned:
            got = f"sha256 {now[:12]}... instead of {planned[:12]}..."
            raise ModelError(must(f"the file {path}", "unchanged since the run was planned", got, remedy))
