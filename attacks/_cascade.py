"""The stages of robench's cascade: what each does to the survivors of the ones before."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robench.attacks._climb import Phase, climb, cosine
from robench.attacks._engine import Attack
from robench.ops.random import Draws
from robench.victim import Victim


def radius(victim: Victim) -> float:
    """The ball's radius, at most what crosses the box."""
    side = 1.0 if victim.threat.norm == "linf" else math.sqrt(victim.x[0].numel())
    return min(victim.threat.eps, side)


def sieve(steps: int = 20, *, loss: str = "scaled_ce") -> Attack:
    """Ascent of a loss from a random start: the cheap look that breaks what is easy.

    Per gradient the scaled cross-entropy breaks several times as many of the hard samples as the margin does: it follows
    whichever class comes near, without the saturation of the plain one.

    Source: Yu & Xu, CVPR 2023 (the loss).
    """

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        own, ball = draws[rows], victim.ball[rows]
        climb(victim, rows, lambda k: ball[k].random(own[k], "sieve"), [Phase(cosine(steps, radius(victim)), loss=loss)])

    return attack


def diversified(turn: int, *, before: int = 3, steps: int = 20, loss: str = "scaled_ce") -> Attack:
    """Steps along random output directions, then ascent of a loss; from the third turn on biased to a near class.

    Source: Tashiro et al., NeurIPS 2020 (ODI); Liu et al., CVPR 2022 (A3: directions that earlier successes had).
    """

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        eps, own, ball = radius(victim), draws[rows], victim.ball[rows]
        weights = _directions(victim, rows, own, torch.full_like(rows, turn))
        phases = [Phase([eps] * before, weights=weights), Phase(cosine(steps, eps), loss=loss)]
        climb(victim, rows, lambda k: ball[k].random(own[k], "odi.start", step=turn), phases)

    return attack


def _directions(victim: Victim, rows: Tensor, draws: Draws, turn: Tensor) -> Tensor:
    """Output weights (n, K) in [-1, 1]: random in the first two turns, then down the label and up a near class."""
    classes = victim.clean_logits().shape[1]
    weights = draws.uniform("odi.weights", (classes,), step=turn).to(victim.x) * 2 - 1
    if victim.order is not None:
        order = victim.order[rows]
        near = order.gather(1, ((turn - 2) % order.shape[1])[:, None])
        luck = draws.uniform("odi.label", (1,), step=turn).to(weights)
        biased = weights.scatter(1, near, 0.8).scatter(1, victim.y[rows][:, None], -0.6 * luck + 0.1)
        weights = torch.where(turn[:, None] >= 2, biased, weights)
    return weights


def polish(loss: str, steps: int = 50) -> Attack:
    """Ascent of another loss from each sample's best point."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        climb(victim, rows, lambda k: victim.best[rows[k]], [Phase(cosine(steps, radius(victim)), loss=loss)])

    return attack


def ladder(ranks: int, steps: int = 40, *, diverse: bool) -> Attack:
    """Targeted margin ascent to each of the nearest classes, all targets of a sample in one batch.

    With ``diverse`` it starts from output-diversified points, else from the best points.
    """

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        order = victim.order[rows][:, :ranks]  # type: ignore[index]
        copies, target = rows.repeat_interleave(order.shape[1]), order.flatten()
        part = victim.part(copies, target=target)
        every = torch.arange(len(copies), device=rows.device)
        eps, turn = radius(victim), torch.arange(order.shape[1], device=rows.device).repeat(len(rows))
        phases, own = [Phase(cosine(steps, eps))], draws[copies]
        if diverse:
            phases.insert(0, Phase([eps] * 5, weights=_directions(part, every, own, turn + 100)))
            climb(part, every, lambda k: part.ball[k].random(own[k], "ladder.start", step=turn[k]), phases)
        else:
            climb(part, every, lambda k: part.best[k], phases)
        victim.absorb(part)

    return attack


def frontier(restarts: int, *, before: int = 7, steps: int = 60) -> Attack:
    """Many diversified restarts, all of a sample in one batch."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        copies = rows.repeat_interleave(restarts)
        part = victim.part(copies)
        turn = torch.arange(restarts, device=rows.device).repeat(len(rows)) + 2
        eps, every, own = radius(victim), torch.arange(len(copies), device=rows.device), draws[copies]
        phases = [Phase([eps] * before, weights=_directions(part, every, own, turn + 1000)), Phase(cosine(steps, eps))]
        climb(part, every, lambda k: part.ball[k].random(own[k], "frontier.start", step=turn[k]), phases)
        victim.absorb(part)

    return attack
