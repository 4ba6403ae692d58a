"""Named sequences of stages with fixed budgets, so that two numbers with one name can be compared."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robench.attacks._apgd import apgd, apgd_t
from robench.attacks._cascade import diversified, frontier, ladder, polish, sieve
from robench.attacks._engine import Attack, Engine
from robench.attacks._fab import fab_t
from robench.attacks._square import square
from robench.ops.random import Draws
from robench.registry import facts
from robench.victim import Victim

HEDGE, QUERIES = 64, 500
"""Survivors, nearest and random ones, that meet a short gradient-free search, and its queries."""


def plain(function: Callable[..., Tensor], **params: object) -> Attack:
    """An attack of the table as a stage."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        part = victim.part(rows)
        function(part, part.x, part.y, threat=victim.threat, seeds=draws[rows], **params)
        victim.absorb(part)

    return attack


@facts(version=1, norms=("linf", "l2", "l1"), access="all", randomness="per_sample", protocol=True)
def autoattack_standard(engine: Engine) -> None:
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square with AutoAttack's own budgets.

    Source: Croce & Hein, ICML 2020, section 5: 100 iterations, 9 targets, 5000 queries.
    """
    engine.look()
    _complete(engine)


def _complete(engine: Engine) -> None:
    engine.run("apgd-ce", plain(apgd, loss="ce", steps=100))
    engine.run("apgd-t", plain(apgd_t, steps=100, targets=9))
    engine.run("fab-t", plain(fab_t, steps=100, targets=9))
    engine.run("square", plain(square, queries=5000), access="score")


@facts(version=1, norms=("linf", "l2"), access="all", randomness="per_sample", protocol=True)
def robench_standard(engine: Engine) -> None:
    """The cascade: dear stages only where they can still win, a gradient-free hedge, and AutoAttack where that wins."""
    engine.look()
    engine.run("sieve", sieve())
    engine.rank()
    for turn in range(6):
        engine.run(f"diversified-{turn}", diversified(turn))
    engine.run("scaled-ce", polish("scaled_ce"))
    engine.run("probability-margin", polish("probability_margin"), engine.closest(0.5))
    engine.run("ladder-1", ladder(4, diverse=True), engine.closest(0.3))
    engine.run("ladder-2", ladder(9, diverse=False), engine.closest(0.1, least=16))
    engine.run("frontier", frontier(20), engine.closest(0.05, least=8))
    _hedge(engine)


def _hedge(engine: Engine) -> None:
    """A short search without gradients on near and on random survivors; if it breaks any, everything is searched."""
    chosen = engine.closest(0.0, least=HEDGE)
    broken = engine.run("square-near", plain(square, queries=QUERIES), chosen, access="score")
    others = engine.sample(HEDGE, "hedge")
    broken += engine.run("square-random", plain(square, queries=QUERIES), others, access="score")
    if broken:
        _complete(engine)
