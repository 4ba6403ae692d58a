"""What every model as it is goes through: clean images, explanations, costs."""

from __future__ import annotations

from collections.abc import Iterator

from robench import catalog
from robench.plan.draft import Draft
from robench.spec import Artifact, Ref
from robench.zoo.entries import ZOO


def measured(draft: Draft) -> Iterator[Artifact]:
    """The suite's models, unconditioned, in the order of the sources."""
    for model in draft.sources.models.values():
        if model.label in draft.suite.models:
            yield model


def section(draft: Draft) -> None:
    """Clean images of both splits, explanations and costs."""
    for model in measured(draft):
        draft.clean(model)
        if "train" in draft.sources.splits and not _partly_trained(model):
            draft.clean(model, data=draft.train(), split="train")
        if draft.suite.explainers:
            _explained(draft, model)
        if draft.suite.efficiency:
            draft.add(Ref.of("efficiency"), model)


def _partly_trained(model: Artifact) -> bool:
    """Whether the training split holds images that a zoo net never saw; its recorded training accuracy serves then."""
    return model.builder.name == "zoo" and ZOO[model.builder.kwargs["name"]].fraction < 1


def _explained(draft: Draft, model: Artifact) -> None:
    suite = draft.suite
    refs = tuple(str(catalog.EXPLAINERS.resolve(e)) for e in suite.explainers)
    versions = [f"{catalog.EXPLAINERS[Ref.parse(e).name].version}" for e in suite.explainers]
    few = draft.images("test", min(suite.explain_limit, suite.limit or suite.explain_limit))
    draft.add(Ref.of("explanation", explainers=tuple(suite.explainers)), model, data=few, plugins=[*refs, *versions])
