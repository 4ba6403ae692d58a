"""Tables of the user beside a data set: which classes another one shares, groups of samples, reference models."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from robench.errors import DataError, must, suggestion


def positions(own: Sequence[str], known: Sequence[str], *, of: str) -> list[int]:
    """Place of each of a shifted set's classes among those of the data set, by name.

    Args:
        own: The shifted set's classes.
        known: The data set's classes.
        of: The shifted set's name, for the error.

    Raises:
        DataError: A class that the data set lacks, or fewer than two classes.
    """
    places = {name: i for i, name in enumerate(known)}
    for name in own:
        if name not in places:
            raise DataError(must(f"the classes of the shift {of}", "classes of the data set", name, suggestion(name, known)))
    if len(own) < 2:
        remedy = "add images of other classes"
        raise DataError(must(f"the classes of the shift {of}", "two or more", list(own), remedy))
    return [places[name] for name in own]


def read_groups(path: str | Path) -> dict[int, str]:
    """Sample id → name of its group, from a CSV file with the columns ``sample,group``.

    Raises:
        DataError: A file that cannot be read, other columns, an id that is no integer or stands twice, or an empty name.
    """
    found: dict[int, str] = {}
    for number, row in _rows(path, ("sample", "group")):
        place = f"line {number} of {path}"
        try:
            sample = int(row["sample"])
        except ValueError as error:
            raise DataError(must(f"sample in {place}", "an integer id", row["sample"], "see the column sample")) from error
        if sample in found or not row["group"].strip():
            raise DataError(must(place, "a sample named once, with a group", row, "correct the file"))
        found[sample] = row["group"].strip()
    return found


def read_reference(path: str | Path) -> list[tuple[float, float]]:
    """(clean, shifted) accuracies of reference models, from a CSV file with these columns.

    Raises:
        DataError: A file that cannot be read, other columns, or a value that is no number.
    """
    found = []
    for number, row in _rows(path, ("clean", "shifted")):
        try:
            found.append((float(row["clean"]), float(row["shifted"])))
        except ValueError as error:
            raise DataError(must(f"line {number} of {path}", "two numbers", row, "write rates such as 0.76")) from error
    return found


def _rows(path: str | Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """(line number, columns) of a CSV file that has at least these columns."""
    remedy = f"give a CSV file with the columns {','.join(columns)}"
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(must(str(path), "a readable CSV file", str(error), remedy)) from error
    if not set(columns) <= set(names):
        raise DataError(must(f"the columns of {path}", ",".join(columns), ",".join(names), remedy))
    return [(number, {name: row[name] or "" for name in columns}) for number, row in rows]
