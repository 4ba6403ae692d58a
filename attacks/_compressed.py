"""Everything that an adversary of a compressed model has: its gradients or its twin's, its parent, and its outputs."""

from __future__ import annotations

from robench.attacks._apgd import apgd
from robench.attacks._engine import Attack, Engine
from robench.attacks._escalation import begin
from robench.attacks._protocols import _dense, _randomised, _require_gradient, anew, plain
from robench.attacks._square import square
from robench.attacks._transfer import Relentless
from robench.errors import AttackError, must
from robench.ops.random import Draws
from robench.registry import facts
from robench.victim import Victim

LOSSES = ("ce", "margin")
"""What Auto-PGD climbs on the parent."""


@facts(version=1, norms=("linf", "l2"), access="all", randomness="per_sample", protocol=True, surrogate=True)
def compressed_union(engine: Engine, *, source: str = "", queries: int = 1000, steps: int = 50) -> None:
    """Per image the worst of three: gradients (its own, else its twin's), transfer from the parent, and Square.

    The gradient stages are those of ``robench-standard``. Where the model itself has no gradient they take that of the
    substitute that it declares, an int8 model's that of its fake-quantised twin; points, margins and successes are
    always the model's own. Every survivor then meets images that Auto-PGD finds on the parent, and a gradient-free search.

    Args:
        engine: The samples and the compressed model; ``engine.surrogate`` is the float parent.
        source: Name of the parent, for the tables.
        queries: Of the gradient-free search, for every survivor.
        steps: Of each Auto-PGD on the parent.

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
        _randomised(engine, flags)
        return
    if not flags.missing:
        _dense(engine)
    for found in flags.sources:
        with engine.searching(found.model, f"{found.name}-"):
            _dense(engine)
    for number, loss in enumerate(LOSSES):
        engine.run(f"transfer-{loss}", anew(carried(engine, loss, steps), 5 + number), access="transfer")
    engine.run("square", anew(plain(square, queries=queries), 3), access="score")
    _require_gradient(flags)


def carried(engine: Engine, loss: str, steps: int) -> Attack:
    """Auto-PGD on the surrogate, each sample to its last step, and the lowest-margin points tried on the model."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        told = {"threat": victim.threat, "task": victim.task, "width": victim.width}
        model = Relentless(engine.surrogate, victim.x[rows], victim.y[rows], **told)  # type: ignore[arg-type]
        apgd(model, model.x, model.y, threat=victim.threat, seeds=draws[rows], steps=steps, loss=loss)
        victim.forwards[rows] += model.forwards
        victim.backwards[rows] += model.backwards
        if len(rows):
            victim.misclassified(model.result(), rows)

    return attack
