"""Cheap checks of whether gradients, outputs and attacks on a model can be believed at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks._cascade import radius
from robench.attacks._climb import cosine
from robench.bpda import differentiable
from robench.errors import NoGradientError
from robench.inference import predict, second_look, untouched
from robench.judge import judge
from robench.ops.norms import Ball, steepest
from robench.ops.random import Draws
from robench.probing import FORWARDS, differ, slopes
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
"""Norms whose steepest direction the ascents take."""


@facts(version=4)
def sentinel(objects: Objects, *, threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample: what its gradients are worth, what kind of outputs it gets, and whether eps = 1 breaks it.

    On ``WATCHED`` samples short ascents tell whether two losses agree, a larger eps breaks more, and the search has ended.

    Source: Croce & Hein, ICML 2020 (checks of AutoAttack); Pintor et al., NeurIPS 2022 (I1, I3, I4, I6); Athalye et
    al., ICML 2018, section 3 (shattered gradients are those that finite differences contradict).

    A model that says it has no gradient is looked at through its substitute, and the rows say so: ``gradient`` is then
    ``substitute``, and ``twin_agrees`` whether model and substitute predict the same at the image and at a random point.
    """
    parsed, original = ThreatModel.parse(threat), objects.net
    watched = _watched(objects)
    net, substituted = differentiable(original)
    objects = replace(objects, model=replace(objects.model, net=net)) if substituted else objects

    def measure(hold: Hold) -> list[dict[str, Any]]:
        found, error = _gradients(objects, hold, parsed)
        if substituted:
            found |= _substitute(original, hold, _start(objects, hold, parsed), error)
        outputs = _outputs(objects, hold, parsed)
        found["gradient_dependent"] &= ~outputs["random"]
        told = {"status": "failed" if error else "ok", "error": error, "threat": str(parsed), **found, **outputs}
        ascents = _ascents(objects, hold, parsed, hold.ids[:0] if error else watched)
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
        ``broken_margin`` and ``broken_ce`` (by either loss at eps), ``broken_2x`` and ``broken_4x`` (by the margin at
        multiples of eps), 0 or 1; ``rising``, the share of the whole gain in margin that came in the last steps, in
        [0, 1], of unbroken samples; ``silent``, 1 where a visited point of the ball broke a sample and the judge does
        not confirm it.
    """
    names = ("broken_margin", "broken_ce", "broken_2x", "broken_4x", "rising", "silent")
    told = {name: torch.full((len(hold.y),), torch.nan, device=hold.x.device) for name in names}
    chosen = torch.isin(hold.ids, watched).nonzero()[:, 0]
    if not len(chosen) or threat.norm not in ASCENDED or threat.eps == 0:
        return told
    part = Hold(hold.x[chosen], hold.y[chosen], hold.ids[chosen], hold.width)
    draws = Draws(objects.cell.seed, part.ids)
    told["broken_margin"][chosen], told["rising"][chosen], silent = _ascend(objects.net, part, threat, draws, "margin")
    told["broken_ce"][chosen], _, also = _ascend(objects.net, part, threat, draws, "ce")
    told["silent"][chosen] = torch.maximum(silent, also)
    for factor in (2, 4):
        wide = ThreatModel(threat.norm, factor * threat.eps, f"{factor} * {threat.text}")
        told[f"broken_{factor}x"][chosen] = _ascend(objects.net, part, wide, draws, "margin")[0]
    return told


def _ascend(net: nn.Module, hold: Hold, threat: ThreatModel, draws: Draws, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Whether an ascent of the loss broke each sample, its late gain, and whether it lost a success, float (N,) each."""
    victim = Victim(net, hold.x, hold.y, threat=threat, width=hold.width)
    clean = victim.margins(hold.x, victim.alive())
    rows = victim.alive()
    points = before = victim.ball[rows].random(draws[rows], "sentinel.ascent")
    low = victim.best_margin
    for step, size in enumerate(cosine(STEPS, radius(victim))):
        if not len(rows):
            break
        low = victim.best_margin.clone() if step == STEPS - LAST else low
        found, ball = victim.gradient(points, rows, loss), victim.ball[rows]
        moved = ball.project(points + size * steepest(found.gradient, threat.norm))
        before, points = points, ball.project(points + MOMENTUM * (moved - points) + (1 - MOMENTUM) * (points - before))
        keep = ~victim.broken[rows]
        rows, points, before = rows[keep], points[keep], before[keep]
    if len(rows):
        victim.margins(points, rows)
    gain = (low - victim.best_margin) / (clean - victim.best_margin).clamp_min(torch.finfo(clean.dtype).tiny)
    broken = judge(net, hold.x, hold.y, x_adv=victim.result(), threat=threat, width=hold.width).broken()
    rising = gain.clamp(0, 1).masked_fill(victim.broken, torch.nan)
    return broken.float(), rising, (victim.broken & ~broken).float()


def _start(objects: Objects, hold: Hold, threat: ThreatModel) -> Tensor:
    return Ball(hold.x, threat).random(Draws(objects.cell.seed, hold.ids), "sentinel")


def _gradients(objects: Objects, hold: Hold, threat: ThreatModel) -> tuple[dict[str, Tensor], str]:
    """Zero and non-finite gradients at x and at a random start, finite differences there, and why there are none."""
    victim = Victim(objects.net, hold.x, hold.y, threat=threat, width=hold.width)
    rows = torch.arange(len(hold.y), device=hold.x.device)
    start = _start(objects, hold, threat)
    try:
        outputs = victim.gradient(hold.x, rows, "ce").outputs
        victim.gradient(start, rows, "ce")
        measured = slopes(victim, start, Draws(objects.cell.seed, hold.ids))
    except NoGradientError as error:
        nothing = torch.zeros_like(hold.y, dtype=torch.float32)
        measured = dict.fromkeys(("slope", "slope_claimed", "hidden"), nothing)
        measured |= {"gradient_error": nothing + 1, "evenness": nothing + 1}
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
    _, rows = attack_hold(objects.net, hold, attack=UNBOUNDED, threat=unbounded, seed=objects.cell.seed)
    return {
        "unbounded_broken": torch.tensor([row["score_adv"] < 1 for row in rows], device=hold.x.device),
        "probabilities": positive & same_sum,
        "random": random,
        "batch_dependent": differ(first, company) & ~random,
    }
