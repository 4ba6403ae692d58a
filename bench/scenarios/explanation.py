"""Attributions and how faithful and stable they are."""

from __future__ import annotations

from typing import Any

from robench.explainers.measures import explain_rows
from robench.inference import untouched
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, walk


@facts(version=2)
def explanation(
    objects: Objects, *, explainers: tuple[str, ...] = ("saliency", "integrated_gradients", "occlusion")
) -> list[dict[str, Any]]:
    """One row per sample and explainer.

    Explainers choose their own inner batches and pad them, so samples are held by the protocol's width whatever
    ``--batch-size`` says: smaller holds would give the same rows and cost more.
    """

    def measure(hold: Hold) -> list[dict[str, Any]]:
        return explain_rows(objects.net, hold.x, hold.y, hold.ids, explainers=list(explainers), seed=objects.cell.seed)

    with untouched(objects.net):
        return walk(objects.holds(size=objects.cell.settings.width), measure)
