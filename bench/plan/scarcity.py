"""Networks trained anew on less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robench import catalog
from robench.errors import ConfigError, must, suggestion
from robench.plan.draft import Draft, made_of
from robench.spec import Artifact, Ref
from robench.zoo.entries import ZOO

RETRAINED = ("fraction", "seed", "steps")
"""What a step ``scarcity(...)`` of a chain may set."""


def section(draft: Draft) -> None:
    """Every recipe × fraction × seed of the section."""
    plan = draft.suite.scarcity
    for recipe in plan.recipes:
        for fraction in plan.fractions:
            for seed in plan.seeds:
                built = trained(draft, plan.arch, recipe, steps=plan.steps, fraction=fraction, seed=seed)
                draft.clean(built, condition=f"scarcity(fraction={fraction!r})", seed=seed)


def trained(draft: Draft, arch: Ref | str, recipe: Ref | str, **args: Any) -> Artifact:
    """A network that the run trains on the training split, with further arguments of the builder ``trained``."""
    ref = catalog.RECIPES.resolve(recipe)
    version = f"{catalog.BUILDERS['trained'].version}|{made_of(arch)}|{ref}|{catalog.RECIPES[ref.name].version}"
    own = str(Ref.parse(recipe) if isinstance(recipe, str) else recipe)
    builder = catalog.BUILDERS.resolve(Ref.of("trained", arch=str(arch), recipe=own, **args))
    return Artifact("model", builder, version, (draft.images("train"),), label=f"trained-{ref.name}", stored=True)


def retrained(draft: Draft, model: Artifact, **args: Any) -> Artifact:
    """A source model's training done again with less data, and fewer steps if so said; its label stays.

    Raises:
        ConfigError: A model whose training robench does not know, or an argument other than ``RETRAINED``.
    """
    for key in args:
        if key not in RETRAINED:
            raise ConfigError(must("an argument of scarcity", "a known one", key, suggestion(key, RETRAINED)))
    if model.builder.name == "trained":
        known = {k: v for k, v in model.builder.kwargs.items() if k not in ("arch", "recipe")}
        arch, recipe = model.builder.kwargs["arch"], model.builder.kwargs["recipe"]
    elif model.builder.name == "zoo" and not ZOO[model.label].start:
        entry = ZOO[model.label]
        arch, recipe = str(entry.arch), str(entry.recipe)
        known = {"steps": entry.steps, "batch_size": entry.batch_size, "lr": entry.lr}
    else:
        remedy = "name one that the run trains, trained(recipe='standard', ...)"
        raise ConfigError(must("a model for scarcity", "one whose training is known", model.label, remedy))
    return replace(trained(draft, arch, recipe, **{**known, **args}), label=model.label)
