"""Artifacts made and loaded: from a lineage to the model or the images it names."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from robench import catalog
from robench.data.dataset import Dataset
from robench.errors import ModelError, must
from robench.files import write_atomically
from robench.models.weights import fresh
from robench.registry import facts
from robench.spec import Artifact, Context, Ref
from robench.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Model:
    """A model ready to be measured, with what is known of its making."""

    net: nn.Module
    made: dict[str, Any]
    """Facts for the rows: recipe, fraction, steps, train_n, train_accuracy, weights_sha256 of a trained model."""
    simulated: bool = False
    """Whether bytes and latency of this form say nothing about a deployed one (fake quantization)."""
    task: Task = CLASSIFICATION
    """What its outputs mean."""


def folder(artifact: Artifact, context: Context) -> Path:
    """Where a stored artifact lives."""
    return Path(context.root) / "artifacts" / artifact.digest


def is_built(artifact: Artifact, context: Context) -> bool:
    """Whether a stored artifact is there as a whole; its header is written last."""
    return (folder(artifact, context) / "header.json").is_file()


def build(artifact: Artifact, context: Context) -> None:
    """Build a stored artifact unless it is there."""
    if not is_built(artifact, context):
        catalog.BUILDERS[artifact.builder.name].load()(artifact, context, **artifact.builder.kwargs)


@lru_cache(maxsize=24)
def load(artifact: Artifact, context: Context) -> Any:
    """The object an artifact names: a ``Model`` or a ``Dataset``; each worker keeps the last few."""
    return catalog.BUILDERS[artifact.builder.name].load()(artifact, context, **artifact.builder.kwargs)


def load_model(artifact: Artifact, context: Context) -> Model:
    """The model an artifact names, on the context's device, in eval mode."""
    model: Model = load(artifact, context)
    return model


@facts(version=1, kind="model")
def zoo(artifact: Artifact, context: Context, *, name: str = "") -> Model:
    """A model of the embedded zoo."""
    from robench import zoo as embedded

    return Model(embedded.load(name).to(context.device), {})


@facts(version=1, kind="model")
def file(
    artifact: Artifact,
    context: Context,
    *,
    sha256: str = "",
    arch: str = "",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    low: float = 0.0,
    high: float = 1.0,
    num_classes: int = 10,
) -> Model:
    """A user's model file or factory, found by the hash of its content."""
    from robench.models.load import load_model as read

    path = dict(context.sources).get(sha256, artifact.label)
    net, _ = read(
        path, arch=arch or None, mean=mean, std=std, input_range=(low, high), num_classes=num_classes, trust=context.trust
    )
    return Model(net.to(context.device), {})


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
    seed: int = 0,
) -> Model:
    """A network trained by a recipe on a nested, stratified fraction of the training images; stored."""
    place = folder(artifact, context)
    if not is_built(artifact, context):
        made = _train(artifact, context, arch, place, recipe, steps, batch_size, lr, fraction, seed)
        write_atomically(place / "header.json", json.dumps(made, indent=1, sort_keys=True).encode())
    net = _fresh(artifact, context, arch, seed)
    return Model(net.eval().to(context.device), _stored_weights(net, place))


def _stored_weights(net: nn.Module, place: Path) -> dict[str, Any]:
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
    data: Dataset = load(artifact.inputs[0], context)
    ref = Ref.parse(arch)
    known = {"num_classes": len(data.spec.classes), "in_channels": data.spec.shape[0], "size": data.spec.shape[1]}
    taken = catalog.ARCHITECTURES[ref.name].parameters
    return fresh(ref.with_defaults({k: v for k, v in known.items() if k in taken}), seed=seed)


def _train(
    artifact: Artifact,
    context: Context,
    arch: str,
    place: Path,
    recipe: str,
    steps: int,
    batch_size: int,
    lr: float,
    fraction: float,
    seed: int,
) -> dict[str, Any]:
    from safetensors.torch import save

    from robench.data.dataset import fractions
    from robench.defenses.training import train

    data: Dataset = load(artifact.inputs[0], context)
    part = data if fraction >= 1 else fractions(data, [fraction, 1.0], seed=seed)[0]
    net = _fresh(artifact, context, arch, seed).to(context.device)
    report = train(
        net, part, recipe=recipe, steps=steps, seed=seed, batch_size=batch_size, lr=lr, checkpoint=place / "checkpoint.pt"
    )
    write_atomically(place / "model.safetensors", save({k: v.contiguous().cpu() for k, v in net.state_dict().items()}))
    (place / "checkpoint.pt").unlink(missing_ok=True)
    told = asdict(report)
    return {"recipe": recipe, "fraction": fraction, "train_n": told.pop("n"), "train_seed": told.pop("seed"), **told}


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


@facts(version=1, kind="model")
def defended(artifact: Artifact, context: Context, *, defense: str = "") -> Model:
    """The first input behind an inference-time defence."""
    parent = load_model(artifact.inputs[0], context)
    ref = catalog.DEFENSES.resolve(defense)
    net = catalog.DEFENSES[ref.name].load()(parent.net, **ref.kwargs)
    return Model(net.eval(), parent.made, task=parent.task)


@facts(version=1, kind="data")
def images(
    artifact: Artifact,
    context: Context,
    *,
    source: str = "digits",
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """A split of a data set, or a seeded stratified part of it."""
    from robench.data.dataset import subset

    data = read_split(source, split)
    return data if limit is None or limit >= len(data) else subset(data, limit, seed=seed)


def read_split(source: str, split: str) -> Dataset:
    """One split of a data set named as on the command line: ``digits``, ``cifar10(root='...')``, ``folder:PATH``."""
    ref = Ref.parse(source)
    entry = catalog.DATA[ref.name]
    reader: Callable[..., Dataset] = entry.load()
    path = [ref.name.partition(":")[2]] if ":" in ref.name else []
    return reader(*path, **{**ref.kwargs, "split": split})


@facts(version=1, kind="data")
def corrupted(
    artifact: Artifact, context: Context, *, corruption: str = "", table: str = "digits-v1", seed: int = 0
) -> tuple[Dataset, ...]:
    """Five data sets of rising severity from the first input; made once for all models, stored as 8-bit images."""
    data: Dataset = load(artifact.inputs[0], context)
    place = folder(artifact, context)
    if not is_built(artifact, context):
        buffer = io.BytesIO()
        np.savez(buffer, **_corrupt(data, corruption, table, seed))
        write_atomically(place / "images.npz", buffer.getvalue())
        write_atomically(place / "header.json", json.dumps({"builder": str(artifact.builder)}).encode())
    try:
        with np.load(place / "images.npz") as stored:
            levels = [torch.from_numpy(stored[f"severity{s}"]) for s in range(1, 6)]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ModelError(must(str(place), "readable", str(error), "remove that folder and run again")) from error
    return tuple(replace(data, reader=_reader(level)) for level in levels)


def _corrupt(data: Dataset, corruption: str, table: str, seed: int) -> dict[str, Any]:
    from robench.corrupt.apply import corrupt

    found = {}
    for severity in range(1, 6):
        parts = [
            corrupt(x, corruption, severity=severity, table=table, ids=ids, seed=seed) for x, _, ids in data.batches(256)
        ]
        found[f"severity{severity}"] = (torch.cat(parts) * 255).round().to(torch.uint8).numpy()
    return found


def _reader(stored: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: stored[rows].float() / 255
