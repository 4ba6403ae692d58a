"""A run directory: immutable results, one file pair per finished cell; doing a run again computes what is missing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robench.errors import ConfigError, StoreError, must
from robench.files import exclusive, remove_temporary, write_atomically
from robench.lineage import LEAD, cell_of, lead, lineage, own_columns
from robench.lineage import planned as columns_of
from robench.metrics.columns import ATTACKED, unfit
from robench.metrics.table import MEASURED
from robench.spec import SCHEMA, Cell, sha256
from robench.tables import read_parquet, to_parquet

_PLANNED = ("scenario", "model", "condition", "seed")
"""What ``run.json`` says of every planned cell; an evasion's threat and attack besides."""
_OWN_HASH = "header_sha256"
"""The key of a header's own hash."""
_AGAIN = "remove it to compute its cell again"
ANEW = "run the same command with the same --out again: it writes run.json anew and keeps finished cells"


@dataclass(frozen=True)
class Finished:
    """One finished cell on disk."""

    digest: str
    rows: Path
    header: dict[str, Any]
    cell: Cell | None = None
    """The cell of the header's lineage; None for a result of an older schema, which is never read."""


class Store:
    """Cells of one run directory: ``cells/<digest>.<content hash, 8>.parquet`` with a ``.json`` header."""

    def __init__(self, root: Path | str, *, lenient: bool = False) -> None:
        self.root = Path(root)
        self.lenient = lenient
        """Whether a header that is damaged or changed is noted and passed over, not refused; for ``verify``."""
        self.strange: dict[str, str] = {}
        """What is wrong with headers that were passed over: file name → one line."""
        self.cells = self.root / "cells"
        self.evidence = self.root / "evidence"

    @contextmanager
    def locked(self) -> Iterator[Store]:
        """Hold the run directory; a second writer is refused.

        Raises:
            StoreError: The folder cannot be written, another process is writing to it, or a folder in it is a link.
        """
        for folder in self._folders()[1:]:
            if folder.is_symlink():
                raise StoreError(
                    must(f"{folder}", "a folder of its own", "a symbolic link", "remove it or choose another --out")
                )
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(must("--out", "a writable folder", str(error), "choose another --out")) from error
        with exclusive(self.root / ".lock", what="the run directory"):
            yield self

    def finished(self) -> dict[str, Finished]:
        """Finished cells by digest; a pair is finished when its header is there.

        Raises:
            StoreError: A damaged or changed header, one that does not belong to its file or its cell, one written by a
                newer robench, or two different contents under one digest.
        """
        found: dict[str, Finished] = {}
        for path in sorted(self.cells.glob("*.json")):
            try:
                entry = read_header(path)
            except StoreError as error:
                if not self.lenient:
                    raise
                self.strange[path.name] = str(error)
                continue
            other = found.setdefault(entry.digest, entry)
            if other is not entry and not _same_numbers(other, entry):
                remedy = "keep one of the two files"
                raise StoreError(must(f"cell {entry.digest[:12]}", "stored once", [other.rows.name, path.name], remedy))
        return found

    def todo(self, cells: Iterable[Cell], *, images: bool = False) -> list[Cell]:
        """The cells that have no finished pair yet, in order; on request also attacks whose images were not kept."""
        done = self.finished()
        if images:
            kept = {d for d, path in self.image_headers().items() if _names_a_file(path)}
            done = {d: f for d, f in done.items() if f.header["scenario"] != "evasion" or d in kept}
        return [cell for cell in cells if cell.digest not in done]

    def put(self, cell: Cell, rows: pd.DataFrame, header: dict[str, Any]) -> None:
        """Store a finished cell: rows first, header last, so that a header always has its rows.

        Raises:
            StoreError: Unwritable folder or full disk.
        """
        data = to_parquet(rows)
        content = sha256(data)
        stem = self.cells / f"{cell.digest}.{content[:8]}"
        write_atomically(stem.with_name(stem.name + ".parquet"), data)
        about = {"schema": SCHEMA, "digest": cell.digest, "content": content, **lead(cell), "lineage": lineage(cell)}
        full = {**about, **header, "time": time.time()}
        write_atomically(stem.with_name(stem.name + ".json"), _sealed(full))

    def agrees(self, cell: Cell, rows: pd.DataFrame) -> bool:
        """Whether a finished cell that was computed again gave the same numbers.

        Raises:
            StoreError: Its stored rows are damaged.
        """
        data = to_parquet(rows)
        stored = _read(self.finished()[cell.digest])
        return _numbers(stored).equals(_numbers(read_parquet(data)))

    def put_images(self, digest: str, images: bytes, header: dict[str, Any]) -> None:
        """Store the images of a cell as ``evidence/<digest>.<content hash, 8>.safetensors``, their header last.

        Raises:
            StoreError: Unwritable folder or full disk.
        """
        content = sha256(images)
        file = self.evidence / f"{digest}.{content[:8]}.safetensors"
        write_atomically(file, images)
        full = {**header, "schema": SCHEMA, "digest": digest, "file": file.name, "content": content}
        write_atomically(self.evidence / f"{digest}.json", _sealed(full))
        for other in self.image_files(digest):
            if other != file:
                other.unlink(missing_ok=True)

    def image_headers(self) -> dict[str, Path]:
        """Headers of stored images by cell digest."""
        return {path.stem: path for path in sorted(self.evidence.glob("*.json"))}

    def image_files(self, digest: str) -> list[Path]:
        """Files of images of a cell, with or without a header."""
        return sorted(self.evidence.glob(f"{digest}.*.safetensors"))

    def put_failure(self, cell: Cell, error: str, *, skipped: bool = False, ended: bool = False) -> None:
        """Keep what is known of an attempt that failed, was skipped or ended its process; the cell stays to do."""
        counted = {"skipped": skipped, "endings": self.endings(cell.digest) + ended}
        text = json.dumps({**lead(cell), "error": error, **counted, "time": time.time()}, indent=1)
        write_atomically(self._failed(cell.digest), text.encode())

    def endings(self, digest: str) -> int:
        """How often attempts at a cell ended their process, over all runs into this directory."""
        count = _told(self._failed(digest)).get("endings", 0)
        return count if isinstance(count, int) else 0

    def last_error(self, digest: str) -> str:
        """Why the last attempt at a cell gave no result, one line; empty where none is known."""
        return str(_told(self._failed(digest)).get("error") or "").partition("\n")[0]

    def _failed(self, digest: str) -> Path:
        return self.root / "failed" / f"{digest}.json"

    def unfinished(self, planned: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """The planned cells still to do: the cell's columns, ``threat``, ``attack``, ``corruption``, ``status``, ``error``.

        ``status`` is ``skipped`` where an optional library was missing, ``failed`` after a failed attempt, and ``pending``
        where there was no attempt yet; ``error`` is one line.
        """
        done, rows = self.finished(), []
        for digest, about in sorted(planned.items()):
            if digest in done:
                continue
            told, error = _told(self._failed(digest)), self.last_error(digest)
            status = "skipped" if told.get("skipped") else "failed" if self._failed(digest).exists() else "pending"
            error = error or "no result yet: run the same command again"
            known = {name: about.get(name, "") for name in (*LEAD, "threat", "attack", "corruption")} | {"cell": digest}
            rows.append({**known, "status": status, "error": error})
        return pd.DataFrame(rows, columns=[*LEAD, "threat", "attack", "corruption", "status", "error"])

    def frames(self, digests: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
        """Per-sample frames by scenario, led by the cell's columns; sorted by content, not by time.

        Args:
            digests: Of the cells that are wanted, by default all; or the ``cells`` of ``run.json``, which are compared.

        Raises:
            StoreError: A result does not match the hash in its header or the columns of its cell, is of another cell than
                ``run.json`` says, or was written by an older robench.
        """
        done = self.finished()
        if isinstance(digests, Mapping):
            require_planned(done, digests)
        chosen = sorted(done if digests is None else set(digests) & set(done))
        parts: dict[str, list[pd.DataFrame]] = {}
        for digest in chosen:
            entry = done[digest]
            if entry.header["schema"] != SCHEMA:
                raise StoreError(must(f"the schema of cell {digest[:12]}", str(SCHEMA), entry.header["schema"], ANEW))
            rows = self.rows(entry)
            for position, name in enumerate(LEAD):
                rows.insert(position, name, entry.header[name])
            parts.setdefault(entry.header["scenario"], []).append(rows)
        return {name: _joined(frames) for name, frames in sorted(parts.items())}

    def models(self) -> dict[str, str]:
        """Name -> digest of every model of the run that has a result without a condition.

        Raises:
            StoreError: As ``read_run`` and ``finished``.
        """
        planned = self.read_run()["cells"]
        cells = (found.cell for digest, found in sorted(self.finished().items()) if digest in planned)
        return {cell.model.label: cell.model.digest for cell in cells if cell is not None and not cell.condition}

    def rows(self, entry: Finished) -> pd.DataFrame:
        """A finished cell's rows, without the cell's columns.

        Raises:
            StoreError: They do not match the hash in their header, or name another threat, attack, ... than their cell.
        """
        return _read(entry)

    def write_run(self, header: dict[str, Any]) -> None:
        """Store the resolved configuration of the run as ``run.json``, with its own hash."""
        write_atomically(self.root / "run.json", _sealed(header))

    def read_run(self, *, changed: bool = False) -> dict[str, Any]:
        """The configuration written by the run: ``suite, seed, limited, versions`` and ``cells`` by digest.

        Args:
            changed: Whether a configuration is read too that its own hash does not fit.

        Raises:
            StoreError: This is no run directory, or its configuration is damaged, changed, or of an earlier robench's shape.
        """
        path = self.root / "run.json"
        if not path.is_file():
            raise StoreError(must("a run directory", "a folder with run.json", str(self.root), "name a folder under runs/"))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(must(str(path), "readable JSON", str(error), ANEW)) from error
        header = _run_header(path, found)
        if not (changed or _is_whole(header)):
            raise StoreError(must(str(path), "as it was written", "a changed one (its own hash does not fit)", ANEW))
        return {k: v for k, v in header.items() if k != _OWN_HASH}

    def last_run(self) -> dict[str, Any]:
        """The configuration of the run before, as far as it can be used; empty where there is none."""
        found = _told(self.root / "run.json")
        return found if isinstance(found.get("cells"), dict) and isinstance(found.get("identities"), dict) else {}

    def clean_temporary(self) -> None:
        """Remove what a killed run of robench left half-written, in the folders that robench writes to."""
        remove_temporary(self._folders())

    def _folders(self) -> list[Path]:
        """The run directory's folders: its own, and one per kept model or set of images; the run directory itself first."""
        artifacts = self.root / "artifacts"
        inner = sorted(artifacts.iterdir()) if artifacts.is_dir() and not artifacts.is_symlink() else []
        return [self.root, self.cells, self.evidence, self.root / "failed", artifacts, *inner]


def _told(path: Path) -> dict[str, Any]:
    """What is kept of an attempt; nothing where the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sealed(header: Mapping[str, Any]) -> bytes:
    """A header as JSON, with the hash of everything else in it."""
    rest = {k: v for k, v in header.items() if k != _OWN_HASH}
    return json.dumps({**rest, _OWN_HASH: _hash_of(rest)}, indent=1, sort_keys=True).encode()


def _hash_of(header: Mapping[str, Any]) -> str:
    """The hash of a header's content; that of ``canonical``, but for infinities, which a suite may hold."""
    return sha256(json.dumps(header, sort_keys=True, separators=(",", ":")))


def _is_whole(header: Mapping[str, Any]) -> bool:
    """Whether a header is as it was written, by its own hash."""
    return bool(header.get(_OWN_HASH) == _hash_of({k: v for k, v in header.items() if k != _OWN_HASH}))


def read_header(path: Path) -> Finished:
    """A finished cell by its header, which must fit its file's name, its own lineage and its own hash.

    Raises:
        StoreError: Names the first field that does not.
    """
    header = _header(path)
    if header["schema"] > SCHEMA:
        raise StoreError(must("the store's schema", f"at most {SCHEMA}", header["schema"], "update robench"))
    rows = path.with_suffix(".parquet")
    if header["schema"] < SCHEMA:
        return Finished(str(header["digest"]), rows, header)
    try:
        cell = cell_of(header["lineage"])
        digest, columns = cell.digest, lead(cell)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ConfigError) as error:
        raise _strange(path, "lineage", "a cell's", f"{type(error).__name__}: {error}") from error
    name, _, content = path.stem.partition(".")
    wanted = {"digest": digest, **columns, "settings": header["lineage"]["settings"]}
    for field, value in wanted.items():
        if header.get(field, value) != value:
            raise _strange(path, field, f"{value!r} as its lineage says", header[field])
    if name != digest:
        raise _strange(path, "file name", f"that of its cell, {digest[:12]}...", name)
    if not str(header["content"]).startswith(content):
        raise _strange(path, "content", f"the hash of its file's name, {content}...", header["content"])
    if not _is_whole(header):
        raise _strange(path, _OWN_HASH, "that of the header as it was written", header.get(_OWN_HASH))
    return Finished(digest, rows, header, cell)


def _strange(path: Path, field: str, expected: str, got: Any) -> StoreError:
    """A header that does not belong to its cell."""
    return StoreError(must(f"{field} in {path.parent.name}/{path.name}", expected, _short(got), _AGAIN))


def require_planned(done: Mapping[str, Finished], planned: Mapping[str, Any]) -> None:
    """Compare what ``run.json`` says of its cells with the cells that are stored.

    Raises:
        StoreError: Names the first field that differs.
    """
    for digest, about in planned.items():
        for field, expected, got in unlike_planned(done.get(digest), about):
            what = f"{field} of cell {digest[:12]} in run.json"
            raise StoreError(must(what, f"{expected!r} as the stored cell says", _short(got), ANEW))


def unlike_planned(entry: Finished | None, about: Any) -> Iterator[tuple[str, Any, Any]]:
    """(field, what the stored cell says, what ``run.json`` says) wherever they differ."""
    if entry is None or entry.cell is None or not isinstance(about, Mapping):
        return
    own = json.loads(json.dumps(columns_of(entry.cell)))
    yield from ((field, own.get(field), about.get(field)) for field in about if own.get(field) != about[field])


def _header(path: Path) -> dict[str, Any]:
    needed = {"schema", "digest", "content", *LEAD}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(must(f"the header {path}", "readable JSON", str(error), _AGAIN)) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    needed |= {"lineage"} if schema == SCHEMA else set()
    if not isinstance(schema, int) or (schema <= SCHEMA and needed - set(found)):
        raise StoreError(must(f"the header {path}", "a cell's header", str(found)[:60], _AGAIN))
    return found


def _run_header(path: Path, found: Any) -> dict[str, Any]:
    """The content of ``run.json`` when it has the shape that loading and auditing need."""
    types = {"limited": bool, "suite": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(k, t()), t) for k, t in types.items()):
        raise StoreError(must(str(path), "a run's configuration (suite, limited, cells)", _short(found), ANEW))
    if "limited" not in found:
        raise StoreError(must(str(path), "told whether the run was limited", sorted(found), ANEW))
    cells = found.get("cells")
    if not isinstance(cells, dict):
        expected = "cells by digest with what each was to measure (earlier versions of robench wrote a list)"
        raise StoreError(must(str(path), expected, _short(cells), ANEW))
    for digest, about in cells.items():
        if not isinstance(about, dict) or not _planned_keys(about) <= set(about):
            expected = f"what cell {digest[:12]} was to measure ({', '.join(_PLANNED)}; threat and attack of an evasion)"
            raise StoreError(must(str(path), expected, _short(about), ANEW))
    return found


def _planned_keys(about: dict[str, Any]) -> set[str]:
    return {*_PLANNED, *(("threat", "attack") if about.get("scenario") == "evasion" else ())}


def _short(value: Any) -> str:
    return str(value)[:60]


def _read(entry: Finished) -> pd.DataFrame:
    try:
        data = entry.rows.read_bytes()
    except OSError as error:
        raise StoreError(must(str(entry.rows), "readable", str(error), "remove its header to compute it again")) from error
    remedy = "remove the pair and run again"
    if sha256(data) != entry.header["content"]:
        raise StoreError(must(str(entry.rows), "unchanged since it was written", "other bytes", remedy))
    try:
        rows = read_parquet(data)
    except ValueError as error:
        raise StoreError(must(str(entry.rows), "a table of numbers and texts", str(error), remedy)) from error
    for text in unfit(rows) if entry.header["scenario"] in ATTACKED else ():
        raise StoreError(must(f"the rows in {entry.rows.name}", "all columns of an attack's rows", text, remedy))
    for column, value in own_columns(entry.cell).items() if entry.cell and len(rows) else ():
        got = rows[column].astype(str).unique().tolist() if column in rows else [value]
        if got != [value]:
            raise StoreError(must(f"{column} in {entry.rows.name}", f"{value!r} as its cell's", _short(got), remedy))
    return rows


def _same_numbers(one: Finished, other: Finished) -> bool:
    return _numbers(_read(one)).equals(_numbers(_read(other)))


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what differs between runs."""
    return rows.drop(columns=list(MEASURED), errors="ignore")


def _names_a_file(header: Path) -> bool:
    """Whether the header of images can be read and its file is there."""
    try:
        return (header.parent / str(json.loads(header.read_text(encoding="utf-8"))["file"])).is_file()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([f.dropna(axis=1, how="all") for f in frames], ignore_index=True).reindex(
        columns=list(dict.fromkeys(c for f in frames for c in f.columns))
    )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds ``path``."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
