"""Random search over sets of features: scores only, few features changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

_BLOCK = 64
"""Queries whose draws are made at once, and after which the features are put into a new random order."""

_FALLS = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))
"""(query of 10000 after which it holds, divisor of the share): the authors' schedule for l0."""


@facts(version=1, norms=("l0",), access="score", randomness="per_sample", targeted=True)
def sparse_rs(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    queries: int = 5000,
    share: float = 0.3,
    restarts: int = 1,
) -> Tensor:
    """The lowest-margin point with at most eps features at 0 or 1, (N, ...) in [0, 1].

    A query puts some of the changed features back, sets as many others to 0 or 1, and is kept where it lowers the
    margin. Features count apart, channels too; the authors count pixels and draw each set anew, where here a set is a
    window of an order that is drawn every 64 queries. A query costs one forward pass, the start one more.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: l0, counted in features; the part of eps after the point is lost, and one feature always stays as it is.
        seeds: Per-sample randomness of features and values.
        queries: Sets tried per restart.
        share: Share of the changed features that the first queries exchange, in (0, 1]; it falls by a schedule that is
            stretched over the queries.
        restarts: Independent runs over the samples that are still unbroken.

    Raises:
        ConfigError: No query or restart, or a share outside (0, 1].

    Source: Croce et al., AAAI 2022 (Sparse-RS), algorithm 1 and section 4; the schedule as in their code.
    """
    if queries < 1 or restarts < 1:
        raise ConfigError(must("queries and restarts", "at least 1", (queries, restarts), "else nothing is attacked"))
    if not 0 < share <= 1:
        raise ConfigError(must("share", "in (0, 1]", share, "the paper's is 0.3"))
    victim = as_victim(victim, x, y, threat)
    budget = int(min(threat.eps, x[0].numel() - 1))
    if budget < 1:
        victim.clean_logits()
        return victim.result()
    counts = [exchanged(query, queries, share, budget, x[0].numel()) for query in range(1, queries + 1)]
    for restart in range(restarts):
        _search(victim, victim.alive(), seeds, budget, counts, first=restart << 16)
    return victim.result()


def exchanged(query: int, queries: int, share: float, budget: int, features: int) -> int:
    """How many features query number ``query`` (from 1) exchanges."""
    at = int(query / queries * 10_000)
    divisor = max((d for bound, d in _FALLS if at > bound), default=1)
    return min(max(int(share / divisor * budget), 1), budget, features - budget)


def _search(victim: Victim, rows: Tensor, seeds: Draws, budget: int, counts: list[int], *, first: int) -> None:
    """One run; everything but the books is held for the unbroken samples only."""
    if not len(rows):
        return
    x = victim.x[rows].flatten(1)
    order = seeds[rows].uniform("sparse.order", x.shape[1:], step=first).argsort(dim=1, stable=True)
    values = seeds[rows].uniform("sparse.start", (budget,), step=first).round().to(x.dtype)
    points = x.scatter(1, order[:, :budget], values)
    margin = _known(victim.margins(points.view_as(victim.x[rows]), rows))
    luck = x.new_zeros(0)
    for query, count in enumerate(counts):
        keep = ~victim.broken[rows]
        if not bool(keep.all()):
            rows, x, order, points, margin = rows[keep], x[keep], order[keep], points[keep], margin[keep]
            luck = luck[keep] if query % _BLOCK else luck
        if not len(rows):
            return
        if query % _BLOCK == 0:
            block = first + query // _BLOCK
            luck = seeds[rows].uniform("sparse", (_BLOCK, 2 + count), step=block)
            order = _shuffled(order, seeds[rows], budget, block) if query else order
        trial, swapped = _exchange(x, points, order, luck[:, query % _BLOCK], budget, count)
        found = _known(victim.margins(trial.view_as(victim.x[rows]), rows))
        better = found < margin
        points = torch.where(better[:, None], trial, points)
        order, margin = torch.where(better[:, None], swapped, order), torch.where(better, found, margin)


def _known(margin: Tensor) -> Tensor:
    """Margins with NaN as the worst."""
    return margin.masked_fill(margin.isnan(), torch.inf)


def _shuffled(order: Tensor, seeds: Draws, budget: int, block: int) -> Tensor:
    """The changed features, then the others, each part in a new random order, (n, d)."""
    keys = seeds.uniform("sparse.order", order.shape[1:], step=block)
    keys[:, budget:] += 1
    return order.gather(1, keys.argsort(dim=1, stable=True))


def _exchange(x: Tensor, points: Tensor, order: Tensor, luck: Tensor, budget: int, count: int) -> tuple[Tensor, Tensor]:
    """The points with ``count`` changed features put back and as many others changed, (n, d), and their order."""
    steps = torch.arange(count, device=x.device)
    rest = order.shape[1] - budget
    leave = ((luck[:, :1].double() * budget).long() + steps) % budget
    enter = ((luck[:, 1:2].double() * rest).long() + steps) % rest + budget
    old, new = order.gather(1, leave), order.gather(1, enter)
    values = luck[:, 2 : 2 + count].round().to(x.dtype)
    trial = points.scatter(1, old, x.gather(1, old)).scatter(1, new, values)
    return trial, order.scatter(1, leave, new).scatter(1, enter, old)
