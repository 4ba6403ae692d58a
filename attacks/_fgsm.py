"""One signed gradient step."""

from __future__ import annotations

from torch import Tensor, nn

from robench.ops.norms import steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("linf", "l2"), access="white", randomness="none", targeted=True)
def fgsm(victim: Victim | nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, seeds: Draws, loss: str = "ce") -> Tensor:
    """The clean image moved by eps along the steepest ascent of the loss, (N, ...) in [0, 1].

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Unused; part of every attack's signature.
        loss: ``ce`` or ``margin``.

    Source: Goodfellow et al., ICLR 2015, section 4; the l2 form as in Miyato et al., ICLR 2017.
    """
    victim = as_victim(victim, x, y, threat)
    rows = victim.alive()
    if not len(rows):
        return victim.result()
    found = victim.gradient(x[rows], rows, loss)
    keep = ~victim.broken[rows]
    rows, gradient = rows[keep], found.gradient[keep]
    if len(rows):
        reach = min(threat.eps, float(x[0].numel()))
        victim.margins(victim.ball[rows].project(x[rows] + reach * steepest(gradient, threat.norm)), rows)
    return victim.result()
