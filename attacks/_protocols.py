"""Named sequences of stages with fixed budgets, so that two numbers with one name can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robench.attacks._apgd import apgd, apgd_t
from robench.attacks._cascade import diversified, ladder, polish, shrinking, sieve
from robench.attacks._ddn import ddn
from robench.attacks._deepfool import deepfool
from robench.attacks._ead import ead
from robench.attacks._engine import Attack, Engine
from robench.attacks._escalation import Flags, Smoothed, begin, substitutes, survey
from robench.attacks._fab import fab, fab_t
from robench.attacks._fmn import fmn
from robench.attacks._minimal import Closest
from robench.attacks._pgd_l0 import pgd_l0
from robench.attacks._rand import drawing, once, second_loss
from robench.attacks._sigma_zero import sigma_zero
from robench.attacks._sparse_rs import sparse_rs
from robench.attacks._square import square
from robench.attacks._transfer import transfer
from robench.errors import NoGradientError
from robench.judge import judge
from robench.ops.norms import distance, per_sample
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.thresholds import DEFAULTS, UNENDED
from robench.victim import BOOKS, Victim

NEAR, RANDOM, QUERIES = 16, 48, 250
"""Survivors, the nearest and random others, that meet a short gradient-free search, one full batch; and its queries."""

SQUARE_BROKE = "square broke survivors"
OTHERS_BROKE = "another kind of search broke survivors of the ascents"

MOST_OUTSIDE, PAYS = 16, 0.02
"""Ascents from wider balls that a survivor meets, and the share of survivors that each of them must break to go on."""
_BOUNDARY: dict[str, tuple[dict[str, Any], ...]] = {
    "linf": ({"steps": 20}, {"steps": 50}, {"steps": 100}),
    "l2": ({"steps": 30, "shortcut": 0.5}, {"steps": 30, "shortcut": 0.5}, {"steps": 50, "shortcut": 0.25}),
    "l1": ({"steps": 50, "shortcut": 0.5}, {"steps": 50, "shortcut": 0.5}, {"steps": 100, "shortcut": 0.25}),
}
"""FAB-T on some survivors, on all, and on the nearest in the end, where it takes another way back to the boundary.

Chosen on ``kw_mnist_small_0.3`` at l2(1.0), ``kw_mnist_0.1`` at l2(1.5) and l1(5): see docs/performance.md. Flat regions
were met in l2 and l1 only.
"""
TURNS = 12
"""Diversified turns that a survivor meets at most in linf and l2; dense() ends before where they break nothing. Not tuned:
it stands since the first rounds (7 + 10 steps), while steps and losses of a turn were measured (docs/performance.md)."""

HALF, THIRD, TENTH = 0.5, 0.3, 0.1
"""Shares of the survivors, the nearest to the boundary, that a costly stage meets: further turns and the long FAB-T (half),
targeted Auto-PGD and FAB of l1 and of deep (0.3), the ladder and the last restarts of dense() (a tenth). Most of them go
outwards from there as long as they break any, so that a share decides about time more than about finds. Not tuned."""

MOST_SPARSE, IDLE = 32, 3
"""Short runs in l1 that a survivor meets, and how many of them may fail to pay in a row."""


def plain(function: Callable[..., Tensor], **params: object) -> Attack:
    """An attack of the table as a stage."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        part = victim.part(rows)
        function(part, part.x, part.y, threat=victim.threat, seeds=draws[rows], **params)
        victim.absorb(part)

    return attack


def anew(attack: Attack, number: int) -> Attack:
    """The attack with other draws, so that a longer search does not repeat a shorter one before it."""
    return lambda victim, draws: attack(victim, Draws(draws.seed + (number << 20), draws.ids))


@facts(version=1, norms=("linf", "l2", "l1"), access="all", randomness="per_sample", protocol=True)
def autoattack_standard(engine: Engine) -> None:
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square with AutoAttack's own budgets.

    With fewer than ten classes all other classes are targets; with fewer than four, where the targeted DLR is not
    defined and AutoAttack itself refuses, targeted APGD climbs the margin.

    Source: Croce & Hein, ICML 2020, section 5: 100 iterations, 9 targets, 5000 queries; l1 as in Croce & Hein, ICML
    2021 (Mind the box), section 6: APGD-CE with 5 restarts and APGD-T with 5 targets, radii 3, 2 and 1 times eps.
    """
    engine.look()
    _complete(engine)


@facts(version=1, norms=("linf", "l2"), access="all", randomness="per_sample", protocol=True)
def autoattack_plus(engine: Engine) -> None:
    """APGD-CE, APGD-DLR and untargeted FAB five times each, Square, targeted APGD and targeted FAB: AutoAttack's ``plus``.

    With two classes APGD-DLR, which is not defined there, climbs the margin; targets as in ``autoattack-standard``.

    Source: Croce & Hein, ICML 2020, and the version ``plus`` of the authors' code: 5 restarts, 9 targets, 5000 queries.
    """
    engine.look()
    engine.run("apgd-ce", plain(apgd, loss="ce", steps=100, restarts=5))
    engine.run("apgd-dlr", plain(apgd, loss="dlr" if _classes(engine) > 2 else "margin", steps=100, restarts=5))
    engine.run("fab", plain(fab, steps=100, restarts=5))
    engine.run("square", plain(square, queries=5000), access="score")
    engine.run("apgd-t", plain(apgd_t, steps=100, targets=9))
    engine.run("fab-t", plain(fab_t, steps=100, targets=9))


def _classes(engine: Engine) -> int:
    return 0 if engine.clean is None else engine.clean.shape[1]


def _complete(engine: Engine) -> None:
    """AutoAttack's four attacks on what is left."""
    wide: dict[str, Any] = {"schedule": "large_eps"} if engine.threat.norm == "l1" else {}
    restarts, targets = (5, 5) if wide else (1, 9)
    engine.run("apgd-ce", plain(apgd, loss="ce", steps=100, restarts=restarts, **wide))
    engine.run("apgd-t", plain(apgd_t, steps=100, targets=targets, **wide))
    engine.run("fab-t", plain(fab_t, steps=100, targets=9))
    engine.run("square", plain(square, queries=5000), access="score")


@facts(
    version=7, norms=("linf", "l2", "l1"), access="all", randomness="per_sample", protocol=True, lowers=("linf", "l2"),
)  # fmt: skip
def robench_standard(engine: Engine) -> None:
    """The cascade: dear stages only where they can still win, and a gradient-free hedge that grows where it wins.

    It begins with a probe of a few samples, and escalates by itself where outputs are random or gradients mislead.
    """
    _escalating(engine, _sparse if engine.threat.norm == "l1" else dense, _hedge)


@facts(version=1)
def dense(engine: Engine) -> None:
    """The gradient stages of ``robench-standard`` in linf and l2, which ``compressed-union`` has too."""
    engine.run("sieve", sieve(), copies=1)
    if engine.threat.norm == "l2":
        _from_outside(engine, 0, 1)
    engine.rank()
    _, turn = _round(engine, 0)
    _, turn = _round(engine, turn) if turn < 2 else (0, turn)
    engine.run("ladder-random", ladder(3, 15, diverse=True), copies=3)
    broken = 1
    while turn < TURNS and (broken or turn < 4):
        broken, turn = _round(engine, turn, engine.closest(HALF, least=8))
    if engine.threat.norm == "l2":
        _from_outside(engine, 1, MOST_OUTSIDE)
    _outwards(engine, "ladder-best", ladder(9, 20, diverse=False), share=TENTH, least=7, copies=9)
    _outwards(engine, "frontier", diversified(*range(19, 27), steps=40), share=TENTH, least=8, copies=8)


def _round(engine: Engine, turn: int, rows: Tensor | None = None) -> tuple[int, int]:
    """Diversified turns, as many as one batch has room for: how many samples they broke, and the turn to go on with."""
    rows = engine.survivors() if rows is None else rows
    room = min(4, _together(engine, rows))
    attack = diversified(*range(turn, turn + room))
    return engine.run(f"diversified-{turn}", attack, rows, copies=room), turn + room


def _from_outside(engine: Engine, turn: int, most: int) -> int:
    """Ascents from wider balls on all survivors, up to turn ``most`` or as long as a round pays; the turn to go on with."""
    while turn < most:
        rows = engine.survivors()
        room = min(4, most - turn, _together(engine, rows))
        broken = engine.run(f"shrinking-{turn}", shrinking(*range(turn, turn + room)), rows, copies=room)
        turn += room
        if broken < max(1, PAYS * room * len(rows)):
            break
    return turn


def _together(engine: Engine, rows: Tensor) -> int:
    """How many copies of each of the rows fill one batch."""
    return max(1, engine.width // max(1, len(rows)))


def _escalating(engine: Engine, search: Callable[[Engine], None], hedge: Callable[[Engine], None]) -> None:
    """The search and its hedge; where the probe finds reasons, what else they ask for.

    Random outputs: gradients averaged over draws, finds judged by fresh draws, and nothing else. Gradients that mislead:
    besides the search itself, the same on copies with substitute gradients, their images tried as they are (transfer),
    a search on the smoothed model, and a long search without gradients on all survivors. Survivors that a search
    without gradients breaks: longer ones, and the copies, where there is anything to substitute.

    Raises:
        NoGradientError: Neither the model nor a copy has a gradient; the search without gradients was done.

    Source: Athalye et al., ICML 2018, section 4 (BPDA, EOT); Carlini et al., 2019, section 4; Tramer et al., NeurIPS 2020.
    """
    flags = begin(engine)
    if flags.random:
        randomised(engine, flags)
        return
    if engine.threat.norm != "l1":
        engine.lower()
    if not flags.missing:
        search(engine)
        survey(engine, flags)
    if flags.troubles:
        _elsewhere(engine, flags, search)
    if not flags.missing:
        hedge(engine)
    if not flags.troubles and SQUARE_BROKE in engine.escalated:
        substitutes(engine, flags)
        _elsewhere(engine, flags, search)
    if flags.troubles:
        _without_gradients(engine, flags)
    require_gradient(flags)


def _without_gradients(engine: Engine, flags: Flags) -> None:
    """A search without gradients on all survivors; where gradients were there, a long one only if a shorter one wins."""
    queries = 5000 if flags.missing else 2000
    broken = engine.run("square-all", anew(plain(square, queries=queries), 3), access="score")
    if broken and not flags.missing:
        engine.run("square-all-long", anew(plain(square, queries=5000), 5), access="score")


def _elsewhere(engine: Engine, flags: Flags, search: Callable[[Engine], None]) -> None:
    """Gradient stages on other models than the one attacked, which alone decides what broke."""
    for source in flags.sources:
        with engine.searching(source.model, f"{source.name}-"):
            search(engine)
            engine.run("apgd-ce", plain(apgd, loss="ce", steps=100))
        if engine.threat.norm != "l1":
            stage = plain(transfer, surrogate=source.model, steps=40, loss="ce")
            engine.run(f"transfer-{source.name}", stage, access="transfer")
    if not flags.troubles or (flags.missing and not flags.sources):
        return
    base = flags.sources[-1].model if flags.sources else engine.model
    smooth = Smoothed(base, engine.x.shape[1:], threat=engine.threat, seed=engine.seed).to(engine.device)
    with engine.searching(smooth, "smooth-"):
        _smoothly(engine)


def _smoothly(engine: Engine) -> None:
    """A search on a smoothed model, whose every pass takes several of the model's: it ends if its first run gains nothing.

    On six survivors of a binarised net, padded to a batch, it took 122 of 197 s and broke none.
    """
    before = engine.best_margin.clone()
    first = sieve() if engine.threat.norm != "l1" else plain(apgd, loss="ce", steps=20)
    engine.run("sieve" if engine.threat.norm != "l1" else "apgd-ce", first, copies=1)
    if not bool((engine.best_margin < before).any()):
        return
    for turn in range(2 if engine.threat.norm != "l1" else 0):
        engine.run(f"diversified-{turn}", diversified(turn), copies=1)
    engine.run("apgd-margin", plain(apgd, loss="margin", steps=50), copies=1)


@facts(version=1)
def randomised(engine: Engine, flags: Flags, further: Callable[[Engine], None] | None = None) -> None:
    """The stages of ``autoattack-rand``, on copies with substitute gradients too, from clean images looked at anew.

    ``further`` runs stages of its own under the same draws, in place of a search by queries where gradients mislead.
    """
    engine.forget()
    with drawing(engine) as twin:
        twin.look("eot-clean")
        if not flags.missing:
            _averaged(twin, 1)
        for number, source in enumerate(flags.sources, 1):
            with twin.searching(source.model, f"{source.name}-"):
                _averaged(twin, 10 * number)
        if further:
            further(twin)
        elif flags.troubles:
            twin.run("eot-square", once(square, stage=3, queries=QUERIES), access="score")
    require_gradient(flags)


def _averaged(engine: Engine, stage: int) -> None:
    engine.run("eot-apgd-ce", once(apgd, stage=stage, loss="ce", steps=100))
    engine.run("eot-apgd-dlr", once(apgd, stage=stage + 1, loss=second_loss(engine), steps=100))


def require_gradient(flags: Flags) -> None:
    if flags.missing and not flags.sources:
        raise NoGradientError(flags.missing)


def _outwards(
    engine: Engine, name: str, attack: Attack, *, share: float, least: int, access: str = "white", copies: int = 0
) -> int:
    """How many a dear stage breaks on the nearest share of the survivors and, as long as it breaks any, on the next ones."""
    met, total = torch.zeros(0, dtype=torch.int64), 0
    for turn in range(1, len(engine.x) + 1):
        rows = engine.closest(share, least=least, besides=met)
        if not len(rows):
            break
        met = torch.cat([met, rows])
        broken = engine.run(name if turn == 1 else f"{name}-{turn}", attack, rows, access=access, copies=copies)
        if not broken:
            break
        total += broken
    return total


def _hedge(engine: Engine) -> None:
    """Searches of other kinds on near and on random survivors: what one of them breaks, it is extended for.

    First Auto-PGD and targeted FAB, whose steps follow other rules than the cascade's, then a search without gradients.
    """
    _other_kinds(engine)
    chosen, others = _near_and_random(engine)
    broken = engine.run("square-hedge", plain(square, queries=QUERIES), chosen, access="score")
    engine.escalated += [SQUARE_BROKE] if broken else []
    share = 1.0 if bool(engine.broken[others].any()) else 0.25  # a quarter, not tuned: it goes on outwards while it breaks
    for turn, queries in enumerate((2000, 5000), 1):
        if broken:
            stage = anew(plain(square, queries=queries), turn)
            broken = _outwards(engine, f"square-{queries}", stage, share=share, least=64, access="score")
            engine.run(f"apgd-ce-{turn}", anew(plain(apgd, loss="ce", steps=100), turn))


def _near_and_random(engine: Engine) -> tuple[Tensor, Tensor]:
    """Positions of survivors for a hedge, in rising order, and those of them that were drawn at random."""
    near = engine.closest(0.0, least=NEAR)
    others = engine.sample(RANDOM, "hedge", besides=near)
    return torch.cat([near, others]).sort().values, others


def _other_kinds(engine: Engine) -> None:
    """Auto-PGD (linf, l2) and targeted FAB on some survivors; where one breaks any, it meets all of them, and longer.

    A minimum-norm search that wins says that the ascents were misled: they are run again from other starts, too.

    Source: Croce & Hein, ICML 2020 (both attacks: kinds of search that fail on different models).
    """
    wide: dict[str, Any] = {} if engine.threat.norm == "linf" else {"schedule": "large_eps"}
    if engine.threat.norm != "l1":
        chosen, _ = _near_and_random(engine)
        stage = plain(apgd, loss="scaled_ce", steps=50, **wide)
        if engine.run("apgd-hedge", stage, chosen, copies=1):
            engine.escalated.append(OTHERS_BROKE)
            engine.run("apgd-ce", plain(apgd, loss="ce", steps=100, **wide), copies=1)
            engine.run("apgd-margin", anew(plain(apgd, loss="margin", steps=100, **wide), 1), copies=1)
    chosen, _ = _near_and_random(engine)
    together = min(3, _together(engine, chosen))
    look, whole, longer = _BOUNDARY[engine.threat.norm]
    if not engine.run("fab-hedge", plain(fab_t, targets=3, together=together, **look), chosen, copies=together):
        return
    engine.escalated.append(OTHERS_BROKE)
    together = min(9, _together(engine, engine.survivors()))
    broken = engine.run("fab-t", plain(fab_t, targets=9, together=together, **whole), copies=together)
    if engine.threat.norm == "l2":
        _from_outside(engine, MOST_OUTSIDE, 2 * MOST_OUTSIDE)
    if broken < DEFAULTS.floor or broken <= DEFAULTS.unended * len(engine.x):
        return
    near = engine.closest(HALF, least=NEAR)
    together = min(9, _together(engine, near))
    broken = engine.run("fab-t-long", plain(fab_t, targets=9, together=together, **longer), near, copies=together)
    if broken >= DEFAULTS.floor and broken > DEFAULTS.unended * len(engine.x):
        engine.escalated.append(f"{UNENDED}: FAB-T still broke {broken} of {len(engine.x)} samples in its last run")


def _sparse(engine: Engine) -> None:
    """The gradient stages of l1: Auto-PGD from wider balls, whose last look is at the ball's best corner."""
    _short_runs(engine)
    _long_runs(engine)
    rows = engine.closest(THIRD, least=16)
    together = min(5, _together(engine, rows))
    stage = plain(apgd_t, targets=5, together=together, steps=50, schedule="large_eps", corner=True)
    _outwards(engine, "apgd-t", stage, share=THIRD, least=16, copies=together)


def _short_runs(engine: Engine) -> None:
    """Auto-PGD in l1 with three losses in turn, as long as it pays.

    Short runs from many starts find more than few long ones (an MNIST net trained in linf, 200 images, l1(10): three runs
    of 30 steps left 43, one of 100 steps 48). They go on until some in a row have not paid.
    """
    wide: dict[str, Any] = {"schedule": "large_eps", "corner": True}
    idle, turn = 0, 0
    while turn < MOST_SPARSE and idle < IDLE:
        loss, rows = ("scaled_ce", "margin", "ce")[turn % 3], engine.survivors()
        stage = anew(plain(apgd, loss=loss, steps=30, **wide), turn)
        broken = engine.run(f"apgd-{loss}-{turn}", stage, rows, copies=1)
        idle, turn = 0 if broken >= max(1, PAYS * len(rows)) else idle + 1, turn + 1


def _long_runs(engine: Engine) -> None:
    """Auto-PGD in l1 with AutoAttack's loss, length and starts; it ends with the first run that gains nothing.

    On ``digits-trades`` at l1(5) five such runs broke 7 of 51 survivors of the short ones, which find other images.
    """
    for turn in range(5):
        stage = plain(apgd, loss="ce", steps=100, schedule="large_eps", corner=True)
        if not engine.run(f"apgd-ce-long-{turn}", anew(stage, MOST_SPARSE + turn), copies=1):  # draws of their own
            break


@facts(
    version=7, norms=("linf", "l2", "l1"), access="all", randomness="per_sample", protocol=True, lowers=("linf", "l2"),
)  # fmt: skip
def robench_deep(engine: Engine) -> None:
    """More than AutoAttack searches: many diversified turns, the nine nearest classes twice, and both hedges.

    In l1 Auto-PGD takes the place of all that: short runs, restarts with two losses, and nine targets.

    A sample that holds costs about 2000 gradient passes and 2000 forward passes in linf and l2 (5000 queries more where
    the first thousand broke anything); AutoAttack asks for 1900 and 5900.
    """
    _escalating(engine, _deep_sparse if engine.threat.norm == "l1" else _deep_dense, _deep_hedge)


def _deep_hedge(engine: Engine) -> None:
    near = engine.closest(THIRD, least=8)
    if engine.run("fab-t", plain(fab_t, steps=100, targets=9, together=_together(engine, near)), near):
        engine.escalated.append(OTHERS_BROKE)
        engine.run("fab-t-all", anew(plain(fab_t, steps=100, targets=9, restarts=2), 1))
    broken = engine.run("square", plain(square, queries=1000), access="score")
    engine.escalated += [SQUARE_BROKE] if broken else []
    chosen = engine.survivors() if broken else engine.closest(0.2, least=8)  # the share is not tuned
    engine.run("square-long", anew(plain(square, queries=5000), 1), chosen, access="score")


def _deep_dense(engine: Engine) -> None:
    engine.run("sieve", sieve())
    if engine.threat.norm == "l2":
        _from_outside(engine, 0, MOST_OUTSIDE)
    engine.rank()
    turn = 0
    while turn < TURNS:
        _, turn = _round(engine, turn)
    engine.run("apgd-ce", plain(apgd, loss="ce", steps=100))
    engine.run("scaled-ce", polish("scaled_ce"))
    engine.run("probability-margin", polish("probability_margin"))
    engine.run("targets-random", ladder(9, 50, diverse=True))
    engine.run("targets-best", ladder(9, 50, diverse=False))
    # 48 restarts a sample: a few samples at first; the share is not tuned
    _outwards(engine, "frontier", diversified(*range(19, 67), steps=60), share=0.05, least=4)
    near = engine.closest(THIRD, least=8)
    engine.run("apgd-t", plain(apgd_t, steps=100, targets=9, together=_together(engine, near)), near)


def _deep_sparse(engine: Engine) -> None:
    _short_runs(engine)
    wide: dict[str, Any] = {"steps": 100, "schedule": "large_eps", "corner": True}
    engine.run("apgd-ce", plain(apgd, loss="ce", restarts=5, **wide))
    engine.run("apgd-margin", anew(plain(apgd, loss="margin", restarts=2, **wide), 1))
    engine.run("apgd-t", plain(apgd_t, targets=9, **wide))


@facts(version=1, norms=("l0",), access="all", randomness="per_sample", protocol=True)
def robench_l0(engine: Engine) -> None:
    """Few changed features: PGD-l0, sigma-zero, and a random search that goes on where it breaks anything."""
    engine.look()
    engine.run("pgd-l0", plain(pgd_l0, steps=50, restarts=2))
    engine.run("sigma-zero", plain(sigma_zero, steps=1000))
    engine.run("pgd-l0-ce", anew(plain(pgd_l0, steps=100, restarts=3, loss="ce"), 1))
    if engine.run("sparse-rs", plain(sparse_rs, queries=1000), access="score"):
        engine.run("sparse-rs-long", anew(plain(sparse_rs, queries=9000), 1), access="score")


@facts(version=2, norms=("linf", "l2", "l1", "l0"), access="white", randomness="per_sample", protocol=True)
def curve(engine: Engine) -> None:
    """Each image's smallest distance found: one run under ``norm(inf)`` gives the whole curve of accuracy against eps.

    Every attack meets every image that is classified right, and an image keeps the nearest success, confirmed by the
    judge; ``stage`` tells which attack found it. Under a finite eps the distances up to it are found.
    """
    engine.look()
    rows = engine.survivors()
    for name, function, params in _NEAREST[engine.threat.norm]:
        _closer(engine, name, nearest(function, **params), rows)


def nearest(function: Callable[..., Tensor], *, told: bool = False, **params: object) -> Attack:
    """A minimum-norm attack as a stage that keeps whichever is nearer, what it finds or what was known before.

    Unless ``told``, the attack does not know what was known: a radius that starts from a success searches worse.
    """

    def attack(victim: Victim, draws: Draws) -> None:
        known, reach = victim.best_margin <= 0, distance(victim.x, victim.best, victim.threat.norm)
        part = victim.part(torch.arange(len(victim.x), device=victim.x.device))
        if not told:
            part.best, part.best_margin = part.x.clone(), torch.full_like(part.best_margin, torch.inf)
        found = function(part, part.x, part.y, threat=victim.threat, seeds=draws, **params)
        for name in BOOKS:
            getattr(victim, name).add_(getattr(part, name))
        verdicts = judge(
            victim.model, part.x, part.y, x_adv=found, threat=victim.threat, task=victim.task, width=victim.width
        )
        victim.forwards += 2
        sound = verdicts.broken(victim.task) & ~verdicts.unstable & ~verdicts.projected
        nearer = sound & (~known | (verdicts.distance < reach))
        victim.broken = known | nearer
        _replace(victim, nearer, found, verdicts.margin)
        lower = (part.best_margin > 0) & (part.best_margin < victim.best_margin)
        _replace(victim, ~victim.broken & lower, part.best, part.best_margin)

    return attack


def _replace(victim: Victim, chosen: Tensor, points: Tensor, margin: Tensor) -> None:
    """Make the chosen points, bool (N,), the victim's best."""
    victim.best = torch.where(per_sample(chosen, points), points, victim.best)
    victim.best_margin = torch.where(chosen, margin.to(victim.best_margin), victim.best_margin)


def _closer(engine: Engine, name: str, attack: Attack, rows: Tensor) -> None:
    """Run a stage on all of ``rows``, broken or not; its line and its name count what it broke or brought nearer first."""
    stage, broken = engine.stage.clone(), engine.broken.clone()
    reach = distance(engine.x, engine.best, engine.threat.norm)
    engine.run(name, attack, rows)
    moved = distance(engine.x, engine.best, engine.threat.norm) < reach
    new = engine.broken & ~broken
    engine.stage = torch.where(new | (engine.broken & moved), len(engine.waterfall) - 1, stage)
    engine.waterfall[-1] = replace(engine.waterfall[-1], broken=int(new.sum()))


def along(victim: Victim, x: Tensor, y: Tensor, *, threat: ThreatModel, seeds: Draws, steps: int = 12) -> Tensor:
    """The nearest success that bisection finds on the line from x to the known one, (N, ...)."""
    closest = Closest(victim)
    rows = (closest.distance.isfinite() & (closest.distance > 0)).nonzero()[:, 0]
    ends = closest.points[rows].double() - x[rows].double()
    low = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
    high = torch.ones_like(low)
    for _ in range(steps if len(rows) else 0):
        middle = (low + high) / 2
        points = (x[rows].double() + ends * per_sample(middle, ends)).to(x.dtype)
        success = victim.margins(points, rows) <= 0
        closest.book(points, rows, success)
        low, high = torch.where(success, low, middle), torch.where(success, middle, high)
    return closest.result()


_NEAREST: dict[str, list[tuple[str, Callable[..., Tensor], dict[str, Any]]]] = {
    "linf": [
        ("fmn", fmn, {"steps": 300}), ("deepfool", deepfool, {"steps": 50}), ("fab-t", fab_t, {"steps": 50}),
        ("line", along, {"told": True}),
    ],
    "l2": [
        ("ddn", ddn, {"steps": 300}), ("fmn", fmn, {"steps": 300}), ("deepfool", deepfool, {"steps": 50}),
        ("fab-t", fab_t, {"steps": 50}), ("line", along, {"told": True}),
    ],
    "l1": [
        ("fmn", fmn, {"steps": 300}), ("ead", ead, {"steps": 100}), ("fab-t", fab_t, {"steps": 50}),
        ("line", along, {"told": True}),
    ],
    "l0": [("sigma-zero", sigma_zero, {"steps": 1000}), ("fmn", fmn, {"steps": 300})],
}  # fmt: skip
"""The attacks of ``curve`` in each norm; FAB's steps are half of AutoAttack's."""
