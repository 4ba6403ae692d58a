"""The Python API: ``evaluate`` for a model in hand, ``run`` for a suite, ``load`` for stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from robench.errors import ModelError, must
from robench.lineage import planned as columns_of
from robench.missing import with_missing
from robench.runner import Progress, Summary, run_plan, versions
from robench.spec import Artifact, Cell, Context, Settings
from robench.store import Store
from robench.suite import Suite, read_suite

if TYPE_CHECKING:
    from robench.admission import Admitted
    from robench.plan import Plan
    from robench.sources import UserModel

    Models = Iterable[str | UserModel] | Mapping[str, str | UserModel]


@dataclass(frozen=True)
class Run:
    """A finished or partly finished run."""

    out: Path
    plan: Plan
    summary: Summary


def plan_run(
    suite: str | Suite,
    *,
    models: Models = (),
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> tuple[Plan, tuple[tuple[str, str], ...]]:
    """The graph of a run, and the user's files by hash; nothing is computed.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range.
    """
    from robench.plan import expand
    from robench.plan.ood import named_data
    from robench.sources import fitting_models, listed, other_data, resolve_sources

    chosen = read_suite(suite) if isinstance(suite, str) else suite
    elsewhere = data is not None and data != chosen.data
    chosen = chosen.override(data=data, limit=limit)
    named = listed(models)
    if not named:
        kept, notes = fitting_models(chosen.data, chosen.models) if elsewhere else (chosen.models, [])
        named = listed(kept)
        chosen = chosen.noted(*notes)
    labels = [model.label for model in named]
    chosen = chosen if labels == chosen.models else chosen.for_models(labels)
    sources, paths = resolve_sources(chosen.data, named, files=chosen.files())
    others = [other for other in (named_data(text)[1] for text in chosen.ood.sources) if other]
    sources = replace(sources, files={**sources.files, **other_data(sources.data, others)})
    return expand(chosen, sources, seed=seed, settings=settings), paths


def run(
    suite: str | Suite,
    *,
    models: Models = (),
    data: str | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int = 256,
    settings: Settings | None = None,
    save_adversarials: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    cell_timeout: float | None = None,
    retry: bool = False,
) -> Run:
    """Run a suite into a run directory; called again it computes only what is missing.

    ``models`` are sources (zoo names, files, ``module:factory``), or a mapping of names to sources. ``Suite.override`` and
    ``Suite.only`` change what a suite measures: ``run(read_suite("quick").override(threats=["linf(0.05)"]))``.

    With ``save_adversarials`` every broken image is kept in its folder ``evidence`` for ``robench verify``; finished
    attacks whose images were not kept are run again for them. A cell, or an artifact that cells need, that takes
    longer than ``cell_timeout`` seconds is stopped and fails. Cells that ended their worker process twice are left out
    unless ``retry`` is set. Models of the user's run in child processes; no main guard is needed.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range, or a run directory in use.
    """
    from robench.devices import resolve_device, usable_cores

    plan, paths = plan_run(suite, models=models, data=data, limit=limit, seed=seed, settings=settings)
    folder = Path(out) if out else Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{plan.suite.name}"
    where = resolve_device(device)
    context = Context(str(folder), where, batch_size, trust=trust, sources=paths)
    count = workers or (usable_cores() if where == "cpu" else 1)
    store = Store(folder)
    say = announce or _say_nothing
    for note in plan.notes:
        say(f"left out: {note}")
    _announce(plan, context, say)
    with store.locked():
        store.clean_temporary()
        header = {"suite": plan.suite.model_dump(), "seed": seed, "limited": limit is not None, "versions": versions()}
        header["left_out"] = list(plan.notes)
        planned = {c.digest: columns_of(c) for c in plan.cells}
        store.write_run({**header, "cells": planned, "adversarials": save_adversarials})
        told: dict[str, Any] = {"progress": progress or _silent, "images": save_adversarials}
        told |= {"timeout_s": cell_timeout, "retry": retry}
        summary = run_plan(plan, store, context, workers=count, **told)
    return Run(folder, plan, summary)


def _announce(plan: Plan, context: Context, announce: Callable[[str], None]) -> None:
    """Try each user model out on the first images, and say its accuracy there; one that cannot run ends the run here.

    Raises:
        ModelError: The model cannot be loaded, does not fit the images or their classes, or is to be attacked from a
            model of other classes.
    """
    from robench.admission import own_autograd
    from robench.devices import exact_arithmetic

    for cell in plan.cells:
        with own_autograd(), exact_arithmetic(context.threads):
            if cell.extra and "file" in (cell.model.builder.name, cell.extra[0].builder.name):
                _require_same_logits(cell, context)
            plain = cell.model.builder.name == "file" and not cell.condition
            if plain and cell.scenario.name == "clean" and cell.scenario.kwargs["split"] == "test":
                for text in _seen(cell, context):
                    announce(text)


def _seen(cell: Cell, context: Context) -> list[str]:
    """What a user's model is like on the first images of its cell, in words.

    Raises:
        ModelError: Fewer logits than classes, or a model that robench cannot ask.
    """
    from robench.workshop import load as load_artifact
    from robench.workshop import load_model

    data, name = load_artifact(cell.data, context), cell.model.label
    admitted = _admitted(cell.model, cell, context)
    least, found = len(data.spec.classes), int(admitted.logits.shape[1])
    if found < least:
        remedy = "choose a model that was trained on this data's classes"
        raise ModelError(must(f"the outputs of {name}", f"{least} logits per image, or more", (found,), remedy))
    count = len(admitted.logits)
    right = int((admitted.logits.argmax(1).cpu() == data.labels[:count]).sum())
    which = f"all {count} images" if count == len(data) else f"the first {count} of {len(data)} images"
    said = f"{name}: clean accuracy {right / count:.1%} on {which}, as robench sees the model"
    notes = dict.fromkeys([*load_model(cell.model, context).notes, *admitted.notes])
    return [*(f"{name} {note}" for note in notes), said]


def _require_same_logits(cell: Cell, context: Context) -> None:
    """Refuse an attack from a model of other classes; one that is still to be trained takes those of the data.

    Raises:
        ModelError: The two models' outputs have different shapes.
    """
    source = cell.extra[0]
    if source.kind != "model" or source.stored or cell.model.stored:
        return
    shapes = [tuple(_admitted(a, cell, context).logits.shape[1:]) for a in (source, cell.model)]
    if shapes[0] != shapes[1]:
        remedy = "name a source that was trained on the same classes"
        expected = f"those of {cell.model.label}, {shapes[1]}"
        raise ModelError(must(f"the outputs per image of the source {source.label}", expected, shapes[0], remedy))


def _admitted(model: Artifact, cell: Cell, context: Context) -> Admitted:
    """A model of the run, tried out on the first images of a cell, at the cell's width."""
    import torch

    from robench.admission import admit
    from robench.inference import untouched
    from robench.workshop import load as load_artifact
    from robench.workshop import load_model

    width = cell.settings.width
    net, data = load_model(model, context).net, load_artifact(cell.data, context)
    images = data.images(torch.arange(min(width, len(data)))).to(context.device)
    with untouched(net):
        return admit(net, images, width=width)


def _say_nothing(text: str) -> None:
    """No announcement."""


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


def load(run_directory: str | Path) -> dict[str, pd.DataFrame]:
    """Per-sample frames of a run by scenario; ``unfinished`` holds one row per cell that failed, was skipped or is to do.

    Raises:
        StoreError: No run directory, or damaged results.
    """
    store = Store(run_directory)
    planned = store.read_run()["cells"]
    unfinished = store.unfinished(planned)
    frames = with_missing(store.frames(planned), planned)
    return {**frames, "unfinished": unfinished} if len(unfinished) else frames
