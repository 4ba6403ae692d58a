"""Compressed copies of models: what they still know, what breaks them, what they cost."""

from __future__ import annotations

from robench import catalog
from robench.plan.attacks import attacked, require_norms, transfer_from
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
            attacked(draft, built, plan.threats, [*plan.attacks, transfer_from(name)], condition=condition)
            if draft.suite.efficiency:
                draft.add(Ref.of("efficiency"), built, condition=condition)


def compressed(draft: Draft, parent: Artifact, arm: Ref | str) -> tuple[Artifact, str]:
    """A compressed copy of a model, and the condition that says so."""
    ref = catalog.COMPRESSIONS.resolve(arm)
    version = f"{catalog.BUILDERS['compressed'].version}|{catalog.COMPRESSIONS[ref.name].version}"
    calibration = draft.images("train", CALIBRATION)
    built = Artifact("model", Ref.of("compressed", method=str(ref)), version, (parent, calibration), label=parent.label)
    return built, str(Ref.parse(arm) if isinstance(arm, str) else arm)
