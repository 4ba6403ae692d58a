"""Networks that a run trains itself; stored."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from robench import catalog
from robench.data.dataset import Dataset
from robench.defenses.training import TrainReport
from robench.errors import ConfigError, DataError, ModelError, must
from robench.files import write_atomically
from robench.models.weights import fresh
from robench.registry import facts
from robench.spec import Artifact, Context, Ref
from robench.workshop import Model, folder, is_built, load, load_model

LOOKS = 10
"""Moments of a training at which early stopping looks at the validation images."""


@facts(version=2, kind="model")
def trained(
    artifact: Artifact,
    context: Context,
    *,
    arch: str = "small_cnn",
    recipe: str = "standard",
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 3e-3,
    augment: str = "",
    transfer: str = "",
    validation: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
) -> Model:
    """A network trained by a recipe on the first input, or adapted to it from the second, a model; stored.

    With ``validation``, that share of the first input is held out and chooses the moment whose weights are kept. What is
    done is read from the artifact, in which the plan has filled in every argument.
    """
    place = folder(artifact, context)
    if not is_built(artifact, context):
        made = _train(artifact, context, place)
        write_atomically(place / "header.json", json.dumps(made, indent=1, sort_keys=True).encode())
    net = _fresh(artifact, context)
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


def _fresh(artifact: Artifact, context: Context) -> nn.Module:
    given = _known(artifact)
    return fresh_network(load(artifact.inputs[0], context), given["arch"], seed=given["seed"])


def fresh_network(data: Dataset, arch: str, *, seed: int) -> nn.Module:
    """An untrained network for the images and classes of a data set."""
    ref = Ref.parse(arch)
    known = {"num_classes": len(data.spec.classes), "in_channels": data.spec.shape[0], "size": data.spec.shape[1]}
    taken = catalog.ARCHITECTURES[ref.name].parameters
    return fresh(ref.with_defaults({k: v for k, v in known.items() if k in taken}), seed=seed)


def _known(artifact: Artifact) -> dict[str, Any]:
    """Every argument of the builder, by name."""
    return dict(catalog.BUILDERS.resolve(artifact.builder).kwargs)


def _train(artifact: Artifact, context: Context, place: Path) -> dict[str, Any]:
    """Train, write the weights, and return what the rows say of it."""
    from safetensors.torch import save

    data: Dataset = load(artifact.inputs[0], context)
    known = _known(artifact)
    named = ("recipe", "steps", "seed", "batch_size", "lr", "augment", "precision")
    plan = {key: known[key] for key in named} | {"checkpoint": place / "checkpoint.pt"}
    more: dict[str, Any] = {}
    if known["transfer"]:
        net, report = _adapted(artifact, context, data, plan)
    else:
        net = _fresh(artifact, context).to(context.device)
        report, more = _fitted(net, data, known["validation"], plan)
    write_atomically(place / "model.safetensors", save({k: v.contiguous().cpu() for k, v in net.state_dict().items()}))
    (place / "checkpoint.pt").unlink(missing_ok=True)
    told = asdict(report)
    facts_ = {"train_n": told.pop("n"), "train_seed": told.pop("seed"), **told, **more, **_memorised(net, data)}
    return {**_named(artifact), **facts_}


def _fitted(net: nn.Module, data: Dataset, share: float, plan: dict[str, Any]) -> tuple[TrainReport, dict[str, Any]]:
    """Train from scratch; with a validation share, what it chose."""
    from robench.defenses.selection import train_selected
    from robench.defenses.training import train

    if not share:
        return train(net, data, **plan), {}
    chosen = train_selected(net, data, validation=share, looks=min(LOOKS, plan["steps"]), **plan)
    more = {
        "stopped_at": chosen.step,
        "validation_accuracy": chosen.validation_accuracy,
        "validation_n": chosen.validation_n,
    }
    return chosen.report, more


def _adapted(artifact: Artifact, context: Context, data: Dataset, plan: dict[str, Any]) -> tuple[nn.Module, TrainReport]:
    """Adapt the second input, a model that the run trained on other images."""
    from robench.defenses.transfer import adapt

    known = _known(artifact)
    if known["validation"]:
        remedy = "leave one of them out"
        raise ConfigError(must("a training", "with transfer or early stopping", "both", remedy))
    source = artifact.inputs[1]
    _require_apart(data, source, context)
    more = {k: v for k, v in plan.items() if k not in ("steps", "seed", "lr", "checkpoint")}
    return adapt(
        load_model(source, context).net, data, mode=known["transfer"], num_classes=len(data.spec.classes),
        steps=plan["steps"], seed=plan["seed"], lr=plan["lr"], checkpoint=plan["checkpoint"], **more,
    )  # fmt: skip


def _require_apart(data: Dataset, source: Artifact, context: Context) -> None:
    """Refuse a source that has seen an image of the target, or of which that is not known.

    Raises:
        ModelError: The source was not trained by this run.
        DataError: An image of one data set, by its id, is in both trainings.
    """
    if source.builder.name != "trained":
        remedy = "transfer from a trained(...) model"
        raise ModelError(must("the source of a transfer", "a model whose training images are known", source.label, remedy))
    seen: Dataset = load(source.inputs[0], context)
    shared = sorted(set(seen.ids.tolist()) & set(data.ids.tolist()))
    if shared and seen.spec.name == data.spec.name:
        got = f"{len(shared)} in both, the first with id {shared[0]}"
        raise DataError(must("images of source and target", "different ones", got, "choose other classes for the target"))


def _named(artifact: Artifact) -> dict[str, Any]:
    """What the plan says of the training and of its sample."""
    known, sample = _known(artifact), artifact.inputs[0].builder
    taken = catalog.BUILDERS.resolve(sample if sample.name == "sampled" else Ref.of("sampled")).kwargs
    parts = {key: taken[key] for key in ("fraction", "shots", "imbalance", "label_noise", "noise", "classes")}
    augment = Ref.parse(known["augment"]) if known["augment"] else None
    overlaps = catalog.AUGMENTATIONS[augment.name].facts.get("overlaps", ()) if augment else ()
    arm = {"recipe": known["recipe"], "augment": known["augment"], "transfer": known["transfer"]}
    return {**arm, **parts, "augment_overlaps": ",".join(overlaps)}


def _memorised(net: nn.Module, data: Dataset) -> dict[str, Any]:
    """Number of training images with a wrong label, and of those that the model gives this very label."""
    if data.true_labels is None:
        return {}
    from robench.defenses.training import accuracy

    wrong = data.take((data.labels != data.true_labels).nonzero().flatten())
    told = round(accuracy(net.eval(), wrong) * len(wrong)) if len(wrong) else 0
    return {"noisy_n": len(wrong), "memorised_n": told}
