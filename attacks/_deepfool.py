"""DeepFool: steps to the nearest linearised boundary among the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, require_positive, size
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

_STABLE = 1e-4


@facts(version=1, norms=("linf", "l2"), access="white", randomness="none")
def deepfool(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int | None = 10,
) -> Tensor:
    """The first success of DeepFool per sample, (N, ...) in [0, 1], or the best point in the ball.

    A sample leaves at its first success, since the method ends there. Points are cut to the box.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2; with eps ``inf`` the smallest distance is what is sought.
        seeds: Unused: nothing is random.
        steps: Most steps.
        overshoot: Relative length added to the sum of the steps.
        candidates: How many of the classes with the highest logits are looked at, the label included; None is all.

    Raises:
        ConfigError: Fewer than one step or two candidates, or a negative overshoot.

    Source: Moosavi-Dezfooli et al., CVPR 2016, algorithm 2 and section 3.3; 1e-4 per step as in their code.
    """
    require_positive(steps=steps, candidates_beyond_one=2 if candidates is None else candidates - 1)
    require_positive(one_plus_overshoot=1 + min(overshoot, 0.0))
    victim = as_victim(victim, x, y, threat)
    closest, rows = Closest(victim), torch.arange(len(x), device=x.device)
    rows = rows[closest.wanted(rows, stop=False)]
    if not len(rows):
        return closest.result()
    logits = victim.logits(x[rows], rows)
    closest.book(x[rows], rows, victim.task.margin(logits, y[rows]) <= 0)
    others = _rivals(logits, y[rows], candidates)
    classes = torch.zeros(len(x), others.shape[1], dtype=torch.int64, device=x.device)
    classes[rows] = others
    total, points = torch.zeros_like(x, dtype=torch.float64), x.clone()
    rows = rows[closest.wanted(rows, stop=False)]
    for _ in range(steps):
        if not len(rows):
            break
        outputs, gradients = victim.class_gradients(points[rows], rows, classes[rows])
        success = victim.task.margin(outputs, y[rows]) <= 0
        closest.book(points[rows], rows, success)
        rows, outputs, gradients = rows[~success], outputs[~success], gradients[~success]
        gaps = outputs.gather(1, classes[rows]) - outputs.gather(1, y[rows][:, None])
        total[rows] += _step(gaps, gradients, threat.norm)
        points[rows] = (x[rows].double() + (1 + overshoot) * total[rows]).clamp(0, 1).to(x.dtype)
    if len(rows):
        closest.book(points[rows], rows, victim.margins(points[rows], rows) <= 0)
    return closest.result()


def _rivals(logits: Tensor, y: Tensor, candidates: int | None) -> Tensor:
    """The classes with the highest logits other than the label, int64 (N, T)."""
    count = logits.shape[1] - 1 if candidates is None else min(candidates, logits.shape[1]) - 1
    masked = logits.scatter(1, y[:, None], -torch.inf)
    return masked.topk(count, dim=1).indices


def _step(gaps: Tensor, gradients: Tensor, norm: str) -> Tensor:
    """The shortest step that reaches a linearised boundary, (n, ...) float64; none where no class has a slope."""
    dual = "l1" if norm == "linf" else "l2"
    steepness = size(gradients.flatten(0, 1), dual).view(gaps.shape)
    far = gaps.double().abs() / steepness
    far = torch.where(far.isfinite(), far, math.inf)
    reach, best = far.min(1)
    pick = torch.arange(len(gaps), device=gaps.device)
    usable = per_sample(reach.isfinite(), gradients[:, 0])
    gradient = torch.where(usable, gradients[pick, best].double(), 0.0)
    steep = per_sample(torch.where(reach.isfinite(), steepness[pick, best], 1.0), gradient)
    length = per_sample(torch.where(reach.isfinite(), reach + _STABLE, 0.0), gradient)
    return length * (gradient.sign() if norm == "linf" else gradient / steep)
