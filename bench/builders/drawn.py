"""Images of other kinds, drawn by robench itself in the shape of a data set."""

from __future__ import annotations

from dataclasses import replace

import torch

from robench import catalog
from robench.data.dataset import ArrayReader, Dataset
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import load

_AT_ONCE = 256


@facts(version=1, kind="data")
def drawn(artifact: Artifact, context: Context, *, source: str = "glyphs", seed: int = 0) -> Dataset:
    """As many images as the first input has, one per image id, of a source of ``robench.ood.TABLE_SOURCES``.

    They have no true class: their labels are all 0 and mean nothing.
    """
    data: Dataset = load(artifact.inputs[0], context)
    ref = catalog.OOD_SOURCES.resolve(source)
    draw = catalog.OOD_SOURCES[ref.name].load()
    parts = [draw(x, draws=Draws(seed, ids), **ref.kwargs) for x, _, ids in data.batches(_AT_ONCE)]
    labels = torch.zeros_like(data.labels)
    return replace(data, spec=replace(data.spec, name=ref.name), labels=labels, reader=ArrayReader(torch.cat(parts)))
