"""Networks that a run trains itself; stored."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from robench import catalog
from robench.data.dataset import Dataset
from robench.errors import ModelError, must
from robench.files import write_atomically
from robench.models.weights import fresh
from robench.registry import facts
from robench.spec import Artifact, Context, Ref
from robench.workshop import Model, folder, is_built, load


@facts(version=1, kind="model")
def trained(
    artifact: Artifact,
    context: Context,
    *,
    arch: str = "small_cnn",
    recipe: str = "standard",
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 3e-3,
    fraction: float = 1.0,
    augment: str = "",
    precision: str = "float32",
    seed: int = 0,
) -> Model:
    """A network trained by a recipe on a nested, stratified fraction of the training images; stored."""
    place = folder(artifact, context)
    if not is_built(artifact, context):
        plan = {"steps": steps, "batch_size": batch_size, "lr": lr, "augment": augment, "precision": precision}
        made = _train(artifact, context, arch, recipe=recipe, fraction=fraction, seed=seed, plan=plan)
        write_atomically(place / "header.json", json.dumps(made, indent=1, sort_keys=True).encode())
    net = _fresh(artifact, context, arch, seed)
    return Model(net.eval().to(context.device), stored_weights(net, place))


def stored_weights(net: nn.Module, place: Path) -> dict[str, Any]:
    """Fill the network from its folder; returns the facts that were stored with the weights."""
    from robench.models.load import read_weights
    from robench.models.weights import weights_sha256

    remedy = "remove that folder and run again"
    try:
        made: dict[str, Any] = json.loads((place / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(must(f"{place / 'header.json'}", "readable JSON", str(error), remedy)) from error
    read_weights(net, place / "model.safetensors")
    got = weights_sha256(net)
    if got != made.get("weights_sha256"):
        raise ModelError(must(f"the weights in {place}", f"those with sha256 {made.get('weights_sha256')}", got, remedy))
    return made


def _fresh(artifact: Artifact, context: Context, arch: str, seed: int) -> nn.Module:
    return fresh_network(load(artifact.inputs[0], context), arch, seed=seed)


def fresh_network(data: Dataset, arch: str, *, seed: int) -> nn.Module:
    """An untrained network for the images and classes of a data set."""
    ref = Ref.parse(arch)
    known = {"num_classes": len(data.spec.classes), "in_channels": data.spec.shape[0], "size": data.spec.shape[1]}
    taken = catalog.ARCHITECTURES[ref.name].parameters
    return fresh(ref.with_defaults({k: v for k, v in known.items() if k in taken}), seed=seed)


def _train(
    artifact: Artifact, context: Context, arch: str, *, recipe: str, fraction: float, seed: int, plan: dict[str, Any]
) -> dict[str, Any]:
    from safetensors.torch import save

    from robench.data.dataset import fractions
    from robench.defenses.training import train

    place = folder(artifact, context)
    data: Dataset = load(artifact.inputs[0], context)
    part = data if fraction >= 1 else fractions(data, [fraction, 1.0], seed=seed)[0]
    net = _fresh(artifact, context, arch, seed).to(context.device)
    report = train(net, part, recipe=recipe, seed=seed, checkpoint=place / "checkpoint.pt", **plan)
    write_atomically(place / "model.safetensors", save({k: v.contiguous().cpu() for k, v in net.state_dict().items()}))
    (place / "checkpoint.pt").unlink(missing_ok=True)
    told = asdict(report)
    made = {"recipe": recipe, "augment": plan["augment"], "fraction": fraction, "train_n": told.pop("n")}
    return {**made, "train_seed": told.pop("seed"), **told}
