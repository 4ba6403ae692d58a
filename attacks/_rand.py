"""AutoAttack's version for randomised models: gradients averaged over draws, finds that must hold over fresh draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks._apgd import apgd
from robench.attacks._engine import Attack, Engine
from robench.judge import judge_repeatedly
from robench.ops.random import Draws
from robench.registry import facts
from robench.victim import BOOKS, Victim

SAMPLES = 20
"""Draws that a gradient is averaged over, AutoAttack's ``eot_iter`` of the version ``rand``."""

LOOKS = 50
"""Fresh draws that a find is judged by."""

CALL_HOLD = 256
"""Samples held at once for what draws in call order, so that ``--batch-size`` cannot move its draws."""


@facts(version=1, norms=("linf", "l2", "l1"), access="all", randomness="call", protocol=True, draws=50)
def autoattack_rand(engine: Engine) -> None:
    """APGD-CE and APGD-DLR with gradients averaged over 20 draws, for models that draw from the global generators.

    A sample is broken where at most half of 50 fresh draws recognise it. AutoAttack believes a single draw, which breaks
    more samples by luck alone; its DLR with three logits becomes the margin where there are only two.

    Source: Croce & Hein, ICML 2020 (``version='rand'``); Athalye et al., ICML 2018, section 4.2 (EOT).
    """
    with drawing(engine) as twin:
        twin.look()
        twin.run("apgd-ce-eot", once(apgd, stage=1, loss="ce", steps=100))
        twin.run("apgd-dlr-eot", once(apgd, stage=2, loss=second_loss(twin), steps=100))


def second_loss(engine: Engine) -> str:
    """DLR, or the margin where there are too few classes for it."""
    return "margin" if engine.clean is not None and engine.clean.shape[1] < 3 else "dlr"


@contextmanager
def drawing(engine: Engine) -> Iterator[Randomised]:
    """The engine as one whose victims are looked at under many draws; what it finds goes back to the engine."""
    twin = Randomised(engine.model, engine.x, engine.y, engine.ids, engine.threat)
    vars(twin).update(vars(engine))
    twin.draws, held, twin.hold = LOOKS, engine.hold, CALL_HOLD
    try:
        yield twin
    finally:
        vars(engine).update(vars(twin))
        engine.hold = held


def once(function: Callable[..., Tensor], *, stage: int, **params: object) -> Attack:
    """An attack of the table as a stage whose starts and whose model's draws are its own."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        part = victim.part(rows)
        own = Draws(draws.seed + stage * 1_000_003, draws.ids[rows])
        part.seed = own.seed
        function(part, part.x, part.y, threat=victim.threat, seeds=own, **params)
        victim.absorb(part)

    return attack


class Randomised(Engine):
    """An engine whose victims are looked at under many draws, and whose finds are confirmed by fresh ones."""

    def _victim(self, rows: Tensor, access: str, source: nn.Module | None = None) -> Victim:
        victim = super()._victim(rows, access, source)
        victim.samples, victim.seed = SAMPLES, self.seed
        victim.best_margin.fill_(torch.inf)
        return victim

    def _confirm(self, victim: Victim) -> None:
        """Look at a stage's best points under fresh draws: their own flatter them."""
        seen = victim.best_margin.isfinite().nonzero()[:, 0]
        victim.broken[:] = False
        if not len(seen):
            return
        told: dict[str, Any] = {"threat": self.threat, "task": self.task, "width": self.width, "seed": self.seed}
        told |= {"x_adv": victim.best[seen], "draws": self.draws}
        found = judge_repeatedly(self.model, victim.x[seen], victim.y[seen], **told)
        victim.forwards[seen] += self.draws
        victim.best_margin[seen] = found.margin.to(victim.best_margin).masked_fill(found.failed, torch.inf)
        victim.broken[seen] = found.broken()

    def _reread(self, victim: Victim, source: nn.Module) -> None:
        """Nothing to read here: fresh draws of the model itself decide on every point anyway."""

    def _take(self, victim: Victim, rows: Tensor, *, elsewhere: bool = False) -> None:
        """Keep a stage's best points where fresh draws prefer them to the earlier ones."""
        margin = victim.best_margin.cpu()
        better = margin < self.best_margin[rows]
        kept = rows[better]
        self.best[kept], self.best_margin[kept] = victim.best.cpu()[better], margin[better]
        self.broken[kept] = victim.broken.cpu()[better]
        for name in BOOKS:
            self.books[name][rows] += getattr(victim, name).cpu()
