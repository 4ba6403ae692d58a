"""Images: parts of data sets, and corrupted ones at five severities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.builders.apart import read_apart
from robench.builders.kept import keep_arrays, read_arrays
from robench.data.dataset import Dataset
from robench.errors import ModelError, must
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import folder, is_built, load, read_split


@facts(version=2, kind="data")
def images(
    artifact: Artifact,
    context: Context,
    *,
    source: str = "digits",
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """A split of a data set, or a seeded stratified part of it; only the test split holds test images.

    Raises:
        DataError: More than 1 % of another split's images are test images; fewer are left out.
    """
    from robench.data.dataset import subset

    data = read_split(source, split) if split == "test" else read_apart(source, split)
    return data if limit is None or limit >= len(data) else subset(data, limit, seed=seed)


@facts(version=1, kind="data")
def sampled(
    artifact: Artifact,
    context: Context,
    *,
    fraction: float = 1.0,
    shots: int = 0,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    noise: str = "symmetric",
    classes: str = "",
    seed: int = 0,
) -> Dataset:
    """A scarce, imbalanced or wrongly labelled part of the first input (see ``robench.data.sampling``)."""
    from robench.data.sampling import sample

    data: Dataset = load(artifact.inputs[0], context)
    parts: dict[str, Any] = {"shots": shots, "imbalance": imbalance, "label_noise": label_noise, "noise": noise}
    return sample(data, fraction=fraction, classes=classes, seed=seed, **parts)


@facts(version=1, kind="data")
def corrupted(
    artifact: Artifact, context: Context, *, corruption: str = "", table: str = "digits-v1", seed: int = 0
) -> tuple[Dataset, ...]:
    """Five data sets of rising severity from the first input; made once for all models, stored as 8-bit images."""
    data: Dataset = load(artifact.inputs[0], context)
    return _kept(artifact, context, data, lambda: _corrupt(data, corruption, table, seed))


@facts(version=1, kind="data")
def sequences(artifact: Artifact, context: Context, *, perturbation: str = "", seed: int = 0) -> tuple[Dataset, ...]:
    """The frames of a perturbation, one data set each, from the first input; made once for all models, stored as 8-bit."""
    data: Dataset = load(artifact.inputs[0], context)
    return _kept(artifact, context, data, lambda: _perturb(data, perturbation, seed))


@facts(version=1, kind="data")
def published(artifact: Artifact, context: Context, *, corruption: str = "", root: str = "") -> tuple[Dataset, ...]:
    """The five severities of the user's published -C folder that belong to the first input's images; not stored."""
    from robench.data.published import severities

    return severities(load(artifact.inputs[0], context), root, corruption)


def _kept(
    artifact: Artifact, context: Context, data: Dataset, make: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[Dataset, ...]:
    """Versions of a data set's images, made unless they are there; the arrays' order is theirs."""
    place = folder(artifact, context)
    if not is_built(artifact, context):
        keep_arrays(place / "images.npz", make(), artifact)
    levels = list(read_arrays(place / "images.npz").values())
    if not levels or any(len(level) != len(data) for level in levels):
        got = [len(level) for level in levels]
        raise ModelError(must(str(place), f"of {len(data)} images each", got, "remove that folder and run again"))
    return tuple(replace(data, reader=_reader(level)) for level in levels)


def _perturb(data: Dataset, perturbation: str, seed: int) -> dict[str, np.ndarray]:
    from robench.corrupt.sequences import sequence

    parts = [
        torch.stack([_bytes(frame) for frame in sequence(x, perturbation, ids=ids, seed=seed)])
        for x, _, ids in data.batches(256)
    ]
    return {f"frame{i}": frame.numpy() for i, frame in enumerate(torch.cat(parts, dim=1))}


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def _corrupt(data: Dataset, corruption: str, table: str, seed: int) -> dict[str, Any]:
    from robench.corrupt.apply import corrupt

    found = {}
    for severity in range(1, 6):
        parts = [
            corrupt(x, corruption, severity=severity, table=table, ids=ids, seed=seed) for x, _, ids in data.batches(256)
        ]
        found[f"severity{severity}"] = _bytes(torch.cat(parts)).numpy()
    return found


def _reader(stored: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: stored[rows].float() / 255


@facts(version=1, kind="data")
def severity(artifact: Artifact, context: Context, *, severity: int = 1) -> Dataset:
    """One of the five severities of the first input, 1 to 5."""
    levels: tuple[Dataset, ...] = load(artifact.inputs[0], context)
    return levels[severity - 1]
