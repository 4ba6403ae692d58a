"""One attack under one threat model, judged by the original model."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from robench import catalog
from robench.devices import is_out_of_memory
from robench.inference import predict, untouched
from robench.judge import Verdicts, judge
from robench.ops.random import Draws
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import Ref, ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import Victim

CALL_HOLD = 256
"""Samples held at once for attacks that draw in call order, so that ``--batch-size`` cannot move their draws."""


@facts(version=2)
def evasion(objects: Objects, *, attack: str = "pgd", threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample and attack; samples on which the attack crashed are ``failed``, never robust."""
    surrogate = objects.extra(0).net if _facts(attack).get("surrogate") else None
    size = hold_size(attack)
    options: dict[str, Any] = {
        "attack": attack,
        "threat": ThreatModel.parse(threat),
        "seed": objects.cell.seed,
        "surrogate": surrogate,
    }

    def measure(hold: Hold) -> list[dict[str, Any]]:
        return attack_hold(objects.net, hold, task=objects.model.task, **options)[1]

    with untouched(objects.net):
        if surrogate is None:
            return walk(objects.holds(size=size), measure)
        with untouched(surrogate):
            return walk(objects.holds(size=size), measure)


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
    verdicts = judge(model, hold.x, hold.y, x_adv=x_adv, threat=threat, task=task, width=hold.width)
    books = _books(victim, chosen, len(hold.y))
    spent = (time.perf_counter() - start) / len(hold.y)
    clean = {
        "score_clean": score,
        "pred_clean": task.predict(outputs),
        "margin_clean": task.margin(outputs, hold.y),
    }
    told: dict[str, Any] = {"task": task, "error": error, "attack": attack, "threat": threat, "seconds": spent}
    return x_adv, _rows(hold, verdicts, clean=clean, attacked=~task.broken(score), books=books, **told)


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
    """The attack's images, or the clean ones and the error's text."""
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
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return victim.result(), f"{type(error).__name__}: {error}"
    return found.detach(), ""


def _books(victim: Victim, chosen: Tensor, count: int) -> dict[str, Tensor]:
    names = ("forwards", "backwards", "zero_gradients", "nonfinite_gradients", "nonfinite_outputs")
    full = {name: torch.zeros(count, dtype=torch.int64, device=chosen.device) for name in names}
    for name in names:
        full[name][chosen] = getattr(victim, name)
    return full


def _rows(
    hold: Hold,
    verdicts: Verdicts,
    *,
    clean: dict[str, Tensor],
    attacked: Tensor,
    books: dict[str, Tensor],
    task: Task,
    error: str,
    attack: str,
    threat: ThreatModel,
    seconds: float,
) -> list[dict[str, Any]]:
    robust = ~task.broken(verdicts.score)
    failed = verdicts.failed | (attacked & bool(error)) | (robust & (books["nonfinite_outputs"] > 0))
    status = ["failed" if f else "ok" for f in failed.tolist()]
    texts = [(error or "non-finite image or outputs") if f else "" for f in failed.tolist()]
    score_adv = torch.minimum(verdicts.score, clean["score_clean"])
    return columns(
        sample=hold.ids,
        label=hold.y,
        threat=str(threat),
        norm=threat.norm,
        eps=threat.eps,
        attack=attack,
        access=_access(attack),
        status=status,
        error=texts,
        **clean,
        score_adv=score_adv,
        pred_adv=verdicts.prediction,
        margin_adv=verdicts.margin,
        distance=verdicts.distance,
        projected=verdicts.projected,
        unstable=verdicts.unstable,
        **books,
        seconds=seconds,
    )
