"""Whether a compressed model still looks where its parent looked."""

from __future__ import annotations

from typing import Any

from robench import catalog
from robench.bpda import differentiable
from robench.explainers.likeness import likeness
from robench.inference import predict, untouched
from robench.ops.random import Draws
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import Ref
from robench.workshop import Model


@facts(version=1)
def explanation_change(
    objects: Objects, *, parent: str = "", explainers: tuple[str, ...] = ("saliency", "integrated_gradients")
) -> list[dict[str, Any]]:
    """One row per sample and explainer: rank correlation and common top pixels of the two models' maps.

    Both models are asked about the class that the parent predicts. The first further artifact is the parent, whose
    condition is ``parent``; samples are held by the protocol's width, as in ``explanation``. A model that has no gradient
    is explained through its substitute, which has its outputs.
    """
    first: Model = objects.extra(0)
    own, _ = differentiable(objects.net)

    def measure(hold: Hold) -> list[dict[str, Any]]:
        target = predict(first.net, hold.x, width=hold.width).argmax(1)
        draws = Draws(objects.cell.seed, hold.ids)
        rows: list[dict[str, Any]] = []
        for text in explainers:
            ref = catalog.EXPLAINERS.resolve(Ref.parse(text))
            explain = catalog.EXPLAINERS[ref.name].load()
            maps = [explain(net, hold.x, target, draws=draws, **ref.kwargs) for net in (own, first.net)]
            correlation, common, degenerate = likeness(*maps)
            rows += columns(sample=hold.ids, label=hold.y, parent=parent, explainer=text, rank_correlation=correlation,
                            top_intersection=common, degenerate=degenerate)  # fmt: skip
        return rows

    with untouched(objects.net), untouched(first.net):
        return walk(objects.holds(size=objects.cell.settings.width), measure)
