"""The Python API: ``evaluate`` for a model in hand, ``run`` for a suite, ``load`` for stored rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from robench.changes import reasons
from robench.children import closing_child
from robench.data.classes import ClassList, ClassMap
from robench.errors import ConfigError, must
from robench.lineage import planned as columns_of
from robench.missing import with_missing
from robench.progress import WARNING, Line, Progress, telling
from robench.runner import Summary, run_plan, versions
from robench.spec import Context, Settings
from robench.store import Store
from robench.suite import Suite, read_suite

if TYPE_CHECKING:
    from robench.plan import Plan
    from robench.sources import UserModel

    Models = Iterable[str | UserModel] | Mapping[str, str | UserModel]


@dataclass(frozen=True)
class Run:
    """A finished or partly finished run."""

    out: Path
    plan: Plan
    summary: Summary

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}: {self.summary.counts}; robench.load({str(self.out)!r}) reads its rows)"


def plan_run(
    suite: str | Suite,
    *,
    models: Models = (),
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    trust: bool = False,
    classes: ClassList | None = None,
    class_map: ClassMap | None = None,
) -> tuple[Plan, tuple[tuple[str, str], ...]]:
    """The graph of a run, and the user's files by hash; models that are made by code are built, nothing is computed.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range.
    """
    from robench.plan import expand
    from robench.plan.ood import named_data
    from robench.sources import fitting_models, listed, other_data, resolve_sources

    if data is not None and not data.strip():
        raise ConfigError(must("--data", "the name of a data set", data, "leave it out for the suite's own"))
    chosen = read_suite(suite) if isinstance(suite, str) else suite
    elsewhere = data is not None and data != chosen.data
    chosen = chosen.override(data=data, classes=classes, class_map=class_map)
    named = listed(models)
    if not named:
        kept, left_out = fitting_models(chosen.data, chosen.models) if elsewhere else (chosen.models, [])
        named = listed(kept)
        chosen = chosen.noted(*left_out)
    labels = [model.label for model in named]
    chosen = chosen if labels == chosen.models else chosen.for_models(labels)
    sources, paths = resolve_sources(chosen.data, named, files=chosen.files(), trust=trust)
    chosen = chosen.override(limit=limit).fitted(None if sources.ids is None else len(sources.ids))
    others = [other for other in (named_data(text)[1] for text in chosen.ood.sources) if other]
    files, notes = other_data(sources.data, others)
    sources = replace(sources, files={**sources.files, **files}, notes=(*sources.notes, *notes))
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
    verbose: bool | None = None,
    announce: Callable[[str], None] | None = None,
    cell_timeout: float | None = None,
    retry: bool = False,
    classes: ClassList | None = None,
    class_map: ClassMap | None = None,
) -> Run:
    """Run a suite into a run directory; called again it computes only what is missing.

    ``models`` are sources (zoo names, files, ``module:factory``), or a mapping of names to sources. ``Suite.override`` and
    ``Suite.only`` change what a suite measures: ``run(read_suite("quick").override(threats=["linf(0.05)"]))``.
    With ``classes`` (names of the models' classes in the order of their outputs, or a file of them) or ``class_map`` (index
    per class of the data) labels become indices of the models' outputs; see ``robench.data.classes.agree``.

    With ``save_adversarials`` every broken image is kept in its folder ``evidence`` for ``robench verify``; finished
    attacks whose images were not kept are run again for them. A cell, or an artifact that cells need, that takes
    longer than ``cell_timeout`` seconds is stopped and fails. Cells that ended their worker process twice are left out
    unless ``retry`` is set. Models of the user's run in child processes; no main guard is needed.

    ``progress`` is called with what is being done, how many are done and how many there are. Without it a line on stderr
    shows that, where stderr is a terminal or ``verbose`` is True. ``announce`` is called with each line on data and models;
    without it only those that begin with ``WARNING: `` are told, as warnings of Python's.

    No tables and no page are written: ``robench report RUN`` does that.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range, or a run directory in use.
    """
    from robench.devices import resolve_device, usable_cores
    from robench.tryout import try_out

    if cell_timeout is not None and not 0 < cell_timeout < math.inf:
        raise ConfigError(must("the cell timeout", "a finite number of seconds above 0", cell_timeout, "e.g. 600"))
    chosen = read_suite(suite) if isinstance(suite, str) else suite
    folder = _folder(out, chosen)
    mapped: dict[str, Any] = {"classes": classes, "class_map": class_map, "trust": trust}
    where = resolve_device(device)
    with telling(progress, verbose=verbose) as tell:
        say = announce or _warner(tell)
        tell("reading data and models", 0, 1)
        plan, paths = plan_run(chosen, models=models, data=data, limit=limit, seed=seed, settings=settings, **mapped)
        context = Context(str(folder), where, batch_size, trust=trust, sources=paths, code=plan.code)
        count = workers or (usable_cores() if where == "cpu" else 1)
        store = Store(folder)
        for line in _remarks(plan):
            say(line)
        tell("trying out the models", 0, 1)
        child = try_out(plan, context, say, timeout_s=cell_timeout)
        with closing_child(child), store.locked():
            store.clean_temporary()
            finished = store.finished()
            for line in [*reasons(plan.cells, finished, store.last_run(), plan.identities), *_left_behind(plan, finished)]:
                say(line)
            store.write_run(_header(plan, chosen, models, seed=seed, images=save_adversarials))
            told: dict[str, Any] = {"progress": tell, "images": save_adversarials}
            told |= {"timeout_s": cell_timeout, "retry": retry, "started": [child] if child else []}
            summary = run_plan(plan, store, context, workers=count, **told)
    return Run(folder, plan, summary)


def _folder(out: str | Path | None, suite: Suite) -> Path:
    """The run directory that was asked for, or a new one.

    Raises:
        ConfigError: A name of blanks.
    """
    if out is None:
        return new_folder(suite)
    if not str(out).strip():
        raise ConfigError(must("--out", "the name of a folder", out, "leave it out for a new folder under runs/"))
    return Path(out)


def new_folder(suite: Suite) -> Path:
    """A run directory that is named after the time and the suite."""
    return Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{suite.name}"


def _header(plan: Plan, suite: Suite, models: Models, *, seed: int, images: bool) -> dict[str, Any]:
    """What is kept in ``run.json``; ``suite`` is the one that was asked for, before options and data changed it."""
    from robench.sources import kept_sources, listed

    limit = plan.suite.limit if plan.suite.limited else None
    header = {"suite": plan.suite.model_dump(), "seed": seed, "limited": plan.suite.limited, "versions": versions()}
    header |= {"left_out": list(plan.notes), "data_notes": list(plan.data_notes)}
    header |= {"sources": kept_sources(listed(models) or listed(suite.models)), "limit": limit, **_edits(plan)}
    header["identities"] = {"models": {name: dict(facts) for name, facts in plan.identities.items()}}
    return {**header, "cells": {c.digest: columns_of(c) for c in plan.cells}, "adversarials": images}


def _remarks(plan: Plan) -> Iterator[str]:
    """Lines on the data, on what is left out and on models whose factories draw their weights."""
    yield from plan.data_notes
    yield from (f"left out: {note}" for note in plan.notes)
    for name, facts in plan.identities.items():
        if facts["drawn"]:
            yield f"model {name}: its factory draws weights at random; robench builds it in one fixed random state"


def _left_behind(plan: Plan, finished: Iterable[str]) -> Iterator[str]:
    """A line on finished cells of the folder that this run does not ask for, so that tables and pages leave them out."""
    count = len(set(finished) - {cell.digest for cell in plan.cells})
    if count:
        yield f"{count} finished cells of this folder are no part of this run and are not shown; another --out keeps both"


def _edits(plan: Plan) -> dict[str, Any]:
    """What is kept in ``run.json`` besides the suite, so that ``verify`` can plan the run again."""
    suite = plan.suite
    settings = asdict(plan.cells[0].settings) if plan.cells else asdict(Settings())
    edits = {"adapts": suite.adapts, "typed": sorted(suite._typed), "notes": list(suite.notes)}
    return {"edits": edits, "settings": settings}


def _warner(tell: Progress) -> Callable[[str], None]:
    """Passes on only what must not be lost where nobody announces anything: as warnings, not behind a line of progress."""

    def say(text: str) -> None:
        if text.startswith(WARNING):
            if isinstance(tell, Line):
                tell.clear()
            warnings.warn(text.removeprefix(WARNING), stacklevel=4)  # say, try_out, run and its caller

    return say


def load(run_directory: str | Path) -> dict[str, pd.DataFrame]:
    """Per-sample frames of a run by scenario; ``unfinished`` holds one row per cell that failed, was skipped or is to do.

    Raises:
        StoreError: No run directory, or damaged results.
    """
    store = Store(run_directory)
    planned = store.read_run()["cells"]
    unfinished = store.unfinished(planned)
    pending = frozenset(unfinished.loc[unfinished["status"] == "pending", "cell"])
    frames = with_missing(store.frames(planned), planned, pending=pending)
    return {**frames, "unfinished": unfinished} if len(unfinished) else frames
