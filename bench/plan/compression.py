"""Compressed copies of models: what they still know, how they differ from their parent, what breaks them, what they cost."""

from __future__ import annotations

from robench import catalog
from robench.errors import ConfigError, must
from robench.plan.attacks import against, attacked, parent_of, require_norms, without_gradient
from robench.plan.corruption import corruption_cell, names_of, severity
from robench.plan.draft import Draft, made_of
from robench.spec import Artifact, Ref, ThreatModel

SEVERITY = 3
"""Severity of the corrupted images on which a deployed model is held against its twin."""
CALIBRATION = 256
"""Training images that a compression may look at."""


def section(draft: Draft) -> None:
    """Every arm on every model of the section, compared with its float parent and attacked also from it."""
    plan = draft.suite.compression
    require_norms(plan.attacks, plan.threats)
    for name in plan.models:
        for arm in plan.arms:
            with draft.optional("compression"):
                _arm(draft, draft.model(name), arm)


def _arm(draft: Draft, model: Artifact, arm: str) -> None:
    """One compressed copy of a model, and everything that it goes through."""
    plan = draft.suite.compression
    built, condition = chained(draft, model, arm)
    draft.clean(built, condition=condition)
    compared(draft, built, model, condition=condition)
    explained(draft, built, model, condition=condition)
    attacked(draft, built, plan.threats, against(built, plan.attacks), parent=parent_of(built), condition=condition)
    for corruption in names_of(draft, plan.corruptions):
        corruption_cell(draft, model, corruption)
        corruption_cell(draft, built, corruption, condition=condition)
    if draft.suite.efficiency:
        draft.add(Ref.of("efficiency"), built, condition=condition)
    if without_gradient(built) and plan.threats:
        twin_cell(draft, built, plan.threats[0], condition=condition)


def twin_cell(draft: Draft, built: Artifact, threat: str, *, condition: str) -> None:
    """A deployed model against its twin, on clean and adversarial images and on the suite's corruptions at severity 3."""
    names = list(names_of(draft, draft.suite.compression.corruptions or draft.suite.corruption.names))
    extra = tuple(severity(draft, name, SEVERITY) for name in names)
    versions = [catalog.CORRUPTIONS[name].version for name in names]
    scenario = Ref.of("twin", threat=str(ThreatModel.parse(threat)))
    draft.add(scenario, built, plugins=versions, extra=extra, condition=condition)


def compared(
    draft: Draft, model: Artifact, parent: Artifact, *,
    condition: str, parent_condition: str = "", data: Artifact | None = None,
) -> None:  # fmt: skip
    """Predictions of a compressed model beside its parent's, on the test images or on others."""
    images = data or draft.test()
    both = tuple(draft.predictions(m, images) for m in (model, parent))
    draft.add(Ref.of("disagreement", parent=parent_condition), model, data=images, extra=both, condition=condition)


def explained(draft: Draft, model: Artifact, parent: Artifact, *, condition: str) -> None:
    """A compressed model's explanations beside its parent's, by the explainers of the section that can be had."""
    explainers = list(draft.suite.compression.explainers)
    if without_gradient(model):
        lost = [e for e in explainers if catalog.EXPLAINERS[Ref.parse(e).name].facts.get("gradient")]
        explainers = [e for e in explainers if e not in lost]
        if lost:
            draft.note(f"explanation_change of {model.label} {condition}: {', '.join(lost)} left out, there is no gradient")
    if explainers:
        refs = [catalog.EXPLAINERS.resolve(e) for e in explainers]
        plugins = [f"{ref}|{catalog.EXPLAINERS[ref.name].version}" for ref in refs]
        few = draft.images("test", min(draft.suite.explain_limit, draft.suite.limit or draft.suite.explain_limit))
        scenario = Ref.of("explanation_change", explainers=tuple(explainers))
        draft.add(scenario, model, data=few, extra=(parent,), plugins=plugins, condition=condition)


def chained(draft: Draft, parent: Artifact, arm: str) -> tuple[Artifact, str]:
    """A copy of a model after one compression or a chain of them, and the condition that says so."""
    from robench.plan.chains import parse_chain  # chains are made of this module's steps

    conditions = []
    for step in parse_chain(arm):
        parent, condition = compressed(draft, parent, step)
        conditions.append(condition)
    return parent, " | ".join(conditions)


def compressed(draft: Draft, parent: Artifact, arm: Ref | str) -> tuple[Artifact, str]:
    """A compressed copy of a model, and the condition that says so.

    Raises:
        ConfigError: A training on what cannot be trained, or calibration on the test split.
    """
    ref = catalog.COMPRESSIONS.resolve(arm)
    entry = catalog.COMPRESSIONS[ref.name]
    condition = str(Ref.parse(arm) if isinstance(arm, str) else arm)
    if entry.facts.get("needs") == "training":
        return _tuned(draft, parent, ref), condition
    version = f"{catalog.BUILDERS['compressed'].version}|{entry.version}"
    calibration = _looked_at(draft, parent, CALIBRATION)
    builder, stored = Ref.of("compressed", method=str(ref)), bool(entry.facts.get("stored"))
    built = Artifact("model", builder, version, (parent, calibration), label=parent.label, stored=stored)
    return built, condition


def _tuned(draft: Draft, parent: Artifact, ref: Ref) -> Artifact:
    """A model that a training makes: of the parent as it is, or of a student of it."""
    entry = catalog.COMPRESSIONS[ref.name]
    if entry.facts["start"] == "parent" and not _trainable(parent):
        remedy = "train first and quantise after it: finetune(steps=200) | int8_weights"
        got = str(parent.builder)
        raise ConfigError(must(f"the step before {ref.name}", "one that leaves weights to train", got, remedy))
    parts = [catalog.BUILDERS["tuned"].version, entry.version]
    if "recipe" in ref.kwargs:
        recipe = catalog.RECIPES.resolve(ref.kwargs["recipe"])
        parts += [str(recipe), catalog.RECIPES[recipe.name].version]
    if "arch" in ref.kwargs:
        parts += [made_of(ref.kwargs["arch"]), catalog.RECIPES["distilled"].version]
    inputs = (parent, _looked_at(draft, parent))
    return Artifact("model", Ref.of("tuned", method=str(ref)), "|".join(parts), inputs, label=parent.label, stored=True)


def _trainable(model: Artifact) -> bool:
    """Whether a model's weights can be trained on: quantised ones would leave their grid."""
    if model.builder.name != "compressed":
        return model.builder.name != "defended"
    method = catalog.COMPRESSIONS.resolve(model.builder.kwargs["method"])
    return bool(catalog.COMPRESSIONS[method.name].facts.get("trainable")) and _trainable(model.inputs[0])


def _looked_at(draft: Draft, parent: Artifact, limit: int | None = None) -> Artifact:
    """Images that a compression may learn from: what a scarce parent was trained on, else the training split."""
    split, source = _split(draft), parent
    while source.kind == "model" and source.builder.name != "trained" and source.inputs:
        source = source.inputs[0]
    scarce = source.builder.name == "trained" and source.inputs[0].builder.name == "sampled"
    return source.inputs[0] if scarce else draft.images(split, limit)


def _split(draft: Draft) -> str:
    """The split of the images that a compression may look at.

    Raises:
        ConfigError: It is the test split.
    """
    split = draft.suite.compression.calibration
    if split == "test":
        remedy = "calibrate on training images: calibration: train"
        raise ConfigError(must("the calibration images of a compression", "apart from the test images", split, remedy))
    return split
