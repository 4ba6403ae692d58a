"""Networks trained anew on scarce, imbalanced or noisy data, and with what is said to help."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from robench import catalog
from robench.data.names import parse_data
from robench.errors import ConfigError, UnfitError, must, suggestion
from robench.plan.attacks import attacked, require_norms
from robench.plan.corruption import corruption_cell, names_of
from robench.plan.draft import Draft, made_of
from robench.spec import Artifact, Ref
from robench.zoo.entries import ZOO

SAMPLE = ("fraction", "shots", "imbalance", "label_noise", "noise")
"""Arguments that change the training images."""
RETRAINED = (*SAMPLE, "seed", "steps", "augment")
"""What a step ``scarcity(...)`` of a chain may set."""
SOURCE, TARGET = "first_half", "second_half"
"""Classes that a transfer comes from and goes to."""


@dataclass(frozen=True)
class Arm:
    """One point of the section: a recipe, what its sample is, and what helps it."""

    recipe: str
    sample: Mapping[str, Any]
    """Arguments of the sample, as the condition names them."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """``augment`` or ``transfer``."""
    half: bool = False
    """Trained and tested on the second half of the classes only."""

    @property
    def condition(self) -> str:
        """The column of that name."""
        return str(Ref.of("scarcity", **self.sample, **self.training))


def section(draft: Draft) -> None:
    """Every arm × seed of the section: clean, attacked and corrupted."""
    plan = draft.suite.scarcity
    require_norms(plan.attacks, plan.threats)
    for attack in plan.attacks:
        if catalog.ATTACKS[Ref.parse(attack).name].facts.get("surrogate"):
            remedy = "leave it out: arms have classes of their own"
            raise ConfigError(must("an attack on scarcity's arms", "one without another model", attack, remedy))
    for arm in arms(draft):
        for seed in plan.seeds:
            with draft.optional("scarcity"):
                _measured(draft, arm, seed)


def arms(draft: Draft) -> Iterator[Arm]:
    """The points in the order of the section."""
    plan = draft.suite.scarcity
    for recipe in plan.recipes:
        yield from (Arm(recipe, {"fraction": value}) for value in plan.fractions)
    for first in plan.recipes[:1]:
        yield from _swept(draft, first)
        for fraction in plan.arms_at if plan.augmentations else ():
            yield Arm(first, {"fraction": fraction})
            for augment in _usable(draft):
                yield Arm(first, {"fraction": fraction}, {"augment": augment})
        for fraction in plan.arms_at if plan.transfer else ():
            yield Arm(first, {"fraction": fraction}, half=True)
            yield from (Arm(first, {"fraction": fraction}, {"transfer": mode}, half=True) for mode in plan.transfer)


def _usable(draft: Draft) -> Iterator[str]:
    """The section's augmentations, less those whose library is not installed; each of these is noted with the remedy."""
    for augment in draft.suite.scarcity.augmentations:
        with draft.optional(f"augmentation {augment}"):
            needed = catalog.AUGMENTATIONS[checked(draft.sources.data, augment).name].facts.get("needs")
            if needed and importlib.util.find_spec(needed) is None:
                draft.note(f"the augmentation {augment}: {needed} is not installed; pip install 'robench[augment]'")
            else:
                yield augment


def _swept(draft: Draft, recipe: str) -> Iterator[Arm]:
    """Shots, imbalances and label noise, each with the point that has none of it."""
    plan = draft.suite.scarcity
    yield from (Arm(recipe, {"shots": k}) for k in plan.shots)
    at = {"fraction": max(plan.fractions, default=1.0)}
    if plan.imbalances or plan.label_noise:
        yield Arm(recipe, at)
    yield from (Arm(recipe, {**at, "imbalance": ratio}) for ratio in plan.imbalances)
    for noise in plan.noises:
        named = {} if noise == "symmetric" else {"noise": noise}
        yield from (Arm(recipe, {**at, "label_noise": rate, **named}) for rate in plan.label_noise)


def _measured(draft: Draft, arm: Arm, seed: int) -> None:
    """One training, and what the section measures of it."""
    plan = draft.suite.scarcity
    common: dict[str, Any] = {
        "steps": plan.steps, "batch_size": plan.batch_size, "lr": plan.lr, "precision": plan.precision, "seed": seed,
        "validation": 0.0 if "transfer" in arm.training else plan.validation,
    }  # fmt: skip
    classes = {"classes": TARGET} if arm.half else {}
    source: tuple[Artifact, ...] = ()
    if "transfer" in arm.training:
        source = (trained(draft, plan.arch, arm.recipe, classes=SOURCE, **common),)
    built = trained(draft, plan.arch, arm.recipe, source=source, **common, **classes, **arm.sample, **arm.training)
    more: dict[str, Any] = {"condition": arm.condition, "seed": seed, "data": _tested(draft, arm)}
    draft.clean(built, **more)
    attacked(draft, built, plan.threats, plan.attacks, **more)
    for name in names_of(draft, plan.corruptions):
        corruption_cell(draft, built, name, **more)


def _tested(draft: Draft, arm: Arm) -> Artifact:
    """The test images, of the target's classes where the arm has these only; under a name of their own then."""
    if not arm.half:
        return draft.test()
    return draft.sampled(draft.test(), classes=TARGET, label=f"{draft.data_label}, second half of the classes")


def trained(draft: Draft, arch: Ref | str, recipe: Ref | str, *, source: tuple[Artifact, ...] = (), **args: Any) -> Artifact:
    """A network that the run trains on a part of the training split.

    Args:
        draft: Of the run.
        arch: The architecture.
        recipe: The recipe.
        source: The model that a transfer starts from.
        args: Arguments of the builders ``sampled`` (with the training's seed) and ``trained``.
    """
    sample = {k: args.pop(k) for k in (*SAMPLE, "classes") if k in args}
    images = draft.sampled(draft.images("train"), seed=args.get("seed", 0), **sample)
    return trained_on(images, arch, recipe, source=source, **args)


def trained_on(
    images: Artifact, arch: Ref | str, recipe: Ref | str, *, source: tuple[Artifact, ...] = (), **args: Any
) -> Artifact:
    """A network trained on these images, with further arguments of the builder ``trained``."""
    ref = catalog.RECIPES.resolve(recipe)
    parts = [catalog.BUILDERS["trained"].version, made_of(arch), str(ref), catalog.RECIPES[ref.name].version]
    if args.get("augment"):
        change = catalog.AUGMENTATIONS.resolve(args["augment"])
        parts += [str(change), catalog.AUGMENTATIONS[change.name].version]
    own = str(Ref.parse(recipe) if isinstance(recipe, str) else recipe)
    builder = catalog.BUILDERS.resolve(Ref.of("trained", arch=str(arch), recipe=own, **args))
    return Artifact("model", builder, "|".join(parts), (images, *source), label=f"trained-{own}", stored=True)


def checked(data: str, augment: str) -> Ref:
    """An augmentation that leaves this data's labels true.

    Raises:
        ConfigError: An unknown one, or one that mirrors images of which a mirrored one may be another class.
    """
    ref = catalog.AUGMENTATIONS.resolve(augment)
    name = parse_data(data).name
    if catalog.AUGMENTATIONS[ref.name].facts.get("flips") and not catalog.DATA[name].facts.get("flips"):
        known = ", ".join(n for n in catalog.DATA if catalog.DATA[n].facts.get("flips"))
        remedy = f"use 'crop', which never mirrors (digits and text change their meaning; known to keep it: {known})"
        raise UnfitError(must(f"the data of {ref.name}", "images that keep their label when mirrored", data, remedy))
    return ref


def retrained(draft: Draft, model: Artifact, **args: Any) -> Artifact:
    """A source model's training done again with less data, and fewer steps if so said; its label stays.

    Raises:
        ConfigError: A model whose training robench does not know, or an argument other than ``RETRAINED``.
    """
    for key in args:
        if key not in RETRAINED:
            raise ConfigError(must("an argument of scarcity", "a known one", key, suggestion(key, RETRAINED)))
    if args.get("augment"):
        checked(draft.sources.data, args["augment"])
    if model.builder.name == "trained":
        known = {k: v for k, v in model.builder.kwargs.items() if k not in ("arch", "recipe")}
        part = model.inputs[0].builder
        known |= {k: part.kwargs[k] for k in SAMPLE} if part.name == "sampled" else {}
        arch, recipe = model.builder.kwargs["arch"], model.builder.kwargs["recipe"]
    elif model.builder.name == "zoo" and not ZOO[model.builder.kwargs["name"]].start:
        entry = ZOO[model.builder.kwargs["name"]]
        arch, recipe = str(entry.arch), str(entry.recipe)
        known = {"steps": entry.steps, "batch_size": entry.batch_size, "lr": entry.lr}
    else:
        remedy = "name one that the run trains, trained(recipe='standard', ...)"
        raise UnfitError(must("a model for scarcity", "one whose training is known", model.label, remedy))
    return replace(trained(draft, arch, recipe, **{**known, **args}), label=model.label)
