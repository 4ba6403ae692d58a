"""What a published -C folder holds, without reading an image. Imports no torch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from robench.errors import DataError, must

LABELS = "labels.npy"
_CHUNK = 1 << 22


@lru_cache(maxsize=64)
def listed(root: str, name: str) -> str:
    """Hash of one corruption's files: of the bytes of ``NAME.npy``, or of the paths and lengths under ``NAME``.

    Args:
        root: The published folder: ``NAME.npy`` and ``labels.npy`` (as CIFAR-10-C), or ``NAME/SEVERITY/CLASS/*`` (as
            ImageNet-C).
        name: The corruption.

    Raises:
        DataError: Neither is there.
    """
    digest = hashlib.sha256()
    if is_array(root, name):
        for path in (Path(root) / f"{name}.npy", Path(root) / LABELS):
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()
    folder = Path(root) / name
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        expected = f"a folder with {name}.npy and {LABELS}, or {name}/SEVERITY/CLASS/*"
        raise DataError(must("the published corruptions", expected, root, "correct root, or leave the corruption out"))
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def is_array(root: str, name: str) -> bool:
    """Whether the corruption is one array beside labels, as in CIFAR-10-C."""
    return (Path(root) / f"{name}.npy").is_file() and (Path(root) / LABELS).is_file()
