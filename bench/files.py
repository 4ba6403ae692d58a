"""Files that are either wholly there or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from robench.errors import StoreError, must


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file through a synced temporary one and a rename.

    Raises:
        StoreError: The folder cannot be written or the disk is full; nothing is left half-written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        remedy = "free space or choose another --out; the run resumes where it stopped"
        raise StoreError(must(f"{path.parent}", "a writable folder with free space", str(error), remedy)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
