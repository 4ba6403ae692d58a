"""The stages of robench's cascade: what each does to the survivors of the ones before."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from robench.attacks._climb import Phase, climb, cosine
from robench.attacks._engine import Attack
from robench.ops.norms import Ball
from robench.ops.random import Draws
from robench.victim import Victim

VERSION = 1
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

GUIDES = ("scaled_ce", "margin")
"""Losses of the diversified turns, in turn."""


WIDEST, SHRINKING = 3.0, 0.7
"""Radius, in units of eps, that an ascent from outside begins with, and the share of its steps in which it shrinks to 1.

Three is where the l1 attack of Croce & Hein, ICML 2021, begins; on an MNIST net trained in linf, twice eps left half as
many again, five times eps a quarter more (l2(2.0), 200 images).
"""


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
        climb(victim, rows, lambda k: ball[k].start(own[k], "sieve"), [Phase(cosine(steps, radius(victim)), [loss])])

    return attack


def diversified(*turns: int, before: int = 3, steps: int = 25) -> Attack:
    """Steps along random output directions, then ascent of a loss: one run per turn, all runs of a sample in one batch.

    Even turns ascend the scaled cross-entropy and odd ones the margin, since on some models and images the one is the
    better guide and on some the other. Turn 0 goes in any direction, the later ones towards the near classes in turn.

    Source: Tashiro et al., NeurIPS 2020 (ODI); Liu et al., CVPR 2022 (A3: directions that earlier successes had).
    """

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        copies, eps = rows.repeat_interleave(len(turns)), radius(victim)
        part, own, every = victim.part(copies), draws[copies], torch.arange(len(copies), device=rows.device)
        turn = torch.tensor(turns, device=rows.device).repeat(len(rows))
        weights, choice = _directions(part, own, turn, turn - 1), _guides(victim, turn)
        phases = [Phase([eps] * before, weights=weights), Phase(cosine(steps, eps), GUIDES, choice)]
        climb(part, every, lambda k: part.ball[k].start(own[k], "odi.start", step=turn[k]), phases)
        victim.absorb(part)

    return attack


def shrinking(*turns: int, steps: int = 40) -> Attack:
    """Ascent (l2) that begins on a sphere of three times eps, whose ball shrinks to eps on the way: one run per turn.

    Within a small ball around the image, nets that were trained in linf are flat and their gradients lead nowhere; further
    out they lead to the classes' near sides. Even turns ascend the scaled cross-entropy and odd ones the margin.

    Source: Croce & Hein, ICML 2021 (Mind the box), section 4.1: wider balls first, there in l1.
    """
    shrunk = max(1, round(SHRINKING * steps))
    widths = [max(1.0, WIDEST + (1 - WIDEST) * (k + 1) / shrunk) for k in range(steps)]

    def attack(victim: Victim, draws: Draws) -> None:
        rows, eps = victim.alive(), radius(victim)
        copies = rows.repeat_interleave(len(turns))
        part, own, every = victim.part(copies), draws[copies], torch.arange(len(copies), device=rows.device)
        turn = torch.tensor(turns, device=rows.device).repeat(len(rows))
        sizes = [width * size for width, size in zip(widths, cosine(steps, eps), strict=True)]
        outer = Ball(part.x, replace(victim.threat, eps=widths[0] * eps, text=f"{widths[0]}*{victim.threat.text}"))
        phase = Phase(sizes, GUIDES, turn % len(GUIDES), widths=widths)
        climb(part, every, lambda k: outer[k].start(own[k], "shrinking.start", step=turn[k]), [phase])
        victim.absorb(part)

    return attack


def _guides(victim: Victim, turn: Tensor) -> Tensor:
    """Which of the guides each turn climbs: in turn, so that every class meets both of them sooner or later.

    With an even number of ranks they change places in every other pass over the ranks.
    """
    ranks = 1 if victim.order is None else victim.order.shape[1]
    passes = (turn - 1).clamp_min(0) // ranks
    return (turn + (passes if ranks % 2 == 0 else 0)) % len(GUIDES)


def _directions(victim: Victim, draws: Draws, turn: Tensor, rank: Tensor) -> Tensor:
    """Output weights (n, K) in [-1, 1], drawn for each turn; where the rank is 0 or more, up the class of that rank.

    Ranks count from the nearest class and begin anew behind the last; the label is weighted down or hardly up.
    """
    classes = victim.clean_logits().shape[1]
    weights = draws.uniform("odi.weights", (classes,), step=turn).to(victim.x) * 2 - 1
    if victim.order is None:
        return weights
    near = victim.order.gather(1, (rank % victim.order.shape[1])[:, None])
    luck = draws.uniform("odi.label", (1,), step=turn).to(weights)
    biased = weights.scatter(1, near, 0.8).scatter(1, victim.y[:, None], -0.6 * luck + 0.1)
    return torch.where(rank[:, None] >= 0, biased, weights)


def polish(loss: str, steps: int = 50) -> Attack:
    """Ascent of another loss from each sample's best point."""

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        climb(victim, rows, lambda k: victim.best[rows[k]], [Phase(cosine(steps, radius(victim)), [loss])])

    return attack


def ladder(ranks: int, steps: int = 40, *, diverse: bool) -> Attack:
    """Targeted margin ascent to each of the nearest classes, all targets of a sample in one batch.

    With ``diverse`` it starts from points that are output-diversified towards the target, else from the best points.
    """

    def attack(victim: Victim, draws: Draws) -> None:
        rows = victim.alive()
        order = victim.order[rows][:, :ranks]  # type: ignore[index]
        copies, target = rows.repeat_interleave(order.shape[1]), order.flatten()
        part = victim.part(copies, target=target)
        every = torch.arange(len(copies), device=rows.device)
        eps, rank = radius(victim), torch.arange(order.shape[1], device=rows.device).repeat(len(rows))
        phases, own = [Phase(cosine(steps, eps))], draws[copies]
        if diverse:
            phases.insert(0, Phase([eps] * 5, weights=_directions(part, own, rank + 100, rank)))
            climb(part, every, lambda k: part.ball[k].start(own[k], "ladder.start", step=rank[k]), phases)
        else:
            climb(part, every, lambda k: part.best[k], phases)
        victim.absorb(part)

    return attack
