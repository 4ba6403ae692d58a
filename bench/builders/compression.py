"""Compressed copies of models; rebuilt from their parent in milliseconds, so not stored."""

from __future__ import annotations

from typing import Any

from robench import catalog
from robench.data.dataset import Dataset
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import Model, load, load_model


@facts(version=1, kind="model")
def compressed(artifact: Artifact, context: Context, *, method: str = "") -> Model:
    """A compressed copy of the first input; the second holds calibration images of the training split."""
    parent = load_model(artifact.inputs[0], context)
    ref = catalog.COMPRESSIONS.resolve(method)
    entry = catalog.COMPRESSIONS[ref.name]
    calibration: Dataset = load(artifact.inputs[1], context)
    extra: dict[str, Any] = {"calibration": calibration.images().to(context.device)} if entry.facts.get("needs") else {}
    net = entry.load()(parent.net, **extra, **ref.kwargs)
    return Model(net.eval(), parent.made, simulated=bool(entry.facts.get("simulated")), task=parent.task)
