"""Joins plan, store, executor and scenario. ``run_cell`` is the only place that touches models and devices."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pandas as pd

from robench import catalog
from robench.children import Answer, Child, inside, trace
from robench.errors import NotInstalledError, described, must, one_line
from robench.executors import execute
from robench.plan import Plan
from robench.progress import Progress
from robench.spec import Artifact, Cell, Context
from robench.store import Store
from robench.user_code import require_unchanged

if TYPE_CHECKING:
    from robench.evidence import Evidence

TRIES = 2
"""How often a cell may end its worker process: once may be the machine's doing (memory, a signal), twice is its own."""
_GIVEN_UP = f" ({TRIES} times; not tried again without --retry)"


@dataclass(frozen=True)
class Job:
    """One picklable piece of work for a worker."""

    work: Artifact | Cell
    context: Context
    images: bool = False
    """Whether an attack's broken images are sent back too."""


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back; a failure is a value, never an exception."""

    rows: pd.DataFrame | None
    header: dict[str, Any]
    error: str = ""
    evidence: Evidence | None = None
    skipped: bool = False
    """Whether the error only is that an optional library is not installed."""
    ended: bool = False
    """Whether the attempt ended its worker process, or was stopped at the time limit."""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    computed: int
    """Cells that gave rows now."""
    kept: int
    """Cells that had rows before."""
    failures: tuple[tuple[str, str], ...]
    """(what, error) of every artifact or cell that failed."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(what, how to get it) of every cell that needs a library which is not installed; they stay to do."""
    failed: int = 0
    """Cells that gave no rows, because they or an artifact that they need failed."""

    @property
    def counts(self) -> str:
        """How many cells were computed, kept, and failed."""
        return f"{self.computed} cells computed, {self.kept} kept, {self.failed} failed"


def perform(job: Job) -> Outcome:
    """Build an artifact or run a cell; the one place where any error is caught."""
    from robench.devices import exact_arithmetic

    start = time.perf_counter()
    try:
        with exact_arithmetic(job.context.threads):
            rows, evidence = _done(job)
    except NotInstalledError as error:
        return Outcome(None, {}, str(error), skipped=True)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not inside():  # in a child it is not the user's but the model's
            raise
        return Outcome(None, {}, f"{one_line(described(error))}\n{trace()}")
    header = {"seconds": time.perf_counter() - start, "device": job.context.device, "threads": job.context.threads}
    return Outcome(rows, header, evidence=evidence)


def _done(job: Job) -> tuple[pd.DataFrame, Evidence | None]:
    require_unchanged(job.context.code)
    if not isinstance(job.work, Cell):
        return _build(job.work, job.context), None
    if job.images and job.work.scenario.name == "evasion":
        return _with_images(job.work, job.context)
    return run_cell(job.work, job.context), None


def _with_images(cell: Cell, context: Context) -> tuple[pd.DataFrame, Evidence]:
    from robench.evidence import collect
    from robench.scenarios.evasion import CALL_HOLD, hold_size, with_images
    from robench.scenarios.objects import open_cell

    objects = open_cell(cell, context)
    x_adv, rows = with_images(objects, **cell.scenario.kwargs)
    drawn = any(row["draws"] for row in rows)
    hold = CALL_HOLD if drawn else hold_size(cell.scenario.kwargs["attack"]) or context.batch_size
    return pd.DataFrame(rows), collect(objects, x_adv, rows, versions=versions(), hold=hold)


def run_cell(cell: Cell, context: Context) -> pd.DataFrame:
    """Rows of one cell, one per sample (and condition)."""
    from robench.scenarios.objects import open_cell

    scenario = catalog.SCENARIOS[cell.scenario.name].load()
    return pd.DataFrame(scenario(open_cell(cell, context), **cell.scenario.kwargs))


def _build(artifact: Artifact, context: Context) -> pd.DataFrame:
    from robench.workshop import build

    build(artifact, context)
    return pd.DataFrame()


def run_plan(
    plan: Plan,
    store: Store,
    context: Context,
    *,
    workers: int,
    progress: Progress,
    images: bool = False,
    timeout_s: float | None = None,
    retry: bool = False,
    started: Sequence[Child] = (),
) -> Summary:
    """Compute what the store does not hold yet; a finished cell is never run again.

    Every artifact is built once, before what needs it; what needs an artifact that failed fails without being tried.
    With ``images`` the broken images are kept; then a finished attack that lacks them is run again, and its rows stay.
    What the user brought runs in child processes, also with one worker. A cell or artifact that ends its process, or
    takes longer than ``timeout_s`` seconds, costs the cells that need it; cells that did so ``TRIES`` times, over runs
    into the same directory, are left out unless ``retry`` is set. Idle children that were ``started`` before are used.
    """
    open_cells = store.todo(plan.cells, images=images)
    given_up = [] if retry else [cell for cell in open_cells if store.endings(cell.digest) >= TRIES]
    todo = [cell for cell in open_cells if cell not in given_up]
    missing = {cell.digest for cell in store.todo(todo)}
    built = _needed(plan, todo)
    jobs = [*(Job(a, context) for a in built), *_ordered([Job(cell, context, images) for cell in todo])]
    failures: list[tuple[str, str]] = [(_named(cell), store.last_error(cell.digest) + _GIVEN_UP) for cell in given_up]
    skipped: list[tuple[str, str]] = []
    done, computed = {"artifacts": 0, "cells": 0}, 0
    waits = _needs(jobs)
    more: dict[str, Any] = {"failed": _died, "timeout_s": timeout_s, "started": started}
    more["apart"] = timeout_s is not None or _foreign(plan)
    more["owners"] = _coded
    if todo:
        progress("artifacts" if built else "cells", 0, len(built) or len(todo))
    for job, outcome in execute(perform, jobs, workers=min(workers, len(jobs)), needs=waits, instead=_lost, **more):
        if isinstance(job.work, Cell):
            told = _keep(store, job.work, outcome, again=job.work.digest not in missing)
            (skipped if outcome.skipped else failures).extend(told)
            computed += not told
        elif outcome.error and not outcome.skipped:  # the cells that need it say so
            failures.append((str(job.work.builder), outcome.error))
        what = "cells" if isinstance(job.work, Cell) else "artifacts"
        done[what] += 1
        progress(what, done[what], len(todo) if what == "cells" else len(built))
    failed = len(open_cells) - computed - len(skipped)
    return Summary(computed, len(plan.cells) - len(open_cells), tuple(failures), tuple(skipped), failed)


def _died(job: Job, answer: Answer) -> Outcome:
    """The outcome of a job whose process died, or could not send what it computed."""
    return Outcome(None, {}, f"{answer.error}\n{answer.detail}", ended=answer.gone)


def _foreign(plan: Plan) -> bool:
    """Whether cells run what the user brought (models, installed plug-ins), which is kept out of this process."""
    if any(entry.origin != "robench" for table in catalog.TABLES.values() for entry in table.values()):
        return True
    return any(a.builder.name == "file" for cell in plan.cells for start in cell.artifacts() for a in _lineage(start))


def _coded(job: Job) -> frozenset[str]:
    """Digests of the models that a job loads by running the user's code."""
    starts = job.work.artifacts() if isinstance(job.work, Cell) else (job.work,)
    made = [a for start in starts for a in _lineage(start) if a.builder.name == "file"]
    return frozenset(a.digest for a in made if a.builder.kwargs.get("weights"))  # only of code are weights known so


def _needed(plan: Plan, todo: Sequence[Cell]) -> list[Artifact]:
    """Stored artifacts of what is to do, level by level."""
    needed = {a.digest for cell in todo for start in cell.artifacts() for a in _lineage(start)}
    return [a for level in plan.levels for a in level if a.digest in needed]


def _needs(jobs: Sequence[Job]) -> list[set[int]]:
    """Per job the positions of the artifacts that it is made from."""
    place = {job.work.digest: i for i, job in enumerate(jobs) if isinstance(job.work, Artifact)}
    found = []
    for job in jobs:
        starts = job.work.artifacts() if isinstance(job.work, Cell) else job.work.inputs
        found.append({place[a.digest] for start in starts for a in _lineage(start) if a.digest in place})
    return found


def _lost(job: Job, needed: list[Outcome]) -> Outcome | None:
    """The outcome of a job that is made from an artifact that failed or was skipped; it is not tried."""
    errors = sorted((outcome for outcome in needed if outcome.error), key=lambda outcome: outcome.skipped)
    return replace(errors[0], rows=None, header={}) if errors else None


def _lineage(artifact: Artifact) -> Iterator[Artifact]:
    """The artifact and everything that it is made from, stored or not."""
    yield artifact
    for source in artifact.inputs:
        yield from _lineage(source)


def _ordered(jobs: Sequence[Job]) -> list[Job]:
    """Cells of one model together, so that a worker's small cache of models serves them."""
    return sorted(jobs, key=lambda j: (j.work.model.digest, j.work.digest))  # type: ignore[union-attr]


def _keep(store: Store, cell: Cell, outcome: Outcome, *, again: bool) -> list[tuple[str, str]]:
    """Store what a cell gave; one that was finished before and ran again for its images keeps its rows."""
    error = outcome.error
    if again and outcome.rows is not None and not store.agrees(cell, outcome.rows):
        remedy = f"remove cells/{cell.digest[:12]}*"
        error = must("a cell that is run again for its images", "of the same numbers as before", "others", remedy)
    if error or outcome.rows is None:
        store.put_failure(cell, error, skipped=outcome.skipped, ended=outcome.ended)
        return [(_named(cell), error)]
    if outcome.evidence is not None:
        store.put_images(cell.digest, outcome.evidence.images, outcome.evidence.header)
    if not again:
        store.put(cell, outcome.rows, {**outcome.header, "versions": versions(), "settings": asdict(cell.settings)})
    return []


def _named(cell: Cell) -> str:
    return f"{cell.scenario} on {cell.model.label} {cell.condition}".strip()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("robench", "torch", "numpy", "pandas", "captum", "adversarial-robustness-toolbox")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
