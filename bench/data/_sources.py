"""Finding and reading the files of published data sets."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from robench.errors import DataError, must


def find(root: str | Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first of ``names`` that exists in the first of ``folders`` of ``root`` that has one; None without any."""
    candidates = (Path(root) / folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def missing(name: str, root: str | Path, files: Sequence[str], *, origin: str) -> DataError:
    """The error for a data set that is not on disk: which files are expected, and where they come from."""
    remedy = f"get {origin}, unpack it there, or pass root= with the folder that holds it"
    return DataError(must(f"the folder of {name}", "one with " + " or ".join(files), str(root), remedy))


def read_bytes(path: Path) -> bytes:
    """A file's content, unpacked where its name ends in ``.gz``.

    Raises:
        DataError: It cannot be read, or its compression is damaged.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(must(f"{path.name}", "a readable file", str(error), "download it again")) from error
