"""Everything that an adversary of a compressed model has: its gradients or its twin's, its parent, and its outputs."""

from __future__ import annotations

from robench.attacks._apgd import apgd
from robench.attacks._engine import Attack, Engine
from robench.attacks._escalation import Still, begin
from robench.attacks._protocols import anew, dense, plain, randomised, require_gradient
from robench.attacks._rand import once
from robench.attacks._square import square
from robench.attacks._transfer import Relentless
from robench.errors import AttackError, must
from robench.ops.random import Draws
from robench.registry import facts
from robench.victim import Victim

LOSSES = ("ce", "margin")
"""What Auto-PGD climbs on the parent."""

STEPS, QUERIES = 50, 1000
"""Steps of each Auto-PGD on the parent; queries without gradients for every survivor."""


@facts(version=3, norms=("linf", "l2"), access="all", randomness="per_sample", protocol=True, surrogate=True)
def compressed_union(engine: Engine, *, source: str = "") -> None:
    """Per image the worst of three: gradients (its own, else its twin's), transfer from the parent, and Square.

    The gradient stages are those of ``robench-standard``. Where the model itself has no gradient they take that of the
    substitute that it declares, an int8 model's that of its fake-quantised twin; points, margins and successes are
    always the model's own. Every survivor then meets images that Auto-PGD finds on the parent, and a gradient-free search.
    A model whose outputs are random meets all three under many draws, the gradient stages being ``autoattack-rand``'s.

    Args:
        engine: The samples and the compressed model; ``engine.surrogate`` is the float parent.
        source: Name of the parent, for the tables.

    Raises:
        AttackError: No parent was given.
        NoGradientError: Neither the model nor a substitute has a gradient; everything else was done.

    Source: Papernot et al., 2016 (transfer); Athalye et al., ICML 2018, section 4.1 (BPDA); Andriushchenko et al., ECCV
    2020 (Square).
    """
    if engine.surrogate is None:
        raise AttackError(must("the parent", "a model", None, "name it, e.g. compressed-union(source='digits-standard')"))
    flags = begin(engine)
    if flags.random:
        randomised(engine, flags, _drawn)
        return
    if not flags.missing:
        dense(engine)
    for found in flags.sources:
        with engine.searching(found.model, f"{found.name}-"):
            dense(engine)
    _without_gradient(engine, anew(plain(square, queries=QUERIES), 3))
    require_gradient(flags)


def _drawn(engine: Engine) -> None:
    """What needs no gradient, on a model whose finds must hold under many draws."""
    _without_gradient(engine, once(square, stage=3, queries=QUERIES), prefix="eot-")


def _without_gradient(engine: Engine, search: Attack, *, prefix: str = "") -> None:
    """Transfer from the parent, then a search by queries, on every survivor."""
    for number, loss in enumerate(LOSSES):
        engine.run(f"{prefix}transfer-{loss}", anew(carried(engine, loss, STEPS), 5 + number), access="transfer")
    engine.run(f"{prefix}square", search, access="score")


def carried(engine: Engine, loss: str, steps: int) -> Attack:
    """Auto-PGD on the surrogate, each sample to its last step, and the lowest-margin points tried on the model."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        told = {"threat": victim.threat, "task": victim.task, "width": victim.width}
        parent = Still(engine.surrogate, draws.seed) if victim.samples else engine.surrogate  # type: ignore[arg-type]
        model = Relentless(parent, victim.x[rows], victim.y[rows], **told)  # type: ignore[arg-type]
        apgd(model, model.x, model.y, threat=victim.threat, seeds=draws[rows], steps=steps, loss=loss)
        victim.forwards[rows] += model.forwards
        victim.backwards[rows] += model.backwards
        if len(rows):
            victim.misclassified(model.result(), rows)

    return attack
