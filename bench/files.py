"""Files that are either wholly there or not at all, under names that nobody else uses."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robench.errors import StoreError, must

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.robench-tmp")
"""Names of our own half-written files: 64 random bits, so that none can be put there beforehand."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks answers (some network file systems)."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file through a synced temporary one and a rename; a link at ``path`` is replaced, never followed.

    Raises:
        StoreError: The folder cannot be written or the disk is full; nothing is left half-written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.robench-tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        created = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(created, "wb") as handle:
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


def remove_temporary(folders: Iterable[Path]) -> None:
    """Remove files that ``write_atomically`` left half-written in these folders; links are not followed."""
    for folder in folders:
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file, which is made if missing and never changed; a second holder is refused.

    On a file system without locks the work goes on, with a warning.

    Raises:
        StoreError: Another process holds it, it is a link or no regular file, or it cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(must(f"{path}", "a file of robench's own", "a symbolic link", "remove it")) from error
        raise StoreError(must("--out", "a writable folder", str(error), "choose another --out")) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise StoreError(must(f"{path}", "a file of robench's own", "another kind of file", "remove it"))
        _lock(handle, path, what)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            remedy = "wait for it or choose another --out"
            raise StoreError(must(what, "used by one run at a time", str(path.parent), remedy)) from error
        text = f"{path.parent} is on a file system without locks ({error.strerror}): let one run at a time use it"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
