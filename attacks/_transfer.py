"""Adversarial images of a surrogate, tried on the victim."""

from __future__ import annotations

from torch import Tensor, nn

from robench.attacks._pgd import pgd
from robench.errors import AttackError, must
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("linf", "l2"), access="transfer", randomness="per_sample", surrogate=True)
def transfer(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    surrogate: nn.Module | None = None,
    steps: int = 20,
    loss: str = "margin",
    source: str = "",
) -> Tensor:
    """The lowest-margin points that PGD finds on a surrogate, tried on the victim, (N, ...) in [0, 1].

    The surrogate is attacked to the full number of steps: an image that only just crosses the surrogate's own
    boundary transfers poorly.

    Args:
        victim: The victim or a plain module; only its decisions are asked.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness.
        surrogate: Another model on the same images, given by the runner.
        steps: PGD steps on the surrogate.
        loss: Loss on the surrogate.
        source: Name of the surrogate, for the tables.

    Raises:
        AttackError: No surrogate was given.

    Source: Papernot et al., 2016 (transferability); Dong et al., CVPR 2018 (iterative surrogates).
    """
    if surrogate is None:
        raise AttackError(must("the surrogate", "a model", None, "name one, e.g. transfer(source='digits-standard')"))
    victim = as_victim(victim, x, y, threat)
    model = Relentless(surrogate, x, y, threat=threat, task=victim.task, width=victim.width)
    pgd(model, x, y, threat=threat, seeds=seeds, steps=steps, loss=loss)
    rows = victim.alive()
    if len(rows):
        victim.misclassified(model.result()[rows], rows)
    return victim.result()


class Relentless(Victim):
    """A victim that never counts as broken: the lowest-margin point is sought to the last step."""

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor) -> None:
        super()._record(points, rows, margin)
        self.broken[:] = False
