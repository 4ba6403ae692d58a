"""A run directory: immutable results, one file pair per finished cell; doing a run again computes what is missing."""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robench.errors import StoreError, must
from robench.files import write_atomically
from robench.metrics.table import MEASURED
from robench.spec import SCHEMA, Cell, canonical, sha256

LEAD = ("model", "dataset", "scenario", "condition", "seed", "cell")
"""Columns of the cell that lead every frame."""
_PLANNED = ("scenario", "model", "condition", "seed")
"""What ``run.json`` says of every planned cell; an evasion's threat and attack besides."""
_ANEW = "run the same command with the same --out again: it writes run.json anew and keeps finished cells"


@dataclass(frozen=True)
class Finished:
    """One finished cell on disk."""

    digest: str
    rows: Path
    header: dict[str, Any]


class Store:
    """Cells of one run directory: ``cells/<digest>.<content hash, 8>.parquet`` with a ``.json`` header."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.cells = self.root / "cells"
        self.evidence = self.root / "evidence"

    @contextmanager
    def locked(self) -> Iterator[Store]:
        """Hold the run directory; a second writer is refused.

        Raises:
            StoreError: The folder cannot be written, or another process is writing to it.
        """
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            raise StoreError(must("--out", "a writable folder", str(error), "choose another --out")) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                remedy = "wait for it or choose another --out"
                raise StoreError(must("the run directory", "used by one run at a time", str(self.root), remedy)) from error
            yield self

    def finished(self) -> dict[str, Finished]:
        """Finished cells by digest; a pair is finished when its header is there.

        Raises:
            StoreError: A damaged header, one written by a newer robench, or two different contents under one digest.
        """
        found: dict[str, Finished] = {}
        for path in sorted(self.cells.glob("*.json")):
            header = _header(path)
            if header["schema"] > SCHEMA:
                raise StoreError(must("the store's schema", f"at most {SCHEMA}", header["schema"], "update robench"))
            entry = Finished(header["digest"], path.with_suffix(".parquet"), header)
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
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        content = sha256(buffer.getvalue())
        stem = self.cells / f"{cell.digest}.{content[:8]}"
        write_atomically(stem.with_name(stem.name + ".parquet"), buffer.getvalue())
        lead = dict(zip(LEAD, _lead(cell), strict=True))
        full = {"schema": SCHEMA, "digest": cell.digest, "content": content, **lead, **header, "time": time.time()}
        write_atomically(stem.with_name(stem.name + ".json"), json.dumps(full, indent=1, sort_keys=True).encode())

    def agrees(self, cell: Cell, rows: pd.DataFrame) -> bool:
        """Whether a finished cell that was computed again gave the same numbers.

        Raises:
            StoreError: Its stored rows are damaged.
        """
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        stored = _read(self.finished()[cell.digest])
        return _numbers(stored).equals(_numbers(pd.read_parquet(io.BytesIO(buffer.getvalue()))))

    def put_images(self, digest: str, images: bytes, header: dict[str, Any]) -> None:
        """Store the images of a cell as ``evidence/<digest>.<content hash, 8>.safetensors``, their header last.

        Raises:
            StoreError: Unwritable folder or full disk.
        """
        content = sha256(images)
        file = self.evidence / f"{digest}.{content[:8]}.safetensors"
        write_atomically(file, images)
        full = {**header, "schema": SCHEMA, "digest": digest, "file": file.name, "content": content}
        text = json.dumps({**full, "header_sha256": sha256(canonical(full))}, indent=1, sort_keys=True)
        write_atomically(self.evidence / f"{digest}.json", text.encode())
        for other in self.image_files(digest):
            if other != file:
                other.unlink(missing_ok=True)

    def image_headers(self) -> dict[str, Path]:
        """Headers of stored images by cell digest."""
        return {path.stem: path for path in sorted(self.evidence.glob("*.json"))}

    def image_files(self, digest: str) -> list[Path]:
        """Files of images of a cell, with or without a header."""
        return sorted(self.evidence.glob(f"{digest}.*.safetensors"))

    def put_failure(self, cell: Cell, error: str, *, skipped: bool = False) -> None:
        """Keep what is known of an attempt that failed, or was skipped; the cell stays to do."""
        lead = dict(zip(LEAD, _lead(cell), strict=True))
        text = json.dumps({**lead, "error": error, "skipped": skipped, "time": time.time()}, indent=1)
        write_atomically(self.root / "failed" / f"{cell.digest}.json", text.encode())

    def unfinished(self, planned: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """The planned cells that are still to do: the cell's columns, ``threat``, ``attack``, ``status``, ``error``.

        ``status`` is ``skipped`` where an optional library was missing, else ``failed``; ``error`` is one line.
        """
        done, rows = self.finished(), []
        for digest, about in sorted(planned.items()):
            if digest in done:
                continue
            told = _told(self.root / "failed" / f"{digest}.json")
            error = str(told.get("error") or "no result yet: run the same command again").partition("\n")[0]
            status = "skipped" if told.get("skipped") else "failed"
            known = {name: about.get(name, "") for name in (*LEAD, "threat", "attack")} | {"cell": digest}
            rows.append({**known, "status": status, "error": error})
        return pd.DataFrame(rows, columns=[*LEAD, "threat", "attack", "status", "error"])

    def frames(self, digests: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
        """Per-sample frames by scenario, led by the cell's columns; sorted by content, not by time.

        Raises:
            StoreError: A result file does not match the hash in its header, or was written by an older robench.
        """
        done = self.finished()
        chosen = sorted(done if digests is None else set(digests) & set(done))
        parts: dict[str, list[pd.DataFrame]] = {}
        for digest in chosen:
            entry = done[digest]
            if entry.header["schema"] != SCHEMA:
                raise StoreError(must(f"the schema of cell {digest[:12]}", str(SCHEMA), entry.header["schema"], _ANEW))
            rows = self.rows(entry)
            for position, name in enumerate(LEAD):
                rows.insert(position, name, entry.header[name])
            parts.setdefault(entry.header["scenario"], []).append(rows)
        return {name: _joined(frames) for name, frames in sorted(parts.items())}

    def rows(self, entry: Finished) -> pd.DataFrame:
        """A finished cell's rows, without the cell's columns.

        Raises:
            StoreError: They do not match the hash in their header.
        """
        return _read(entry)

    def write_run(self, header: dict[str, Any]) -> None:
        """Store the resolved configuration of the run as ``run.json``."""
        write_atomically(self.root / "run.json", json.dumps(header, indent=1, sort_keys=True).encode())

    def read_run(self) -> dict[str, Any]:
        """The configuration written by the run: ``suite, seed, limited, versions`` and ``cells`` by digest.

        Raises:
            StoreError: This is no run directory, or its configuration is damaged or of an earlier robench's shape.
        """
        path = self.root / "run.json"
        if not path.is_file():
            raise StoreError(must("a run directory", "a folder with run.json", str(self.root), "name a folder under runs/"))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(must(str(path), "readable JSON", str(error), _ANEW)) from error
        return _run_header(path, found)

    def clean_temporary(self) -> None:
        """Remove what a killed run left half-written."""
        for path in self.root.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def _told(path: Path) -> dict[str, Any]:
    """What is kept of an attempt; nothing where the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lead(cell: Cell) -> tuple[Any, ...]:
    return (cell.model.label, cell.data.label, cell.scenario.name, cell.condition, cell.seed, cell.digest)


def _header(path: Path) -> dict[str, Any]:
    needed = {"schema", "digest", "content", *LEAD}
    remedy = "remove it to compute its cell again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(must(f"the header {path}", "readable JSON", str(error), remedy)) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or (schema <= SCHEMA and needed - set(found)):
        raise StoreError(must(f"the header {path}", "a cell's header", str(found)[:60], remedy))
    return found


def _run_header(path: Path, found: Any) -> dict[str, Any]:
    """The content of ``run.json`` when it has the shape that loading and auditing need."""
    types = {"limited": bool, "suite": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(k, t()), t) for k, t in types.items()):
        raise StoreError(must(str(path), "a run's configuration (suite, limited, cells)", _short(found), _ANEW))
    if "limited" not in found:
        raise StoreError(must(str(path), "told whether the run was limited", sorted(found), _ANEW))
    cells = found.get("cells")
    if not isinstance(cells, dict):
        expected = "cells by digest with what each was to measure (earlier versions of robench wrote a list)"
        raise StoreError(must(str(path), expected, _short(cells), _ANEW))
    for digest, about in cells.items():
        if not isinstance(about, dict) or not _planned_keys(about) <= set(about):
            expected = f"what cell {digest[:12]} was to measure ({', '.join(_PLANNED)}; threat and attack of an evasion)"
            raise StoreError(must(str(path), expected, _short(about), _ANEW))
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
    if sha256(data) != entry.header["content"]:
        remedy = "remove the pair and run again"
        raise StoreError(must(str(entry.rows), "unchanged since it was written", "other bytes", remedy))
    return pd.read_parquet(io.BytesIO(data))


def _same_numbers(one: Finished, other: Finished) -> bool:
    return _numbers(_read(one)).equals(_numbers(_read(other)))


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what differs between runs."""
    return rows.drop(columns=list(MEASURED), errors="ignore")


def _names_a_file(header: Path) -> bool:
    """Whether the header of images can be read and its file is there."""
    try:
        return (header.parent / str(json.loads(header.read_text(encoding="utf-8"))["file"])).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([f.dropna(axis=1, how="all") for f in frames], ignore_index=True).reindex(
        columns=list(dict.fromkeys(c for f in frames for c in f.columns))
    )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds ``path``."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
