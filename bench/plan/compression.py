"""Compressed copies of models: what they still know, what breaks them, what they cost."""

from __future__ import annotations

from robench import catalog
from robench.plan.attacks import against, attacked, require_norms
from robench.plan.draft import Draft
from robench.spec import Artifact, Ref

CALIBRATION = 256
"""Training images that a compression may look at."""


def section(draft: Draft) -> None:
    """Every arm on every model of the section, attacked also from its float parent."""
    plan = draft.suite.compression
    require_norms(plan.attacks, plan.threats)
    for name in plan.models:
        for arm in plan.arms:
            built, condition = compressed(draft, draft.model(name), arm)
            draft.clean(built, condition=condition)
            attacked(draft, built, plan.threats, against(built, plan.attacks), parent=draft.model(name), condition=condition)
            if draft.suite.efficiency:
                draft.add(Ref.of("efficiency"), built, condition=condition)


def compressed(draft: Draft, parent: Artifact, arm: Ref | str) -> tuple[Artifact, str]:
    """A compressed copy of a model, and the condition that says so."""
    ref = catalog.COMPRESSIONS.resolve(arm)
    version = f"{catalog.BUILDERS['compressed'].version}|{catalog.COMPRESSIONS[ref.name].version}"
    calibration = draft.images("train", CALIBRATION)
    builder, stored = Ref.of("compressed", method=str(ref)), bool(catalog.COMPRESSIONS[ref.name].facts.get("stored"))
    built = Artifact("model", builder, version, (parent, calibration), label=parent.label, stored=stored)
    return built, str(Ref.parse(arm) if isinstance(arm, str) else arm)
