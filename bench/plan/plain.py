"""What every model as it is goes through: clean images, explanations, costs."""

from __future__ import annotations

from collections.abc import Iterator

from robench import catalog
from robench.plan.draft import Draft
from robench.spec import Artifact, Ref


def measured(draft: Draft) -> Iterator[Artifact]:
    """The suite's models, unconditioned, in the order of the sources."""
    for model in draft.sources.models.values():
        if model.label in draft.suite.models:
            yield model


def section(draft: Draft) -> None:
    """Clean images of both splits, explanations and costs."""
    for model in measured(draft):
        draft.clean(model)
        if "train" in draft.sources.splits:
            draft.clean(model, data=draft.images("train"), split="train")
        if draft.suite.explainers:
            _explained(draft, model)
        if draft.suite.efficiency:
            draft.add(Ref.of("efficiency"), model)


def _explained(draft: Draft, model: Artifact) -> None:
    suite = draft.suite
    refs = tuple(str(catalog.EXPLAINERS.resolve(e)) for e in suite.explainers)
    versions = [f"{catalog.EXPLAINERS[Ref.parse(e).name].version}" for e in suite.explainers]
    few = draft.images("test", min(suite.explain_limit, suite.limit or suite.explain_limit))
    draft.add(Ref.of("explanation", explainers=tuple(suite.explainers)), model, data=few, plugins=[*refs, *versions])
