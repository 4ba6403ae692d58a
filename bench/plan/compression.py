"""Compressed copies of models: what they still know, what breaks them, what they cost."""

from __future__ import annotations

from robench import catalog
from robench.plan.attacks import against, attacked, require_norms, without_gradient
from robench.plan.corruption import severity
from robench.plan.draft import Draft
from robench.spec import Artifact, Ref, ThreatModel

SEVERITY = 3
"""Severity of the corrupted images on which a deployed model is held against its twin."""
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
            if without_gradient(built) and plan.threats:
                twin_cell(draft, built, plan.threats[0], condition=condition)


def twin_cell(draft: Draft, built: Artifact, threat: str, *, condition: str) -> None:
    """A deployed model against its twin, on clean and adversarial images and on the suite's corruptions at severity 3."""
    names = draft.suite.corruption.names
    extra = tuple(severity(draft, name, SEVERITY) for name in names)
    versions = [catalog.CORRUPTIONS[name].version for name in names]
    scenario = Ref.of("twin", threat=str(ThreatModel.parse(threat)))
    draft.add(scenario, built, plugins=versions, extra=extra, condition=condition)


def compressed(draft: Draft, parent: Artifact, arm: Ref | str) -> tuple[Artifact, str]:
    """A compressed copy of a model, and the condition that says so."""
    ref = catalog.COMPRESSIONS.resolve(arm)
    version = f"{catalog.BUILDERS['compressed'].version}|{catalog.COMPRESSIONS[ref.name].version}"
    calibration = draft.images("train", CALIBRATION)
    builder, stored = Ref.of("compressed", method=str(ref)), bool(catalog.COMPRESSIONS[ref.name].facts.get("stored"))
    built = Artifact("model", builder, version, (parent, calibration), label=parent.label, stored=stored)
    return built, str(Ref.parse(arm) if isinstance(arm, str) else arm)
