"""``verify``: is a run directory what its images, models and data give? All that a number rests on is looked at again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.api import plan_run
from robench.children import isolated
from robench.devices import resolve_device
from robench.errors import ConfigError, StoreError
from robench.evidence import Replay, named, replay, require_file
from robench.metrics.columns import ATTACKED
from robench.plan import Plan
from robench.progress import telling
from robench.recheck import SEARCH, Task, recheck
from robench.sources import UserModel, listed
from robench.spec import Cell, Context, Settings
from robench.store import ANEW, Finished, Store, unlike_planned
from robench.suite import Suite
from robench.zoo import ZOO

Apart = Callable[..., Any]
"""How a function is called in a process of its own, as ``robench.children.isolated``."""


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    differences: tuple[str, ...]
    """One line per finding, which names the field; none where everything is as it was computed."""
    cells: int
    """Cells whose rows were computed again."""
    planned: int
    """Cells of the run."""
    images: int
    """Adversarial images that were judged again, as float32."""
    images_8bit: int
    notes: tuple[str, ...]
    """What could not be looked at, and why."""


def verify_run(
    run_directory: Path | str,
    *,
    device: str = "auto",
    batch_size: int = 64,
    models: Iterable[str] = (),
    trust: bool = False,
    rerun: bool = False,
    verbose: bool | None = None,
    apart: Apart = isolated,
) -> Verification:
    """Look at everything of a run directory again: plan, headers, rows, images. No model runs in this process.

    Args:
        run_directory: Of a run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: Samples held at once.
        models: Where the user's model files are now, if they moved.
        trust: Whether code named by the user may be executed.
        rerun: Whether attacks are run again, so that what they say of their search is compared too.
        verbose: Whether a line on stderr shows what is being done; by default where stderr is a terminal.
        apart: How models are kept out of this process.

    Raises:
        StoreError: No run directory.
        RobenchError: A model or data set of the run that is not there any more.
    """
    store, where, models = Store(run_directory, lenient=True), resolve_device(device), tuple(models)
    run, done = store.read_run(changed=True), store.finished()
    lines = [f"cells/{name}: {text}" for name, text in store.strange.items()]
    lines += _of_run(store, run, done)
    stored = {d: done[d] for d in run["cells"] if d in done and done[d].cell is not None}
    lines += [f"cells/{done[d].rows.stem}.json: schema is {done[d].header['schema']}, an older one; {ANEW}"
              for d in run["cells"] if d in done and d not in stored]  # fmt: skip
    with telling(verbose=verbose) as tell:
        tell("planning the run again", 0, 1)
        plan, paths, found = _planned_again(run, stored, models, trust)
    lines += found
    context = Context(str(store.root), where, batch_size, trust=trust, sources=paths, code=plan.code if plan else ())
    images = _images(store, run, context, models, apart, verbose)
    lines += images.differences
    present = {cell.digest for cell in plan.cells} if plan else set()
    digests = tuple(sorted(d for d in stored if d in present))
    told = apart(recheck, Task(digests, context, rerun, verbose), what="a look at the rows again") if digests else []
    lines += [f"{named(run['cells'][d], d)}: {text}" for d, text in told]
    return Verification(
        tuple(dict.fromkeys(lines)),
        len(digests),
        len(run["cells"]),
        images.images,
        images.images_8bit,
        tuple(_notes(run, stored, images, rerun)),
    )


def _images(
    store: Store, run: Mapping[str, Any], context: Context, models: tuple[str, ...], apart: Apart, verbose: bool | None
) -> Replay:
    """The kept images judged again; nothing where none were asked for."""
    if not store.image_headers() and not run.get("adversarials"):
        return Replay(0, 0, 0, (), 0)
    if not any(about.get("scenario") == "evasion" for about in run["cells"].values()):
        return Replay(0, 0, 0, (), 0)
    told = {"device": context.device, "batch_size": context.batch_size, "models": models, "trust": context.trust}
    told |= {"verbose": verbose}
    found: Replay = apart(replay, (str(store.root), told), what="the judging of the kept images", fresh=True)
    return found


def _of_run(store: Store, run: Mapping[str, Any], done: Mapping[str, Finished]) -> Iterator[str]:
    """What ``run.json`` says otherwise than the cells do, or than it does elsewhere."""
    for digest, about in run["cells"].items():
        for field, expected, got in unlike_planned(done.get(digest), about):
            yield f"run.json: {field} of cell {digest[:8]} is {got!r}, and {expected!r} in the stored cell"
    limit, suite, limited = run.get("limit"), run.get("suite", {}), run["limited"]
    if limited != (limit is not None) or (limit is not None and limit != suite.get("limit")):
        yield f"run.json: limited is {limited}, limit is {limit}, and the suite's limit is {suite.get('limit')}"
    with suppress(ValueError):  # a suite that cannot be read is told when it is planned again
        if Suite.model_validate(suite).limited and not limited:
            yield f"run.json: limited is False, but the suite {suite['name']} has another limit than {suite.get('limit')}"
    try:
        store.read_run()
    except StoreError as error:
        yield f"run.json: {error}"


def _planned_again(
    run: Mapping[str, Any], stored: Mapping[str, Finished], models: tuple[str, ...], trust: bool
) -> tuple[Plan | None, tuple[tuple[str, str], ...], list[str]]:
    """The plan that the run's suite gives now, where its files are, and what differs from ``run.json``.

    Raises:
        RobenchError: A model or data set that is not there any more.
    """
    try:
        suite = Suite.model_validate(run["suite"])
        edits = run["edits"]
        suite = suite._edited({}, adapts=edits["adapts"], typed=edits["typed"], notes=edits["notes"])
        settings, seed = Settings(**run["settings"]), operator.index(run["seed"])
        users = _users(run, suite, stored, models)
    except (ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        return None, (), [f"run.json: suite, edits, settings or sources cannot be read ({error})".replace("\n", " ")]
    for user in users:
        if isinstance(user, UserModel) and user.source not in ZOO and not user.source.startswith("trained("):
            require_file(user.source)
    try:
        plan, paths = plan_run(suite, models=users, seed=seed, settings=settings, trust=trust)
    except ConfigError as error:
        return None, (), [f"run.json: the suite cannot be planned again: {error}"]
    return plan, paths, list(_unlike_plan(run, plan))


def _users(
    run: Mapping[str, Any], suite: Suite, stored: Mapping[str, Finished], models: tuple[str, ...]
) -> list[str | UserModel]:
    """The models of the run, with the files as ``--model`` or ``run.json`` says."""
    moved = {model.label: model.source for model in listed(models)}
    known = {label: UserModel(**{**about, "mean": tuple(about["mean"]), "std": tuple(about["std"]),
                                 "input_range": tuple(about["input_range"])})
             for label, about in run["sources"].items()}  # fmt: skip
    known = {label: replace(user, source=moved.get(label, user.source), name=label) for label, user in known.items()}
    return [known.get(label, label) for label in suite.models]


def _unlike_plan(run: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """Where the plan of now and the planned cells of the run differ."""
    cells = {cell.digest: cell for cell in plan.cells}
    lost, more = set(run["cells"]) - set(cells), set(cells) - set(run["cells"])
    for digest in sorted(lost):
        about = run["cells"][digest]
        yield f"run.json: {named(about, digest)} is not what suite, seed, settings, models and data give now"
    for digest in sorted(more):
        yield f"run.json: {_name(cells[digest])} is missing among its cells (by suite, seed, settings, models and data)"
    if run.get("left_out", []) != list(plan.notes):
        now_left = list(plan.notes)
        yield f"run.json: left_out is {run.get('left_out')}, and {now_left} when planned again (edits.notes are part of it)"
    now = {name: dict(facts) for name, facts in plan.identities.items()}
    if run.get("data_notes", []) != list(plan.data_notes):
        yield f"run.json: data_notes is {run.get('data_notes')}, and {list(plan.data_notes)} when planned again"
    identities = run.get("identities")
    told = identities.get("models") if isinstance(identities, Mapping) else None
    if not isinstance(told, Mapping):
        yield f"run.json: identities is {identities!r}, which says nothing of the models"
    elif told != now:
        names = sorted(name for name in {*now, *told} if told.get(name) != now.get(name))
        yield f"run.json: identities of {', '.join(names)} are not what the models are now"


def _name(cell: Cell) -> str:
    from robench.lineage import planned

    return named(planned(cell), cell.digest)


def _notes(run: Mapping[str, Any], stored: Mapping[str, Finished], images: Replay, rerun: bool) -> Iterator[str]:
    searched = [d for d in stored if run["cells"][d]["scenario"] in ATTACKED]
    without = sum(run["cells"][d]["scenario"] == "evasion" for d in searched) - images.cells
    if without > 0:
        yield f"the scores of {without} attacked cells, which kept no images (--save-adversarials keeps them)"
    if searched and not rerun:
        yield f"what attacks say of their own search, which --rerun compares ({', '.join(SEARCH)})"
    unfinished = len(set(run["cells"]) - set(stored))
    if unfinished:
        yield f"{unfinished} planned cells, which have no readable result"
