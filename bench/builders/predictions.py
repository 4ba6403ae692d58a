"""Predictions: one forward pass of a model over images, kept for everything that only needs outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.builders.kept import keep_arrays, read_arrays
from robench.data.dataset import Dataset
from robench.errors import ModelError, must
from robench.inference import predict, untouched
from robench.registry import facts
from robench.scenarios.objects import Hold, walk
from robench.spec import Artifact, Context
from robench.workshop import folder, is_built, load, load_model


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs of a model on a data set, in its order, on the CPU."""

    ids: Tensor
    """Sample ids, int64 (N,)."""
    labels: Tensor
    """int64 (N,)."""
    logits: Tensor
    """The model's outputs, float32 (N, K)."""
    features: Tensor
    """Inputs of the last linear layer, float32 (N, D); (N, 0) for corrupted images, or where there is no such layer."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Predictions:
        """Those of some positions, int64 (B,)."""
        return Predictions(self.ids[rows], self.labels[rows], self.logits[rows], self.features[rows])


@facts(version=2, kind="predictions")
def predictions(artifact: Artifact, context: Context, *, width: int = 64) -> Predictions | tuple[Predictions, ...]:
    """Outputs of the first input, a model, on the second: images, or five severities of them (five values, no features).

    Raises:
        ModelError: What is stored belongs to other images.
    """
    images: Dataset | tuple[Dataset, ...] = load(artifact.inputs[1], context)
    several = isinstance(images, tuple)
    sets = images if isinstance(images, tuple) else (images,)
    place = folder(artifact, context)
    if not is_built(artifact, context):
        arrays = _arrays(artifact, sets, context, width=width, features=not several)
        keep_arrays(place / "predictions.npz", arrays, artifact)
    kept = read_arrays(place / "predictions.npz")
    if not all(torch.equal(kept[f"ids{i}"], d.ids) for i, d in enumerate(sets)):
        remedy = "remove that folder and run again"
        raise ModelError(must(f"the predictions in {place}", "on the images of their input", "other sample ids", remedy))
    found = tuple(Predictions(d.ids, d.labels, kept[f"logits{i}"], kept[f"features{i}"]) for i, d in enumerate(sets))
    return found if several else found[0]


def _arrays(
    artifact: Artifact, sets: tuple[Dataset, ...], context: Context, *, width: int, features: bool
) -> dict[str, Any]:
    """What is kept: ``ids0``, ``logits0``, ``features0``, and so on for every set."""
    net = load_model(artifact.inputs[0], context).net
    arrays: dict[str, Any] = {}
    for i, data in enumerate(sets):
        seen = forward_pass(net, data, context, width=width, features=features)
        arrays |= {f"ids{i}": data.ids.numpy(), f"logits{i}": seen.logits.numpy(), f"features{i}": seen.features.numpy()}
    return arrays


@facts(version=1, kind="predictions")
def part(artifact: Artifact, context: Context, *, index: int = 0) -> Predictions:
    """One severity's predictions from those of all five."""
    found: Predictions = load(artifact.inputs[0], context)[index]
    return found


def forward_pass(net: nn.Module, data: Dataset, context: Context, *, width: int = 64, features: bool = True) -> Predictions:
    """Outputs of a model, and inputs of its last linear layer, on every image, in batches padded to ``width``.

    Raises:
        ModelError: The model's state changed while it was asked.
    """
    last = last_linear(net) if features else None
    here = context.device
    holds = (Hold(x.to(here), y, ids, width) for x, y, ids in data.batches(context.batch_size))
    with untouched(net):
        rows = walk(holds, lambda hold: _outputs(net, hold, last))
    columns = (torch.stack([row[name] for row in rows]) for name in ("logits", "features"))
    return Predictions(data.ids, data.labels, *columns)


def _outputs(net: nn.Module, hold: Hold, last: nn.Linear | None) -> list[dict[str, Any]]:
    """One dictionary of vectors per sample."""
    if last is None:
        logits = predict(net, hold.x, width=hold.width)
        seen = logits.new_zeros(len(logits), 0)
    else:
        with _listening(last) as heard:
            logits = predict(net, hold.x, width=hold.width)
        counts = [min(hold.width, len(hold.x) - start) for start in range(0, len(hold.x), hold.width)]
        fits = len(heard) == len(counts) and all(h.dim() == 2 and len(h) >= c for h, c in zip(heard, counts, strict=True))
        seen = torch.cat([h[:c] for h, c in zip(heard, counts, strict=True)]) if fits else logits.new_zeros(len(logits), 0)
    pairs = zip(logits.float().cpu(), seen.float().cpu(), strict=True)
    return [{"logits": a, "features": b} for a, b in pairs]


def last_linear(net: nn.Module) -> nn.Linear | None:
    """The linear layer that comes last among the model's modules; None where there is none."""
    found = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


@contextmanager
def _listening(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inputs of a layer while the model runs."""
    heard: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0].detach()))
    try:
        yield heard
    finally:
        handle.remove()
