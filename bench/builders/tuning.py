"""Compressions of which a training is a part: stored."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from robench import catalog
from robench.builders.apart import apart_from_test
from robench.builders.training import fresh_network, stored_weights
from robench.files import write_atomically
from robench.models.weights import weights_sha256
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import Model, folder, is_built, load, load_model


@facts(version=1, kind="model")
def tuned(artifact: Artifact, context: Context, *, method: str = "") -> Model:
    """A copy of the first input trained on, or a student of it, on the training images of the second; stored.

    Raises:
        DataError: Training images that are also test images.
    """
    parent = load_model(artifact.inputs[0], context)
    place = folder(artifact, context)
    ref = catalog.COMPRESSIONS.resolve(method)
    if catalog.COMPRESSIONS[ref.name].facts["start"] == "parent":
        net = copy.deepcopy(parent.net)
    else:
        images = load(artifact.inputs[1], context)
        net = fresh_network(images, ref.kwargs["arch"], seed=ref.kwargs["seed"]).to(context.device)
    if not is_built(artifact, context):
        made = _tune(artifact, context, net, parent.net)
        write_atomically(place / "header.json", json.dumps(made, indent=1, sort_keys=True).encode())
    made = stored_weights(net, place)
    return replace(parent, net=net.eval(), made={**parent.made, **made}, simulated=False)


def _tune(artifact: Artifact, context: Context, net: nn.Module, teacher: nn.Module) -> dict[str, Any]:
    """Train the network in place and keep its weights; returns what the header tells."""
    from safetensors.torch import save

    from robench.defenses.tuning import Lesson

    place = folder(artifact, context)
    ref = catalog.COMPRESSIONS.resolve(artifact.builder.kwargs["method"])
    lesson = Lesson(apart_from_test(artifact.inputs[1], context), teacher, place / "checkpoint.pt")
    report = catalog.COMPRESSIONS[ref.name].load()(net, lesson=lesson, **ref.kwargs)
    write_atomically(place / "model.safetensors", save({k: v.contiguous().cpu() for k, v in net.state_dict().items()}))
    (place / "checkpoint.pt").unlink(missing_ok=True)
    told = asdict(report)
    told["weights_sha256"] = weights_sha256(net)  # the report's is of the module that was trained, which may wrap the net
    return {"recipe": str(ref), "train_n": told.pop("n"), "train_seed": told.pop("seed"), **told}
