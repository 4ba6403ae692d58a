"""Cheap checks of whether gradients, outputs and attacks on a model can be believed at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robench.errors import NoGradientError
from robench.inference import predict, second_look, untouched
from robench.ops.norms import Ball, per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.scenarios.evasion import attack_hold
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import ThreatModel
from robench.victim import Victim

UNBOUNDED = "pgd(steps=20, loss='margin', step_size=0.1)"
"""Attack that must break every image when the whole box is allowed."""


RANDOM_REACH, GRADIENT_REACH = 1e-2, 5e-4
"""Root mean square change of a pixel in a finite difference: along random directions, where logits change little, long
enough to step over the plateaus of 8-bit activations; along the gradient short enough for curved networks."""


@facts(version=2)
def sentinel(objects: Objects, *, threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample: what its gradients are worth, what kind of outputs it gets, and whether eps = 1 breaks it.

    Source: Croce & Hein, ICML 2020 (checks of AutoAttack); Pintor et al., NeurIPS 2022 (I1, I6); Athalye et al.,
    ICML 2018, section 3 (shattered gradients are those that finite differences contradict).
    """
    parsed = ThreatModel.parse(threat)

    def measure(hold: Hold) -> list[dict[str, Any]]:
        found, error = _gradients(objects, hold, parsed)
        status = "failed" if error else "ok"
        told = {"status": status, "error": error, **found, **_outputs(objects, hold, parsed)}
        return columns(sample=hold.ids, label=hold.y, **told)

    with untouched(objects.net):
        return walk(objects.holds(), measure)


def _start(objects: Objects, hold: Hold, threat: ThreatModel) -> Tensor:
    return Ball(hold.x, threat).random(Draws(objects.cell.seed, hold.ids), "sentinel")


def _gradients(objects: Objects, hold: Hold, threat: ThreatModel) -> tuple[dict[str, Tensor], str]:
    """Zero and non-finite gradients at x and at a random start, finite differences there, and why there are none."""
    victim = Victim(objects.net, hold.x, hold.y, threat=threat, width=hold.width)
    rows = torch.arange(len(hold.y), device=hold.x.device)
    start = _start(objects, hold, threat)
    try:
        for points in (hold.x, start):
            victim.gradient(points, rows, "ce")
        slopes = _slopes(victim, start, Draws(objects.cell.seed, hold.ids))
    except NoGradientError as error:
        nothing = torch.zeros_like(hold.y, dtype=torch.float32)
        slopes = {"gradient_error": nothing + 1, "slope": nothing, "slope_claimed": nothing}
        return {"zero_gradient": nothing < 1, "nonfinite_gradient": nothing > 0, **slopes}, str(error)
    return {"zero_gradient": victim.zero_gradients > 0, "nonfinite_gradient": victim.nonfinite_gradients > 0, **slopes}, ""


def _slopes(victim: Victim, points: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Slopes of the margin as differences measure them and as the gradient claims them, along three directions.

    Returns:
        ``gradient_error``, the relative error in [0, 1] over the gradient's and two random directions, and ``slope`` and
        ``slope_claimed`` along the first random one, (N,) each.
    """
    size = points[0].numel() ** 0.5
    rows = torch.arange(len(points), device=points.device)
    gradient = victim.gradient(points, rows, "margin").gradient
    inside = (points > 0.04) & (points < 0.96)
    randoms = [draws.normal("sentinel.slope", tuple(points.shape[1:]), step=i).to(points) for i in range(2)]
    measured, claimed = [], []
    for direction, reach in ((randoms[0], RANDOM_REACH), (randoms[1], RANDOM_REACH), (gradient, GRADIENT_REACH)):
        unit, length = direction * inside, reach * size
        unit = unit / per_sample(unit.flatten(1).norm(dim=1).clamp_min(torch.finfo(unit.dtype).tiny), unit)
        ahead, behind = (victim.margins(points + sign * length * unit, rows) for sign in (1, -1))
        measured.append((behind - ahead) / (2 * length))
        claimed.append((gradient * unit).flatten(1).sum(1))
    a, b = torch.stack(measured).double().nan_to_num(), torch.stack(claimed).double().nan_to_num()
    total = (a.norm(dim=0) + b.norm(dim=0)).clamp_min(1e-12)
    return {"gradient_error": (a - b).norm(dim=0) / total, "slope": a[0], "slope_claimed": b[0]}


def _outputs(objects: Objects, hold: Hold, threat: ThreatModel) -> dict[str, Tensor]:
    """Broken without bounds, random, probabilities instead of logits, and dependent on the batch, bool (N,) each."""
    first, again = (predict(objects.net, hold.x, width=hold.width) for _ in range(2))
    elsewhere = predict(objects.net, _start(objects, hold, threat), width=hold.width)
    company = second_look(objects.net, hold.x, width=hold.width)
    positive = torch.minimum(first, elsewhere).amin(1) >= -1e-5
    same_sum = (first.sum(1) - elsewhere.sum(1)).abs() <= 1e-5 * first.sum(1).abs()
    slack = 1e-4 * first.norm(dim=1).clamp_min(1e-6)
    random = (first - again).abs().amax(1) > slack
    unbounded = ThreatModel.parse("linf(1)")
    _, rows = attack_hold(objects.net, hold, attack=UNBOUNDED, threat=unbounded, seed=objects.cell.seed)
    return {
        "unbounded_broken": torch.tensor([row["score_adv"] < 1 for row in rows], device=hold.x.device),
        "probabilities": positive & same_sum,
        "random": random,
        "batch_dependent": ((first - company).abs().amax(1) > slack) & ~random,
    }
