"""One attack under one threat model, judged by the original model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robench import catalog
from robench.attacks._engine import Engine
from robench.attacks._rand import CALL_HOLD
from robench.devices import is_out_of_memory
from robench.errors import ConfigError
from robench.evidence import breaks_in_8bit, shown
from robench.inference import predict, untouched
from robench.judge import Verdicts, decide
from robench.ops.random import Draws
from robench.progress import Progress, silent
from robench.registry import facts
from robench.scenarios.fresh_copy import FreshCopy
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import Ref, ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import BOOKS, Victim

HOLD = 4
"""Batches of samples that a protocol's engine holds at once: the larger, the fuller the last batches of a stage."""


@dataclass(frozen=True)
class Protocol:
    """What a protocol adds to the rows of its samples."""

    stage: list[str]
    """What broke each sample, empty where nothing did."""
    access: list[str]
    """What that stage saw: ``white``, ``score``, ``decision`` or ``transfer``."""
    escalated: str = ""
    """Why the protocol went beyond its ordinary stages."""
    draws: int = 0
    """How many draws a randomised model's images are judged by; 0 for two looks."""
    unconfirmed: list[int] | int = 0
    """How often a search in lower precision broke each sample and the model itself did not."""


NONE = Protocol([], [])


@facts(version=8)
def evasion(objects: Objects, *, attack: str = "pgd", threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample and attack; samples on which the attack crashed are ``failed``, never robust."""
    return _attacked(objects, attack, threat, keep=lambda x_adv: None)


def with_images(objects: Objects, *, attack: str, threat: str) -> tuple[Tensor, list[dict[str, Any]]]:
    """What the attack left of every sample, (N, ...) on the CPU, and the rows of ``evasion``, both in the shard's order."""
    images: list[Tensor] = []
    rows = _attacked(objects, attack, threat, keep=lambda x_adv: images.append(x_adv.cpu()))
    return torch.cat(images), rows


def _attacked(objects: Objects, attack: str, threat: str, *, keep: Callable[[Tensor], None]) -> list[dict[str, Any]]:
    told: dict[str, Any] = {"attack": attack, "threat": ThreatModel.parse(threat), "seed": objects.cell.seed}
    with untouched(objects.net):
        if not _facts(attack).get("surrogate"):
            return _searched(objects, told, keep)
        surrogate = objects.extra(0).net
        with untouched(surrogate):
            return _searched(objects, {**told, "surrogate": surrogate}, keep)


def _searched(objects: Objects, told: dict[str, Any], keep: Callable[[Tensor], None]) -> list[dict[str, Any]]:
    if not is_protocol(told["attack"]):
        again = FreshCopy(objects.fresh, objects.net, told["threat"], objects.model.task)
        rows = walk(objects.holds(size=hold_size(told["attack"])), _measure(objects, told, keep, again))
        again.judge()
        return rows
    engine, rows = protocol_rows(objects, **told)
    keep(engine.best)
    return rows


def _measure(
    objects: Objects, told: dict[str, Any], keep: Callable[[Tensor], None], again: FreshCopy
) -> Callable[[Hold], list[dict[str, Any]]]:
    def measure(hold: Hold) -> list[dict[str, Any]]:
        x_adv, rows = attack_hold(objects.net, hold, task=objects.model.task, **told)
        keep(x_adv)
        again.add(hold, x_adv, rows)
        return rows

    return measure


def protocol_rows(
    objects: Objects,
    *,
    attack: str,
    threat: ThreatModel,
    seed: int,
    surrogate: nn.Module | None = None,
    progress: Progress = silent,
) -> tuple[Engine, list[dict[str, Any]]]:
    """Run a protocol on all of the cell's samples; the engine with what it found, and the rows.

    Every row is judged anew from the engine's images, as those of a single attack are.
    """
    data = objects.shard()
    x, device = data.images(), objects.context.device
    engine = Engine(
        objects.net, x, data.labels, data.ids, threat,
        seed=seed, device=device, width=objects.cell.settings.width, task=objects.model.task,
        hold=hold_size(attack) or HOLD * objects.context.batch_size, precision=objects.cell.settings.search_precision,
        surrogate=surrogate, watch=progress,
    )  # fmt: skip
    ref = catalog.ATTACKS.resolve(attack)
    start, error = time.perf_counter(), ""
    try:
        catalog.ATTACKS[ref.name].load()(engine, **ref.kwargs)
    except Exception as raised:
        if is_out_of_memory(raised):
            raise
        error = f"{type(raised).__name__}: {raised}"
    spent = (time.perf_counter() - start) / max(len(x), 1)
    size = CALL_HOLD if engine.draws else hold_size(attack)
    again = FreshCopy(objects.fresh, objects.net, threat, objects.model.task)
    rows = walk(objects.holds(size=size), lambda hold: _engine_rows(engine, hold, attack, error, spent, again))
    again.judge()
    return engine, rows


def _engine_rows(
    engine: Engine, hold: Hold, attack: str, error: str, seconds: float, again: FreshCopy
) -> list[dict[str, Any]]:
    """The engine's images of a hold's samples, judged; every row says which stage broke it."""
    places = torch.isin(engine.ids, hold.ids.cpu()).nonzero()[:, 0]
    stages = [engine.waterfall[s] if s >= 0 else None for s in engine.stage[places].tolist()]
    by = Protocol(
        [s.name if s else "" for s in stages], [s.access if s else "" for s in stages],
        "; ".join(dict.fromkeys(engine.escalated)), engine.draws or int(_facts(attack).get("draws", 0)),
        engine.unconfirmed[places].tolist(),
    )  # fmt: skip
    told: dict[str, Any] = {"attack": attack, "threat": engine.threat, "task": engine.task, "error": error}
    books = {name: book[places].to(hold.x.device) for name, book in engine.books.items()}
    x_adv = engine.best[places].to(hold.x)
    rows = judged(engine.model, hold, x_adv, books=books, by=by, seconds=seconds, seed=engine.seed, **told)
    again.add(hold, x_adv, rows)
    return rows


def attack_hold(
    model: nn.Module,
    hold: Hold,
    *,
    attack: str,
    threat: ThreatModel,
    seed: int,
    surrogate: nn.Module | None = None,
    task: Task = CLASSIFICATION,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Attack and judge the samples of one hold; returns x_adv (N, ...) and the rows.

    Samples that the clean model gets wrong are not attacked: they count as broken at distance 0.
    """
    start = time.perf_counter()
    outputs = predict(model, hold.x, width=hold.width)
    score = task.score(outputs, hold.y)
    chosen = (~task.broken(score)).nonzero()[:, 0]
    part = Hold(hold.x[chosen], hold.y[chosen], hold.ids[chosen], hold.width)
    victim = Victim(model, part.x, part.y, threat=threat, task=task, width=hold.width, access=_access(attack))
    found, error = _attempt(victim, part, attack=attack, threat=threat, seed=seed, surrogate=surrogate)
    x_adv = hold.x.clone()
    x_adv[chosen] = found
    spent = (time.perf_counter() - start) / len(hold.y)
    books = _books({name: getattr(victim, name) for name in BOOKS}, chosen, len(hold.y))
    told: dict[str, Any] = {"error": error, "attack": attack, "threat": threat, "books": books, "seconds": spent}
    return x_adv, judged(model, hold, x_adv, task=task, **told)


def judged(
    model: nn.Module,
    hold: Hold,
    x_adv: Tensor,
    *,
    threat: ThreatModel,
    task: Task,
    attack: str,
    books: dict[str, Tensor],
    error: str = "",
    seconds: float = 0.0,
    by: Protocol = NONE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The rows of images (N, ...) that an attack left, judged here and now; a randomised model's by many draws."""
    clean, verdicts = _looks(model, hold, x_adv, by.draws, threat, task, seed)
    score = clean.score
    robust, attacked = ~task.broken(verdicts.score), ~task.broken(score)
    failed = verdicts.failed | (attacked & bool(error)) | (robust & (books["nonfinite_outputs"] > 0))
    broken = ~(robust & attacked) & ~verdicts.failed
    images = shown(hold.x, x_adv, threat, projected=verdicts.projected, mistaken=~attacked)
    asked: dict[str, Any] = {"broken": broken, "threat": threat, "task": task, "width": hold.width}
    asked |= {"draws": by.draws, "seed": seed}
    return columns(
        sample=hold.ids,
        label=hold.y,
        threat=str(threat),
        norm=threat.norm,
        eps=threat.eps,
        attack=attack,
        access=_access(attack),
        stage=by.stage or "",
        stage_access=by.access or "",
        escalated=by.escalated,
        draws=by.draws,
        unconfirmed=by.unconfirmed,
        status=["failed" if f else "ok" for f in failed.tolist()],
        error=[(error or "non-finite image or outputs") if f else "" for f in failed.tolist()],
        score_clean=score,
        pred_clean=clean.prediction,
        margin_clean=clean.margin,
        score_adv=torch.minimum(verdicts.score, score),
        score_mean=torch.minimum(verdicts.mean, clean.mean),
        score_worst=torch.minimum(verdicts.worst, clean.worst),
        pred_adv=verdicts.prediction,
        margin_adv=verdicts.margin,
        distance=verdicts.distance,
        projected=verdicts.projected,
        unstable=verdicts.unstable,
        broken=broken,
        broken_8bit=breaks_in_8bit(model, hold.x, hold.y, x_adv=images, **asked),
        fresh_copy_agrees=math.nan,
        fresh_copy_note="",
        **books,
        seconds=seconds,
    )


class Clean(NamedTuple):
    """What the model says of clean images, (N,) each."""

    score: Tensor
    prediction: Tensor
    margin: Tensor
    mean: Tensor
    """Mean score over the draws of a randomised model; of any other the score."""
    worst: Tensor
    """Lowest score over the draws of a randomised model; of any other the score."""


def _looks(
    model: nn.Module, hold: Hold, x_adv: Tensor, draws: int, threat: ThreatModel, task: Task, seed: int
) -> tuple[Clean, Verdicts]:
    """What the model says of the clean images, and the verdicts on the attack's."""
    told: dict[str, Any] = {"threat": threat, "task": task, "width": hold.width, "draws": draws, "seed": seed}
    found = decide(model, hold.x, hold.y, x_adv=x_adv, **told)
    if draws:
        clean = decide(model, hold.x, hold.y, x_adv=hold.x, **told)
        return Clean(clean.score, clean.prediction, clean.margin, clean.mean, clean.worst), found
    outputs = predict(model, hold.x, width=hold.width)
    score = task.score(outputs, hold.y)
    return Clean(score, task.predict(outputs), task.margin(outputs, hold.y), score, score), found


def is_protocol(attack: str) -> bool:
    """Whether the name is a protocol, which decides over all samples at once."""
    return bool(_facts(attack).get("protocol"))


def hold_size(attack: str) -> int | None:
    """Samples an attack must be given at once for its draws to stay the same; None where that does not matter."""
    return CALL_HOLD if _facts(attack).get("randomness") == "call" else None


def _facts(attack: str) -> dict[str, Any]:
    return catalog.ATTACKS[Ref.parse(attack).name].facts


def _access(attack: str) -> str:
    return str(_facts(attack).get("access", "white"))


def _attempt(
    victim: Victim, part: Hold, *, attack: str, threat: ThreatModel, seed: int, surrogate: nn.Module | None
) -> tuple[Tensor, str]:
    """The attack's images, or the clean ones and the error's text.

    Raises:
        ConfigError: The attack refuses its arguments, which says nothing about the samples.
    """
    if not len(part.y):
        return part.x, ""
    ref = catalog.ATTACKS.resolve(attack)
    entry = catalog.ATTACKS[ref.name]
    extra: dict[str, Any] = {"surrogate": surrogate} if entry.facts.get("surrogate") else {}
    if ":" in ref.name:
        extra["name"] = ref.name.partition(":")[2]
    seeds = Draws(seed, part.ids)
    try:
        found: Tensor = entry.load()(victim, part.x, part.y, threat=threat, seeds=seeds, **{**ref.kwargs, **extra})
    except ConfigError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return victim.result(), f"{type(error).__name__}: {error}"
    return found.detach(), ""


def _books(kept: dict[str, Tensor], chosen: Tensor, count: int) -> dict[str, Tensor]:
    """The books of the attacked samples among all, 0 elsewhere."""
    zeros = torch.zeros(count, dtype=torch.int64, device=chosen.device)
    return {name: zeros.index_copy(0, chosen, book) for name, book in kept.items()}
