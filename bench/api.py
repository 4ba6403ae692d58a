"""The Python API: ``evaluate`` for a model in hand, ``run`` for a suite, ``load`` for stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from robench import catalog
from robench.errors import ConfigError, DataError, must
from robench.metrics.robust import robust_accuracy
from robench.metrics.validity import Verdict, verdict
from robench.runner import Progress, Summary, run_cell, run_plan, versions
from robench.spec import Cell, Context, Estimate, Ref, Settings, ThreatModel
from robench.store import Store
from robench.suite import Suite, read_suite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robench.data.dataset import Dataset
    from robench.plan import Plan
    from robench.scenarios.objects import Objects
    from robench.sources import UserModel


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found."""

    rows: pd.DataFrame
    """One row per sample and attack, with the columns of the ``evasion`` frame."""
    robust_accuracy: Estimate
    """Share of all samples that no attack broke, with a 95 % interval."""
    x_adv: Tensor
    """Per sample the image of the attack with the lowest judged margin, (N, C, H, W), in [0, 1]."""
    validity: Verdict
    """Whether the number can be believed, with reasons."""


@dataclass(frozen=True)
class Run:
    """A finished or partly finished run."""

    out: Path
    plan: Plan
    summary: Summary


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: str = "linf(8/255)",
    attacks: Sequence[str] = ("noise", "pgd(steps=40)", "pgd(steps=40, loss='margin')"),
    seed: int = 0,
    device: str | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Attack a model and judge it: per-sample worst case over the attacks, with a validity verdict.

    Args:
        model: Takes float32 images (N, C, H, W) in [0, 1], returns logits (N, K); it is left as it was.
        x: Images (N, C, H, W), float32 in [0, 1].
        y: Labels (N,), integers in [0, K).
        threat: ``norm(eps)``, eps in units of [0, 1], e.g. ``linf(8/255)``.
        attacks: References such as ``pgd(steps=40)`` or ``art:SquareAttack(max_iter=100)``.
        seed: Seed of every draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; None keeps the model where it is.
        batch_size: Samples held at once; results do not depend on it.

    Raises:
        ConfigError: Unknown attack, argument or threat.
        DataError: Images outside [0, 1], NaN, labels out of range.
        ModelError: Non-finite weights, or a model that changes while it is measured.

    Source: Croce & Hein, ICML 2020 (per-sample worst case).
    """
    import torch

    from robench.data.checks import check_images, check_labels
    from robench.devices import exact_arithmetic, resolve_device
    from robench.inference import predict, require_finite_weights, untouched

    parsed = ThreatModel.parse(threat)
    if not attacks or isinstance(attacks, str):
        raise ConfigError(must("attacks", "at least one attack", list(attacks), "e.g. attacks=['pgd(steps=40)']"))
    for attack in attacks:
        _require_usable(catalog.ATTACKS.resolve(attack), parsed)
    check_images(x)
    require_finite_weights(model)
    here = next((p.device for p in model.parameters()), torch.device("cpu"))
    where = str(here) if device is None else resolve_device(device)
    with exact_arithmetic(), _moved(model, here, where), untouched(model):
        outputs = predict(model, x[:1].to(where), width=Settings().width)
        if outputs.dim() != 2:
            remedy = "return one row of logits per image"
            raise DataError(must("the model's outputs", "logits (N, K)", tuple(outputs.shape), remedy))
        check_labels(y, outputs.shape[1])
        if len(y) != len(x):
            raise DataError(must("labels", f"as many as images ({len(x)})", len(y), "give one class index per image"))
        data = _in_memory(x.cpu(), y.cpu().long(), outputs.shape[1])
        objects = _objects(model, data, seed, Context("", where, batch_size or 256))
        frame, x_adv = _attack_all(objects, attacks, parsed)
        watch = _watch(objects, threat)
    return Evaluation(frame, robust_accuracy(frame), x_adv, verdict(frame, watch))


def _in_memory(x: Tensor, y: Tensor, classes: int) -> Dataset:
    """Images and labels in hand as a data set with the ids 0..N-1."""
    import torch

    from robench.data.dataset import Dataset
    from robench.spec import DatasetSpec

    shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    spec = DatasetSpec("memory", tuple(map(str, range(classes))), shape, ("test",))
    return Dataset(spec, torch.arange(len(y)), y, x.__getitem__)


def _require_usable(attack: Ref, threat: ThreatModel) -> None:
    facts = catalog.ATTACKS[attack.name].facts
    norms = facts.get("norms", ())
    if threat.norm not in norms:
        expected = "one of " + ", ".join(norms)
        raise ConfigError(must(f"the norm of {attack.name}", expected, threat.norm, "choose another attack"))
    if facts.get("surrogate"):
        remedy = "transfer between the models of a run with robench.run"
        raise ConfigError(must("an attack of evaluate", "one that needs no second model", attack.name, remedy))


@contextmanager
def _moved(model: nn.Module, here: Any, there: str) -> Iterator[None]:
    """The model on another device, and back."""
    model.to(there)
    try:
        yield
    finally:
        model.to(here)


def _objects(model: nn.Module, data: Dataset, seed: int, context: Context) -> Objects:
    """What a scenario is given, for a model in hand."""
    from robench.scenarios.objects import Objects
    from robench.spec import Artifact
    from robench.workshop import Model

    nothing = Artifact("model", Ref("memory"))
    return Objects(Cell(Ref("memory"), "1", nothing, nothing, seed=seed), context, Model(model, {}), data)


def _attack_all(objects: Objects, attacks: Sequence[str], threat: ThreatModel) -> tuple[pd.DataFrame, Tensor]:
    """Rows of every attack, and per sample the image of the attack with the lowest judged margin."""
    import torch

    from robench.scenarios.evasion import attack_hold, hold_size

    rows: list[dict[str, Any]] = []
    best = objects.data.images()
    lowest = torch.full((len(best),), torch.inf)
    for attack in attacks:
        seed = objects.cell.seed
        parts = [
            attack_hold(objects.net, h, attack=attack, threat=threat, seed=seed)
            for h in objects.holds(size=hold_size(attack))
        ]
        found = [row for _, part in parts for row in part]
        margin = torch.tensor([row["margin_adv"] for row in found])
        better = margin < lowest
        best[better] = torch.cat([x_adv for x_adv, _ in parts]).cpu()[better]
        lowest = torch.where(better, margin, lowest)
        rows.extend(found)
    return pd.DataFrame(rows).assign(**_lead("evasion", objects)), best


def _watch(objects: Objects, threat: str) -> pd.DataFrame:
    """The sentinel's rows for a model in hand."""
    from robench.scenarios.sentinel import sentinel

    return pd.DataFrame(sentinel(objects, threat=threat)).assign(**_lead("sentinel", objects))


def _lead(scenario: str, objects: Objects) -> dict[str, Any]:
    seed = objects.cell.seed
    return {"model": "model", "dataset": "memory", "scenario": scenario, "condition": "", "seed": seed, "cell": ""}


def plan_run(
    suite: str | Suite,
    *,
    models: Iterable[str | UserModel] = (),
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    changes: dict[str, Any] | None = None,
) -> tuple[Plan, tuple[tuple[str, str], ...]]:
    """The graph of a run, and the user's files by hash; nothing is computed.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range.
    """
    from robench.plan import expand
    from robench.sources import resolve_sources

    chosen = read_suite(suite) if isinstance(suite, str) else suite
    named = list(models)
    sources, paths = resolve_sources(data or chosen.data, named or chosen.models)
    labels = [m if isinstance(m, str) and m in sources.models else Path(getattr(m, "source", str(m))).name for m in named]
    update = {"data": data or chosen.data, **(changes or {})}
    if named:
        update |= {"models": labels, **_narrowed(chosen.model_copy(update=update), set(labels))}
    if limit is not None:
        update["limit"] = limit
    return expand(chosen.model_copy(update=update), sources, seed=seed, settings=settings), paths


def _narrowed(suite: Suite, labels: set[str]) -> dict[str, Any]:
    """Parts of a suite that name models, kept where the model is still in the run."""
    kept = [m for m in suite.compression.models if m in labels]
    return {
        "compression": suite.compression.model_copy(update={"models": kept}),
        "defenses": [d for d in suite.defenses if d.model in labels],
    }


def run(
    suite: str | Suite,
    *,
    models: Iterable[str | UserModel] = (),
    data: str | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int = 256,
    settings: Settings | None = None,
    trust: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    changes: dict[str, Any] | None = None,
) -> Run:
    """Run a suite into a run directory; called again it computes only what is missing.

    Raises:
        RobenchError: Anything named that is unknown, missing or out of range, or a run directory in use.
    """
    from robench.devices import resolve_device, usable_cores

    plan, paths = plan_run(suite, models=models, data=data, limit=limit, seed=seed, settings=settings, changes=changes)
    folder = Path(out) if out else Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{plan.suite.name}"
    where = resolve_device(device)
    context = Context(str(folder), where, batch_size, trust=trust, sources=paths)
    count = workers or (usable_cores() if where == "cpu" else 1)
    store = Store(folder)
    _announce(plan, context, announce or _say_nothing)
    with store.locked():
        store.clean_temporary()
        header = {"suite": plan.suite.model_dump(), "seed": seed, "limited": limit is not None, "versions": versions()}
        store.write_run({**header, "cells": {c.digest: _planned(c) for c in plan.cells}})
        summary = run_plan(plan, store, context, workers=count, progress=progress or _silent)
    return Run(folder, plan, summary)


def _announce(plan: Plan, context: Context, announce: Callable[[str], None]) -> None:
    """Say each user model's clean accuracy through the wrapped path first; a model that cannot run ends the run here.

    Raises:
        ModelError: The model cannot be loaded, or does not fit the images.
    """
    from robench.devices import exact_arithmetic

    for cell in plan.cells:
        plain = cell.model.builder.name == "file" and not cell.condition
        if plain and cell.scenario.name == "clean" and cell.scenario.kwargs["split"] == "test":
            with exact_arithmetic(context.threads):
                score = run_cell(cell, context)["score"]
            announce(
                f"{cell.model.label}: clean accuracy {score.mean():.1%} of {len(score)} images, as robench sees the model"
            )


def _say_nothing(text: str) -> None:
    """No announcement."""


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


def load(run_directory: str | Path) -> dict[str, pd.DataFrame]:
    """Per-sample frames of a run by scenario.

    Raises:
        StoreError: No run directory, or damaged results.
    """
    store = Store(run_directory)
    planned = store.read_run()["cells"]
    return _with_missing(store.frames(planned), planned)


def _planned(cell: Cell) -> dict[str, Any]:
    """What a cell was to measure, kept in ``run.json`` so that a missing result is noticed."""
    about = {"scenario": cell.scenario.name, "model": cell.model.label, "condition": cell.condition, "seed": cell.seed}
    return {**about, **{k: v for k, v in cell.scenario.kwargs.items() if k in ("threat", "attack")}}


def _with_missing(frames: dict[str, pd.DataFrame], planned: dict[str, dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The frames with ``failed`` rows for every planned attack that has no result.

    Without them a worst case over the attacks that happened to finish would pass for one over all.
    """
    if "evasion" not in frames:
        return frames
    found, added = frames["evasion"], []
    done = set(found["cell"])
    for digest, about in planned.items():
        if about["scenario"] == "evasion" and digest not in done:
            same = [found[key] == about[key] for key in ("model", "condition", "seed")]
            rows = found[pd.concat(same, axis=1).all(axis=1)].drop_duplicates("sample")
            threat = ThreatModel.parse(about["threat"])
            rows = rows.assign(threat=str(threat), norm=threat.norm, eps=threat.eps)
            told = {
                "cell": digest,
                "attack": about["attack"],
                "status": "failed",
                "error": "no result: the cell did not finish",
            }
            quiet = {"forwards": 0, "backwards": 0, "zero_gradients": 0, "nonfinite_gradients": 0, "nonfinite_outputs": 0}
            added.append(rows.assign(**told, **quiet, projected=False, unstable=False, score_adv=rows["score_clean"]))
    return {**frames, "evasion": pd.concat([found, *added], ignore_index=True)}
