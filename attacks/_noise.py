"""Random points of the ball: the floor that every other attack must beat."""

from __future__ import annotations

from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("linf", "l2", "l1", "l0"), access="noise", randomness="per_sample", targeted=True)
def noise(victim: Victim | nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, seeds: Draws, draws: int = 20) -> Tensor:
    """The worst of ``draws`` random points of the ball per sample, (N, ...) in [0, 1].

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: Norm and eps.
        seeds: Per-sample randomness.
        draws: Points tried per sample; a sample leaves when one breaks it.

    Raises:
        ConfigError: Fewer than one draw.
    """
    if draws < 1:
        raise ConfigError(must("draws of noise", "at least 1", draws, "without a draw nothing is attacked"))
    victim = as_victim(victim, x, y, threat)
    for step in range(draws):
        rows = victim.alive()
        if not len(rows):
            break
        victim.margins(victim.ball[rows].random(seeds[rows], "noise", step=step), rows)
    return victim.result()
