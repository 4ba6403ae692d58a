"""Corrupted images: made once for all models, predicted once per model."""

from __future__ import annotations

from typing import Any

from robench import catalog
from robench.corrupt.tables import level_of
from robench.plan.draft import Draft
from robench.plan.plain import measured
from robench.spec import Artifact, Ref


def section(draft: Draft) -> None:
    """Every model of the suite on every corruption."""
    plan = draft.suite.corruption
    for model in measured(draft):
        for name in plan.names:
            corruption_cell(draft, model, name)


def corruption_cell(draft: Draft, model: Artifact, name: str, *, data: Artifact | None = None, **more: Any) -> None:
    """One model on one corruption at all severities; ``more`` are further fields of the cell."""
    images = data or draft.test()
    built = corrupted(draft, name, data=images)
    extra = (draft.predictions(model, built), draft.predictions(model, images))
    args = {"corruption": name, "table": draft.suite.corruption.table}
    draft.add(Ref.of("corruption", **args), model, data=images, extra=extra, **more)


def corrupted(draft: Draft, name: str, *, data: Artifact | None = None) -> Artifact:
    """Some images, by default the run's test images, under one corruption, at five severities.

    Raises:
        ConfigError: A corruption that the suite's severity table lacks.
    """
    table = draft.suite.corruption.table
    level_of(table, name, 1)
    images = data or draft.test()
    ref = catalog.BUILDERS.resolve(Ref.of("corrupted", corruption=name, table=table, seed=draft.seed))
    version = f"{catalog.BUILDERS['corrupted'].version}|{catalog.CORRUPTIONS[name].version}"
    return Artifact("data", ref, version, (images,), label=images.label, stored=True)


def severity(draft: Draft, name: str, level: int) -> Artifact:
    """The run's test images under one corruption at one severity, 1 to 5.

    Raises:
        ConfigError: An unknown corruption or severity.
    """
    level_of(draft.suite.corruption.table, name, level)
    version = catalog.BUILDERS["severity"].version
    return Artifact("data", Ref.of("severity", severity=level), version, (corrupted(draft, name),), label=draft.data_label)
