"""Artifacts made and loaded: from a lineage to what it names. The builders themselves are in ``robench.builders``."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from robench import catalog
from robench.data.classes import AGREEMENT
from robench.data.dataset import Dataset, in_model_classes
from robench.data.names import parse_data
from robench.devices import kept_settings
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
    notes: tuple[str, ...] = ()
    """What was done so that robench can ask it, to be told before the run."""


def folder(artifact: Artifact, context: Context) -> Path:
    """Where a stored artifact lives."""
    return Path(context.root) / "artifacts" / artifact.digest


def is_built(artifact: Artifact, context: Context) -> bool:
    """Whether a stored artifact is there as a whole; its header is written last."""
    return (folder(artifact, context) / "header.json").is_file()


def build(artifact: Artifact, context: Context) -> None:
    """Build a stored artifact unless it is there."""
    if not is_built(artifact, context):
        with kept_settings():
            catalog.BUILDERS[artifact.builder.name].load()(artifact, context, **artifact.builder.kwargs)


def load(artifact: Artifact, context: Context) -> Any:
    """The object an artifact names: a ``Model`` or a ``Dataset``; each worker keeps the last few."""
    own = _own.get()
    if own is None or artifact.kind != "model":
        return _kept(artifact, context)
    if artifact not in own:
        own[artifact] = _made(artifact, context)
    return own[artifact]


_own: ContextVar[dict[Artifact, Any] | None] = ContextVar("own", default=None)
"""Models of ``fresh_model``, which are shared with nobody; None outside it."""


def _made(artifact: Artifact, context: Context) -> Any:
    with kept_settings():
        return catalog.BUILDERS[artifact.builder.name].load()(artifact, context, **artifact.builder.kwargs)


_kept = lru_cache(maxsize=24)(_made)

forget = _kept.cache_clear
"""Forget all loaded objects."""


def fresh_model(artifact: Artifact, context: Context) -> Model:
    """A copy of a model that was built anew, with all that it is made from, and has met no image of the data set."""
    token = _own.set({})
    try:
        return load_model(artifact, context)
    finally:
        _own.reset(token)


def load_model(artifact: Artifact, context: Context) -> Model:
    """The model an artifact names, on the context's device, in eval mode."""
    model: Model = load(artifact, context)
    return model


def read_split(source: str, split: str) -> Dataset:
    """One split of a data set named as on the command line: ``digits``, ``cifar10(root='...')``, ``folder:PATH``.

    Every data set takes ``classes`` or ``class_map`` too, by which labels become indices of a model's outputs (see
    ``robench.data.classes.agree``).

    Raises:
        ConfigError: An unknown name or argument, or classes that do not agree.
        DataError: Missing or damaged data.
    """
    ref = parse_data(source)
    reader: Callable[..., Dataset] = catalog.DATA[ref.name].load()
    path = [ref.name.partition(":")[2]] if ":" in ref.name else []
    agreement = {k: v for k, v in ref.kwargs.items() if k in AGREEMENT}
    args = catalog.DATA.resolve(Ref.of(ref.name, **{k: v for k, v in ref.kwargs.items() if k not in AGREEMENT})).kwargs
    data = reader(*path, **{**args, "split": split})
    return in_model_classes(data, **agreement) if agreement else data
