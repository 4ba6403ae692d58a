"""Suite → graph: what must be built, and the cells that need it. Imports no torch, runs no model.

``draft`` names artifacts and cells; every section of a suite has a module of its own with ``section(draft)``.
"""

from __future__ import annotations

from collections.abc import Iterable

from robench.errors import ConfigError, must
from robench.plan import attacks, calibration, chains, compression, corruption, ood, plain, scarcity, shift
from robench.plan.draft import Draft, Plan, Sources, levels, made_of
from robench.spec import Cell, Settings
from robench.suite import Suite

__all__ = ["Plan", "Sources", "expand", "levels", "made_of"]

SECTIONS = (plain, attacks, corruption, compression, scarcity, chains, ood, calibration, shift)
"""Modules whose ``section(draft)`` draws a part of the graph, in the order of cells."""


def expand(suite: Suite, sources: Sources, *, seed: int = 0, settings: Settings | None = None) -> Plan:
    """The graph of a suite.

    Raises:
        ConfigError: An unknown name, argument, threat or eps anywhere in the suite.
    """
    draft = Draft(suite, sources, seed, settings or Settings())
    for note in suite.notes:
        draft.note(note)
    for name in suite.models:
        draft.model(name)
    for section in SECTIONS:
        section.section(draft)
    cells = tuple(draft.cells.values())
    _require_one_model_per_name(cells)
    return Plan(suite, levels(cells), cells, tuple(draft.notes), sources.identities, sources.code, sources.notes)


def _require_one_model_per_name(cells: Iterable[Cell]) -> None:
    """Refuse a plan in which rows of two models would stand under one name, condition and seed.

    Raises:
        ConfigError: Names them.
    """
    found: dict[tuple[str, str, str, int], str] = {}
    for cell in cells:
        name = (cell.model.label, cell.data.label, cell.condition, cell.seed)
        if found.setdefault(name, cell.model.digest) != cell.model.digest:
            told = f"{cell.model.label} {cell.condition} (seed {cell.seed})".replace("  ", " ")
            raise ConfigError(must("the models of a run", "one per name, condition and seed", told, "name them apart"))
