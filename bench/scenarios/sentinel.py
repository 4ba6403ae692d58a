"""Cheap checks of whether gradients, outputs and attacks on a model can be believed at all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robench.attacks._apgd import apgd
from robench.attacks._cascade import radius
from robench.attacks._climb import cosine
from robench.attacks._escalation import Still
from robench.attacks._pgd_l0 import pgd_l0
from robench.bpda import differentiable
from robench.errors import NoGradientError
from robench.inference import predict, second_look, untouched
from robench.judge import judge
from robench.ops.chance import seeded
from robench.ops.norms import Ball, steepest
from robench.ops.random import Draws
from robench.probing import FORWARDS, along, differ, geometry, slopes
from robench.registry import facts
from robench.scenarios.evasion import attack_hold
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import ThreatModel
from robench.victim import Victim

UNBOUNDED = "pgd(steps=20, loss='margin', step_size=0.1)"
"""Attack that must break every image when the whole box is allowed."""

WATCHED, STEPS, LAST = 64, 40, 10
"""Samples that meet short ascents, drawn by their ids; the ascents' steps; and the last of them, which must gain little."""

MOMENTUM = 0.75
"""Weight of the new step against the last movement."""

SUBSTITUTE = "substitute"
"""What the column ``gradient`` says where the model has none of its own."""

ASCENDED = ("linf", "l2")
"""Norms whose steepest direction the ascents take; in l1 and l0 attacks of the table ascend."""

FARTHER = 1.5
"""How much more the margin must fall within four times eps than within eps: on honest nets that hold there, 2 to 4 times."""

LEAST = 1 / 255
"""Radius of the random starts at eps = 0, where an image would be compared with itself."""

TRIES = 5
"""Unbounded attacks on a random model: one ends at its first success, which other draws may not confirm."""


@facts(version=7)
def sentinel(objects: Objects, *, threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample: what its gradients are worth, what kind of outputs it gets, and whether eps = 1 breaks it.

    On ``WATCHED`` samples short ascents tell whether two losses agree, a larger eps breaks more, and the search has ended.

    Source: Croce & Hein, ICML 2020 (checks of AutoAttack); Pintor et al., NeurIPS 2022 (I1, I3, I4, I6); Athalye et
    al., ICML 2018, section 3 (shattered gradients are those that finite differences contradict).

    A model whose outputs are random is looked at with its draws held still, and meets no ascents: an attack through its
    randomness, judged by many draws, must.

    A model that says it has no gradient is looked at through its substitute, and the rows say so: ``gradient`` is then
    ``substitute``, and ``twin_agrees`` whether model and substitute predict the same at the image and at a random point.
    """
    parsed, original = ThreatModel.parse(threat), objects.net
    watched = _watched(objects)
    net, substituted = differentiable(original)
    objects = replace(objects, model=replace(objects.model, net=net)) if substituted else objects

    def measure(hold: Hold) -> list[dict[str, Any]]:
        with seeded(objects.cell.seed, "sentinel", device=hold.x.device):
            outputs = _outputs(objects, hold, parsed)
        random = bool(outputs["random"].any())
        still = Still(objects.net, objects.cell.seed) if random else objects.net
        seen = replace(objects, model=replace(objects.model, net=still)) if random else objects
        found, error = _gradients(seen, hold, parsed)
        if substituted:
            found |= _substitute(original, hold, _start(objects, hold, parsed), error)
        found["gradient_dependent"] &= ~outputs["random"]
        told = {"status": "failed" if error else "ok", "error": error, "threat": str(parsed), **found, **outputs}
        ascents = _ascents(objects, hold, parsed, hold.ids[:0] if error or random else watched)
        return columns(sample=hold.ids, label=hold.y, **told, **ascents)

    with untouched(original):
        return walk(objects.holds(), measure)


def _substitute(model: nn.Module, hold: Hold, start: Tensor, error: str) -> dict[str, Any]:
    """Where the gradient comes from, and whether what gives it predicts as the model does, (N,)."""
    smooth, agrees = getattr(model, "smooth", None), torch.full((len(hold.y),), torch.nan)
    if callable(smooth) and not error:
        looks = [[predict(f, x, width=hold.width).argmax(1) for f in (model, smooth)] for x in (hold.x, start)]
        agrees = torch.stack([a == b for a, b in looks]).all(0).float()
    return {"gradient": SUBSTITUTE, "twin_agrees": agrees}


def _watched(objects: Objects) -> Tensor:
    """Ids of the samples that meet the ascents: the same whatever shard or batch holds them."""
    ids = objects.data.ids
    luck = Draws(objects.cell.seed, ids).bits("sentinel.watched", (1,))[:, 0]
    return ids[luck.argsort(stable=True)[:WATCHED]].to(objects.context.device)


def _ascents(objects: Objects, hold: Hold, threat: ThreatModel, watched: Tensor) -> dict[str, Tensor]:
    """What short ascents on the watched samples found, (N,) each, NaN for the others.

    Returns:
        ``broken_margin``, ``broken_ce`` and ``broken_relative`` (by a loss at eps), ``broken_2x`` and ``broken_4x`` (by the
        margin at multiples of eps), 0 or 1; ``rising``, the share of the whole gain in margin that came in the last steps,
        in [0, 1], of unbroken samples that as many steps again would break at this pace, 0 of others; ``stuck``, 1 where 4
        times eps does not lower the margin by half as much again as eps does, and breaks nothing; ``silent``, 1 where a
        visited point of the ball broke a sample and the judge does not confirm it; and what ``geometry`` and ``along`` tell
        of the points where the ascents at eps (``end_``) and at 2 eps (``wide_``) ended, of two lines the worse.
    """
    told = {name: torch.full((len(hold.y),), torch.nan, device=hold.x.device) for name in _ASCENTS}
    chosen = torch.isin(hold.ids, watched).nonzero()[:, 0]
    if not len(chosen) or threat.eps == 0:
        return told
    part = Hold(hold.x[chosen], hold.y[chosen], hold.ids[chosen], hold.width)
    draws = Draws(objects.cell.seed, part.ids)
    wider = {k: ThreatModel(threat.norm, k * threat.eps, f"{k} * {threat.text}") for k in (2, 4)}
    ends = _ascend(objects.net, part, threat, draws, "margin")
    others = {loss: _ascend(objects.net, part, threat, draws, loss) for loss in ("ce", "relative_margin")}
    wide, widest = (_ascend(objects.net, part, wider[k], draws, "margin") for k in (2, 4))
    told["broken_margin"][chosen], told["rising"][chosen] = ends.broken, ends.rising
    told["broken_ce"][chosen], told["broken_relative"][chosen] = (found.broken for found in others.values())
    told["broken_2x"][chosen], told["broken_4x"][chosen] = wide.broken, widest.broken
    held = (ends.broken < 1) & (widest.broken < 1)
    told["stuck"][chosen] = (held & (widest.fall < FARTHER * ends.fall)).to(told["stuck"])
    told["silent"][chosen] = torch.stack([found.silent for found in (ends, *others.values())]).amax(0)
    for name, column in _along_ascents(objects.net, part, threat, draws, ends.points, wide.points).items():
        told[name][chosen] = column.to(told[name])
    return told


_PLACES = tuple(f"{place}_{what}" for place in ("end", "wide") for what in ("mass_error", "mass_noise", "steep"))
_ASCENTS = ("broken_margin", "broken_ce", "broken_relative", "broken_2x", "broken_4x", "rising", "stuck", "silent", *_PLACES,
            "line_error", "line_noise", "line_turns")  # fmt: skip
"""Columns that only watched samples have."""


def _along_ascents(
    net: nn.Module, part: Hold, threat: ThreatModel, draws: Draws, near: Tensor, far: Tensor
) -> dict[str, Tensor]:
    """What gradients are worth where ascents ended and on the lines to there, (n,) each."""
    victim = Victim(net, part.x, part.y, threat=threat, width=part.width)
    rows = torch.arange(len(part.y), device=part.x.device)
    found: dict[str, Tensor] = {}
    lines: list[dict[str, Tensor]] = []
    for place, points in (("end", near), ("wide", far)):
        told = geometry(victim, points, rows, draws, f"sentinel.{place}")
        found |= {f"{place}_{name}": column for name, column in told.items()}
        lines.append(along(victim, points, rows))
    return found | {name: torch.stack([line[name] for line in lines]).nan_to_num(0).amax(0) for name in lines[0]}


class _Ascent(NamedTuple):
    """What one short ascent found, (n,) or (n, ...) each."""

    points: Tensor
    """The first success, else the point of the lowest margin."""
    broken: Tensor
    """Whether the judge confirms a success, 0 or 1."""
    rising: Tensor
    fall: Tensor
    """By how much the margin fell, at least 0."""
    silent: Tensor
    """1 where a success was met and the judge does not confirm it."""


def _ascend(net: nn.Module, hold: Hold, threat: ThreatModel, draws: Draws, loss: str) -> _Ascent:
    """A short ascent of the loss: fixed steps along the steepest direction, or in l1 and l0 an attack of the table."""
    victim = Victim(net, hold.x, hold.y, threat=threat, width=hold.width)
    clean = victim.margins(hold.x, victim.alive())
    rising = torch.full_like(clean, torch.nan)
    if threat.norm in ASCENDED:
        low = _steps(victim, draws, loss)
        left = victim.best_margin
        gain = (low - left) / (clean - left).clamp_min(torch.finfo(clean.dtype).tiny)
        soon = (low - left) * (STEPS // LAST) >= left
        rising = torch.where(soon, gain.clamp(0, 1), 0.0)
    else:
        attack = apgd if threat.norm == "l1" else partial(pgd_l0, restarts=1)
        attack(victim, hold.x, hold.y, threat=threat, seeds=draws, steps=STEPS, loss=loss)
    broken = judge(net, hold.x, hold.y, x_adv=victim.result(), threat=threat, width=hold.width).broken()
    silent = (victim.broken & ~broken).to(clean.dtype)
    fall = (clean - victim.best_margin).clamp_min(0)
    rising = rising.masked_fill(victim.broken, torch.nan)
    return _Ascent(victim.result(), broken.to(clean.dtype), rising, fall, silent)


def _steps(victim: Victim, draws: Draws, loss: str) -> Tensor:
    """Ascend from random starts; returns the lowest margins as they were before the last steps, (n,)."""
    rows = victim.alive()
    points = before = victim.ball[rows].random(draws[rows], "sentinel.ascent")
    low = victim.best_margin
    for step, size in enumerate(cosine(STEPS, radius(victim))):
        if not len(rows):
            break
        low = victim.best_margin.clone() if step == STEPS - LAST else low
        found, ball = victim.gradient(points, rows, loss), victim.ball[rows]
        moved = ball.project(points + size * steepest(found.gradient, victim.threat.norm))
        before, points = points, ball.project(points + MOMENTUM * (moved - points) + (1 - MOMENTUM) * (points - before))
        keep = ~victim.broken[rows]
        rows, points, before = rows[keep], points[keep], before[keep]
    if len(rows):
        victim.margins(points, rows)
    return low


def _start(objects: Objects, hold: Hold, threat: ThreatModel) -> Tensor:
    """Random points of the balls; at eps = 0 of the least ones, since an image beside itself tells nothing."""
    around = threat if threat.eps > 0 else ThreatModel("linf", LEAST, "1/255")
    return Ball(hold.x, around).random(Draws(objects.cell.seed, hold.ids), "sentinel")


def _gradients(objects: Objects, hold: Hold, threat: ThreatModel) -> tuple[dict[str, Tensor], str]:
    """Zero and non-finite gradients at x and at a random start, finite differences there, and why there are none."""
    victim = Victim(objects.net, hold.x, hold.y, threat=threat, width=hold.width)
    rows = torch.arange(len(hold.y), device=hold.x.device)
    start = _start(objects, hold, threat)
    try:
        outputs = victim.gradient(hold.x, rows, "ce").outputs
        victim.gradient(start, rows, "ce")
        draws = Draws(objects.cell.seed, hold.ids)
        measured = slopes(victim, start, draws) | geometry(victim, start, rows, draws, "sentinel.start")
    except NoGradientError as error:
        nothing = torch.zeros_like(hold.y, dtype=torch.float32)
        measured = dict.fromkeys(("slope", "slope_claimed", "hidden"), nothing)
        measured |= dict.fromkeys(("gradient_error", "evenness", "mass_error", "mass_noise", "steep"), nothing + 1)
        flags = {"zero_gradient": nothing < 1, "nonfinite_gradient": nothing > 0, "gradient_dependent": nothing > 0}
        return {**flags, **measured}, str(error)
    flags = {
        "zero_gradient": victim.zero_gradients > 0,
        "nonfinite_gradient": victim.nonfinite_gradients > 0,
        "gradient_dependent": differ(outputs, predict(objects.net, hold.x, width=hold.width)),
    }
    return {**flags, **measured}, ""


def _outputs(objects: Objects, hold: Hold, threat: ThreatModel) -> dict[str, Tensor]:
    """Broken without bounds, random, probabilities instead of logits, and dependent on the batch, bool (N,) each."""
    first, *again = (predict(objects.net, hold.x, width=hold.width) for _ in range(FORWARDS))
    unbounded = ThreatModel.parse("linf(1)")
    # At eps 0 the ball holds nothing but the image, and what does not change there says nothing about sums.
    elsewhere = predict(objects.net, _start(objects, hold, threat if threat.eps else unbounded), width=hold.width)
    company = second_look(objects.net, hold.x, width=hold.width)
    positive = torch.minimum(first, elsewhere).amin(1) >= -1e-5
    spread = (first.amax(1) - first.amin(1)).clamp_max(first.sum(1).abs())
    same_sum = (first.double().sum(1) - elsewhere.double().sum(1)).abs() <= 1e-5 * spread
    random = torch.stack([differ(first, other) for other in again]).any(0)
    broken = torch.zeros_like(random)
    for i in range(TRIES if bool(random.any()) else 1):
        _, rows = attack_hold(objects.net, hold, attack=UNBOUNDED, threat=unbounded, seed=objects.cell.seed + i)
        broken |= torch.tensor([row["score_adv"] < 1 for row in rows], device=hold.x.device)
        if bool(broken.all()):
            break
    return {
        "unbounded_broken": broken,
        "probabilities": positive & same_sum,
        "random": random,
        "batch_dependent": differ(first, company) & ~random,
    }
