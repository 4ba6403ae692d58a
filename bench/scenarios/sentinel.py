"""Cheap checks of whether gradients, outputs and attacks on a model can be believed at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robench.errors import NoGradientError
from robench.inference import predict, untouched
from robench.ops.norms import Ball
from robench.ops.random import Draws
from robench.registry import facts
from robench.scenarios.evasion import attack_hold
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import ThreatModel
from robench.victim import Victim

UNBOUNDED = "pgd(steps=20, loss='margin', step_size=0.1)"
"""Attack that must break every image when the whole box is allowed."""


@facts(version=1)
def sentinel(objects: Objects, *, threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample: zero or non-finite gradients, randomness, probabilities, and whether eps = 1 breaks it.

    Source: Croce & Hein, ICML 2020 (checks of AutoAttack); Pintor et al., NeurIPS 2022 (I1, I6).
    """

    def measure(hold: Hold) -> list[dict[str, Any]]:
        zero, nonfinite, error = _gradients(objects, hold, ThreatModel.parse(threat))
        unbounded, random, probabilities, dependent = _outputs(objects, hold)
        return columns(
            sample=hold.ids,
            label=hold.y,
            status="failed" if error else "ok",
            error=error,
            zero_gradient=zero,
            nonfinite_gradient=nonfinite,
            unbounded_broken=unbounded,
            probabilities=probabilities,
            random=random,
            batch_dependent=dependent,
        )

    with untouched(objects.net):
        return walk(objects.holds(), measure)


def _gradients(objects: Objects, hold: Hold, threat: ThreatModel) -> tuple[Tensor, Tensor, str]:
    """Zero and non-finite gradients of the cross-entropy at x and at a random start, and why there were none."""
    victim = Victim(objects.net, hold.x, hold.y, threat=threat, width=hold.width)
    rows = torch.arange(len(hold.y), device=hold.x.device)
    start = Ball(hold.x, threat).random(Draws(objects.cell.seed, hold.ids), "sentinel")
    try:
        for points in (hold.x, start):
            victim.gradient(points, rows, "ce")
    except NoGradientError as error:
        return torch.ones_like(victim.broken), torch.zeros_like(victim.broken), str(error)
    return victim.zero_gradients > 0, victim.nonfinite_gradients > 0, ""


def _outputs(objects: Objects, hold: Hold) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Broken without bounds, random, probabilities instead of logits, and dependent on the batch, bool (N,) each."""
    first, again = (predict(objects.net, hold.x, width=hold.width) for _ in range(2))
    flipped = predict(objects.net, hold.x.flip(0), width=hold.width).flip(0)
    sums = first.sum(1)
    probabilities = (first >= -1e-5).all(1) & (first <= 1 + 1e-5).all(1) & ((sums - 1).abs() < 1e-5)
    slack = 1e-4 * first.norm(dim=1).clamp_min(1e-6)
    random = (first - again).abs().amax(1) > slack
    dependent = ((first - flipped).abs().amax(1) > slack) & ~random
    _, rows = attack_hold(objects.net, hold, attack=UNBOUNDED, threat=ThreatModel.parse("linf(1)"), seed=objects.cell.seed)
    broken = torch.tensor([row["score_adv"] < 1 for row in rows], device=hold.x.device)
    return broken, random, probabilities, dependent
