"""Compressed copies of models; rebuilt from their parent in milliseconds, so not stored."""

from __future__ import annotations

from typing import Any

from robench import catalog
from robench.builders.apart import apart_from_test
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import Model, load_model


@facts(version=2, kind="model")
def compressed(artifact: Artifact, context: Context, *, method: str = "") -> Model:
    """A compressed copy of the first input; the second holds calibration images of the training split.

    Raises:
        DataError: Calibration images that are also test images.
    """
    parent = load_model(artifact.inputs[0], context)
    ref = catalog.COMPRESSIONS.resolve(method)
    entry = catalog.COMPRESSIONS[ref.name]
    extra: dict[str, Any] = {}
    if entry.facts.get("needs"):
        extra["calibration"] = apart_from_test(artifact.inputs[1], context).images().to(context.device)
    net = entry.load()(parent.net, **extra, **ref.kwargs)
    return Model(net.eval(), parent.made, simulated=bool(entry.facts.get("simulated")), task=parent.task)
