"""Adversarial images of a model, with what it says of them: one attack and one forward pass, kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robench.builders.kept import keep_arrays, read_arrays
from robench.builders.predictions import Predictions, forward_pass
from robench.data.dataset import ArrayReader, Dataset
from robench.errors import ModelError, must
from robench.inference import untouched
from robench.registry import facts
from robench.scenarios.evasion import attack_hold, hold_size
from robench.scenarios.objects import Hold, walk
from robench.spec import Artifact, Context, ThreatModel
from robench.workshop import folder, is_built, load, load_model


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack left of a data set, and the model's outputs on it."""

    images: Tensor
    """float32 (N, C, H, W) in [0, 1]; the clean image where the model was wrong already."""
    seen: Predictions
    """Outputs on these images."""
    broken: Tensor
    """bool (N,): recognised before, and not any more."""
    failed: Tensor
    """bool (N,): not broken, but nothing is known of it: the attack could not run, or met no gradient but zero."""
    error: str = ""
    """Why, for the first such sample."""


@facts(version=1, kind="attacked")
def attacked(
    artifact: Artifact,
    context: Context,
    *,
    attack: str = "pgd(steps=10)",
    threat: str = "linf(8/255)",
    seed: int = 0,
    width: int = 64,
) -> Attacked:
    """One attack (no protocol) on the first input, a model, with the second, images; stored in full precision."""
    data: Dataset = load(artifact.inputs[1], context)
    place = folder(artifact, context)
    if not is_built(artifact, context):
        arrays, error = _attack(artifact, context, data, attack=attack, threat=threat, seed=seed, width=width)
        keep_arrays(place / "attacked.npz", arrays, artifact, error=error)
    kept = read_arrays(place / "attacked.npz")
    try:
        error = json.loads((place / "header.json").read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError) as damage:
        raise ModelError(must(str(place), "readable", str(damage), "remove its folder and run again")) from damage
    seen = Predictions(data.ids, data.labels, kept["logits"], kept["features"])
    return Attacked(kept["images"], seen, kept["broken"], kept["failed"], error)


def _attack(
    artifact: Artifact, context: Context, data: Dataset, *, attack: str, threat: str, seed: int, width: int
) -> tuple[dict[str, Any], str]:
    model = load_model(artifact.inputs[0], context)
    told: dict[str, Any] = {"attack": attack, "threat": ThreatModel.parse(threat), "seed": seed, "task": model.task}
    images: list[Tensor] = []

    def measure(hold: Hold) -> list[dict[str, Any]]:
        x_adv, rows = attack_hold(model.net, hold, **told)
        images.append(x_adv.cpu())
        return rows

    here, size = context.device, hold_size(attack) or context.batch_size
    holds = (Hold(x.to(here), y.to(here), ids.to(here), width) for x, y, ids in data.batches(size))
    with untouched(model.net):
        rows = walk(holds, measure)
    moved = torch.cat(images)
    seen = forward_pass(model.net, replace(data, reader=ArrayReader(moved)), context, width=width)
    broken = [row["broken"] and row["score_clean"] > 0 for row in rows]
    failed = [not row["broken"] and bool(_blindness(row)) for row in rows]
    arrays = {"images": moved, "logits": seen.logits, "features": seen.features}
    flags = {"broken": torch.tensor(broken), "failed": torch.tensor(failed)}
    return {k: v.numpy() for k, v in {**arrays, **flags}.items()}, next(filter(None, map(_blindness, rows)), "")


def _blindness(row: dict[str, Any]) -> str:
    """Why an attack says nothing of a sample that it did not break; empty where it does."""
    if row["status"] == "failed":
        return str(row["error"])
    if row["backwards"] and row["zero_gradients"] >= row["backwards"]:
        return "every gradient that the attack met was zero"
    return ""
