"""Written tables of a run directory compared with what its rows give now."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robench.registry import facts
from robench.reports.write import table_files

_NAMES = ("model", "condition", "threat", "attack", "metric")
"""Columns that say which line of a table it is."""
_SHOWN = 3
"""Differences of one file that are named."""


@facts(version=1)
def unlike_tables(table: pd.DataFrame, folder: Path, header: Mapping[str, Any]) -> list[str]:
    """One line for every value of a written table that is another one than the rows give; missing files are no difference.

    Args:
        table: The tidy table of the run's rows.
        folder: The run directory.
        header: Its ``run.json``.
    """
    lines = []
    for name, content in sorted(table_files(table, header).items()):
        path = folder / name
        if path.is_file() and path.read_bytes() != content:
            lines += _differences(name, path.read_bytes(), content)
    return lines


def _differences(name: str, stored: bytes, again: bytes) -> list[str]:
    """Lines that name row and column where that can be told, else the line of the file."""
    found = list(_by_cell(name, stored, again)) if name.endswith(".csv") else []
    if not found and name.endswith(".parquet"):
        return [f"{name}: its rows are other ones than the cells' rows give"] if _other_frame(stored, again) else []
    if not found:
        pairs = zip(stored.decode(errors="replace").splitlines(), again.decode().splitlines(), strict=False)
        number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), 0)
        found = [f"{name}: line {number or 'count'} is another one than the cells' rows give"]
    more = [f"{name}: and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return found[:_SHOWN] + more


def _by_cell(name: str, stored: bytes, again: bytes) -> Iterator[str]:
    try:
        one, other = (pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False) for content in (stored, again))
    except ValueError:
        return
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        shapes = [f"{len(frame)} rows of {len(frame.columns)} columns" for frame in (one, other)]
        yield f"{name}: {shapes[0]}, and {shapes[1]} from the rows"
        return
    for row, (left, right) in enumerate(zip(one.to_dict("records"), other.to_dict("records"), strict=True)):
        for column in one.columns:
            if left[column] != right[column]:
                who = " ".join(str(right[key]) for key in _NAMES if right.get(key)) or f"row {row + 1}"
                yield f"{name}: {column} of {who} is {left[column]!r}, and {right[column]!r} from the rows"


def _other_frame(stored: bytes, again: bytes) -> bool:
    try:
        pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(stored)), pd.read_parquet(io.BytesIO(again)))
    except (AssertionError, ValueError, OSError):
        return True
    return False
