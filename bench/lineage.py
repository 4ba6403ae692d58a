"""A cell written down: the plain data from which its digest and its columns follow, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from robench.spec import Artifact, Cell, Ref, Settings, ThreatModel

LEAD = ("model", "dataset", "scenario", "condition", "seed", "cell")
"""Columns of the cell that lead every frame."""
PLANNED = ("threat", "attack", "corruption", "family")
"""Arguments of a scenario that ``run.json`` repeats for every planned cell."""
_OWN_COLUMNS = ("threat", "attack", "corruption", "family", "split")
"""Columns of rows that repeat an argument of their cell's scenario."""


def lineage(value: Artifact | Cell) -> dict[str, Any]:
    """An artifact or a cell as plain data; ``cell_of`` reads a cell back."""
    if isinstance(value, Artifact):
        inputs = [lineage(i) for i in value.inputs]
        return {**_plain(value, "kind", "version", "label", "stored"), "builder": str(value.builder), "inputs": inputs}
    return {
        **_plain(value, "version", "condition", "seed"),
        "scenario": str(value.scenario),
        "model": lineage(value.model),
        "data": lineage(value.data),
        "extra": [lineage(e) for e in value.extra],
        "shard": list(value.shard),
        "settings": asdict(value.settings),
    }


def _plain(value: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def cell_of(told: Mapping[str, Any]) -> Cell:
    """The cell of a lineage.

    Raises:
        KeyError: Something is missing.
        ConfigError: A reference that cannot be read.
    """
    return Cell(
        _parsed(told["scenario"]), told["version"], _artifact(told["model"]), _artifact(told["data"]),
        condition=told["condition"], extra=tuple(_artifact(e) for e in told["extra"]), seed=told["seed"],
        shard=(told["shard"][0], told["shard"][1]), settings=Settings(**told["settings"]),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Ref:
    """A reference; the headers of a run name the same few again and again."""
    return Ref.parse(text)


def _artifact(told: Mapping[str, Any]) -> Artifact:
    inputs = tuple(_artifact(i) for i in told["inputs"])
    return Artifact(told["kind"], _parsed(told["builder"]), told["version"], inputs, told["label"], told["stored"])


def lead(cell: Cell) -> dict[str, Any]:
    """The columns of a cell that lead every frame, by name."""
    values = (cell.model.label, cell.data.label, cell.scenario.name, cell.condition, cell.seed, cell.digest)
    return dict(zip(LEAD, values, strict=True))


def planned(cell: Cell) -> dict[str, Any]:
    """What a cell is to measure, kept in ``run.json`` so that a missing result is noticed."""
    columns = {name: value for name, value in lead(cell).items() if name != "cell"}
    return {**columns, **{k: v for k, v in cell.scenario.kwargs.items() if k in PLANNED}}


def own_columns(cell: Cell) -> dict[str, str]:
    """Column of the rows → the one value that every row must have there, as text."""
    found = {k: str(v) for k, v in cell.scenario.kwargs.items() if k in _OWN_COLUMNS}
    if "threat" in found:
        found["threat"] = str(ThreatModel.parse(found["threat"]))
    return found


def artifacts(value: Cell | Artifact) -> Iterator[Artifact]:
    """Everything that a cell or an artifact is made from, itself included where it is an artifact."""
    if isinstance(value, Artifact):
        yield value
    for below in value.artifacts() if isinstance(value, Cell) else value.inputs:
        yield from artifacts(below)
