"""Square attack: random search with squares, from margins alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from robench.attacks._apgd_l1 import project_l1
from robench.errors import ConfigError, must
from robench.ops.norms import Ball, per_sample
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

_BLOCK = 64
"""Queries whose draws are made at once."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of changed pixels is halved."""

Proposal = Callable[[Tensor, Tensor, Tensor, int, Ball], Tensor]
"""(x, points, luck, side, ball) → points to ask for."""


@facts(version=1, norms=("linf", "l2", "l1"), access="score", randomness="per_sample", targeted=True)
def square(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    rescale: bool = False,
) -> Tensor:
    """The lowest-margin point of a random search with squares, (N, C, H, W) in [0, 1].

    It starts from vertical stripes (linf) or a grid of bumps (l2, l1). A query costs one forward pass, the start one
    more; a broken sample leaves at the query that breaks it. Squares end one pixel before the lower and the right edge,
    as in the authors' code.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, C, H, W), in [0, 1].
        y: Labels (N,).
        threat: linf, l2 or l1.
        seeds: Per-sample randomness of places and colours.
        queries: Squares tried per restart.
        p_init: Share of the pixels that the first squares cover, in (0, 1].
        restarts: Independent runs over the samples that are still unbroken.
        rescale: Stretch the schedule of the squares' sizes from 10000 queries to ``queries``; AutoAttack does not.

    Raises:
        ConfigError: No query or restart, a share outside (0, 1], another norm, or samples that are no images.

    Source: Andriushchenko et al., ECCV 2020 (Square Attack), algorithms 1-3; l1 as in Croce & Hein, ICML 2021 (Mind the
    box), appendix.
    """
    _require(x, threat, queries, p_init, restarts)
    victim = as_victim(victim, x, y, threat)
    for restart in range(restarts):
        rows = victim.alive()
        if not len(rows):
            break
        points = _start(victim.x[rows], victim.ball[rows], seeds[rows], restart)
        size = (x.shape[-2], x.shape[-1])
        sides = [_side(query, queries, p_init, size, threat.norm, rescale=rescale) for query in range(queries)]
        _search(victim, rows, points, seeds, sides, first=restart << 16)
    return victim.result()


def _require(x: Tensor, threat: ThreatModel, queries: int, p_init: float, restarts: int) -> None:
    if queries < 1 or restarts < 1:
        raise ConfigError(must("queries and restarts", "at least 1", (queries, restarts), "else nothing is attacked"))
    if not 0 < p_init <= 1:
        raise ConfigError(must("p_init", "in (0, 1]", p_init, "the paper's is 0.8"))
    if threat.norm not in ("linf", "l2", "l1"):
        raise ConfigError(must("the Square attack's norm", "linf, l2 or l1", threat.norm, "choose another attack"))
    if x.dim() != 4:
        raise ConfigError(
            must("the Square attack's samples", "images (N, C, H, W)", tuple(x.shape), "choose another attack")
        )


def _search(victim: Victim, rows: Tensor, points: Tensor, seeds: Draws, sides: list[int], *, first: int) -> None:
    """Random search from ``points``; everything but the books is held for the unbroken samples only."""
    propose: Proposal = _stripe if victim.threat.norm == "linf" else _bumps
    numbers = (2 if victim.threat.norm == "linf" else 5) + points.shape[1]
    margin = _known(victim.margins(points, rows, inside=True))
    x, ball, luck = victim.x[rows], victim.ball[rows], points.new_zeros(0)
    for query, side in enumerate(sides):
        keep = ~victim.broken[rows]
        if not bool(keep.all()):
            rows, points, margin, x, ball = rows[keep], points[keep], margin[keep], x[keep], ball[keep]
            luck = luck[keep] if query % _BLOCK else luck
        if not len(rows):
            return
        if query % _BLOCK == 0:
            luck = seeds[rows].uniform("square", (_BLOCK, numbers), step=first + query // _BLOCK).double()
        asked = propose(x, points, luck[:, query % _BLOCK], side, ball)
        found = _known(victim.margins(asked, rows, inside=True))
        better = (found < margin).nonzero()[:, 0]
        points[better], margin[better] = asked[better], found[better]


def _known(margin: Tensor) -> Tensor:
    """Margins with NaN as the worst."""
    return margin.masked_fill(margin.isnan(), torch.inf)


def _side(query: int, queries: int, p_init: float, size: tuple[int, int], norm: str, *, rescale: bool) -> int:
    """Side of the squares of a query, in pixels; odd for l2 and l1 where the image allows."""
    height, width = size
    at = int(query / queries * 10000) if rescale else query
    share = p_init / 2 ** sum(at > bound for bound in _HALVINGS)
    side = round(math.sqrt(share * height * width))
    side = max(side, 1) if norm == "linf" else max(side, 3) | 1
    return min(side, height, width)


def _colours(luck: Tensor) -> Tensor:
    return torch.where(luck >= 0.5, 1.0, -1.0)


def _corner(luck: Tensor, side: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Upper and left edge (n,) each of a square, from two uniform numbers per sample."""
    return (luck[:, 0] * (size[0] - side)).long(), (luck[:, 1] * (size[1] - side)).long()


def _start(x: Tensor, ball: Ball, draws: Draws, restart: int) -> Tensor:
    channels, height, width = x.shape[1:]
    norm, eps = ball.threat.norm, _radius(ball)
    if norm == "linf":
        luck = draws.uniform("square.start", (channels, width), step=restart)
        return ball.project(x + (eps * _colours(luck)[:, :, None]).to(x.dtype))
    side = max(1, height // 5)
    cells = (height // side) * (width // side)
    luck = draws.uniform("square.start", (cells, 1 + channels), step=restart)
    return _placed(x, _grid(luck, (height, width), side, norm).to(x.dtype), ball)


def _radius(ball: Ball) -> float:
    """Eps, at most the box's own size."""
    size = ball.x[0].numel()
    return min(ball.threat.eps, size ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[ball.threat.norm])


def _stripe(x: Tensor, points: Tensor, luck: Tensor, side: int, ball: Ball) -> Tensor:
    """One square per sample goes to the ball's edge, up or down per channel."""
    height, width = x.shape[-2:]
    top, left = _corner(luck, side, (height, width))
    down = torch.arange(height, device=x.device) - top[:, None]
    right = torch.arange(width, device=x.device) - left[:, None]
    inside = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None, :]
    change = (2 * _radius(ball) * _colours(luck[:, 2:])).to(x.dtype)[:, :, None, None]
    return ball.project(points + change * inside[:, None])


def _bumps(x: Tensor, points: Tensor, luck: Tensor, side: int, ball: Ball) -> Tensor:
    """A square gets a bump and the budget of a second square, which is emptied, as well as what eps leaves."""
    norm, eps, channels = ball.threat.norm, _radius(ball), x.shape[1]
    power = 2 if norm == "l2" else 1
    here, there = (_window(luck[:, k : k + 2], side, x) for k in (0, 2))
    delta = (points - x).flatten(2)
    used = _powers(delta, power).sum(1, keepdim=True)
    old = delta.gather(2, here)
    delta = delta.scatter(2, here, 0)
    freed = _powers(old, power) + _powers(delta.gather(2, there), power)
    left = (freed + (eps**power - used).clamp_min(0) / channels) ** (1 / power) * (1 if norm == "l2" else channels)
    bump = _pattern(side, norm).to(x)
    bump = torch.stack([bump, bump.T]).flatten(1)[(luck[:, 4] > 0.5).long()][:, None] * _colours(luck[:, 5:])[:, :, None].to(
        x
    )
    new = bump + old / (1e-12 + _powers(old, power) ** (1 / power)).to(x)
    new = new * (left / (1e-12 + _powers(new, power) ** (1 / power))).to(x)
    return _placed(x, delta.scatter(2, there, 0).scatter(2, here, new).view_as(x), ball)


def _window(luck: Tensor, side: int, x: Tensor) -> Tensor:
    """Positions (n, C, side²) of a square's pixels in an image's flattened plane."""
    top, left = _corner(luck, side, (x.shape[2], x.shape[3]))
    offsets = torch.arange(side, device=x.device)
    inside = (offsets[:, None] * x.shape[3] + offsets).flatten()
    places = (top * x.shape[3] + left)[:, None] + inside
    return places[:, None].expand(-1, x.shape[1], -1)


def _powers(values: Tensor, power: int) -> Tensor:
    """Sums (n, C, 1) of |values|^power over the last axis of (n, C, m), float64."""
    sizes = values.double().abs() ** power
    return row_sums(sizes.flatten(0, 1)).view(*values.shape[:2], 1)


def _placed(x: Tensor, delta: Tensor, ball: Ball) -> Tensor:
    """x + delta at full length (l2), or projected on the intersection of ball and box (l1)."""
    if ball.threat.norm == "l1":
        inner = replace(ball.threat, eps=_radius(ball) * (1 - 1e-6))
        return project_l1(Ball(x, inner), x.double() + delta).to(x.dtype)
    length = row_sums(delta.double() ** 2).sqrt() + 1e-12
    moved = x.double() + delta * per_sample(_radius(ball) / length, delta)
    return ball.project(moved.clamp(0, 1).to(x.dtype))


@lru_cache(maxsize=64)
def _pattern(side: int, norm: str) -> Tensor:
    """A bump of unit norm, (side, side) float64: a positive peak over a negative one."""
    half = side // 2
    bump = torch.cat([_peak(half, side, norm), -_peak(side - half, side, norm)])
    return bump / (bump.square().sum().sqrt() if norm == "l2" else bump.abs().sum())


def _peak(height: int, width: int, norm: str) -> Tensor:
    """Nested squares around the middle, clipped to (height, width), of unit norm; the k-th has weight k^-2 (l1: k^-4)."""
    down = (torch.arange(height) - height // 2).abs()
    right = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(down[:, None], right[None])
    count = max(height // 2, width // 2) + 1
    weights = torch.arange(1, count + 1, dtype=torch.float64) ** (-2 if norm == "l2" else -4)
    peak = weights.flip(0).cumsum(0).flip(0)[ring]
    return peak / (peak.square().sum().sqrt() if norm == "l2" else peak.abs().sum())


def _grid(luck: Tensor, size: tuple[int, int], side: int, norm: str) -> Tensor:
    """A bump per cell of a grid, (n, C, H, W), from numbers (n, cells, 1 + C): its orientation, then its colours."""
    height, width = size
    edge = max(0, (height - 5 * side) // 2)
    down, right = (torch.arange(length, device=luck.device) - edge for length in size)
    inside = ((down >= 0) & (down < height // side * side))[:, None] & ((right >= 0) & (right < width // side * side))
    down, right = down.clamp_min(0), right.clamp_min(0)
    last = luck.shape[1] - 1
    cell = (down // side * (width // side))[:, None] + right // side
    luck = luck[:, cell.clamp_max(last)]
    bump = _pattern(side, norm).to(luck.device)
    plain, turned = (turn[down % side][:, right % side] for turn in (bump, bump.T))
    return (torch.where(luck[..., 0] > 0.5, turned, plain) * inside)[:, None] * _colours(luck[..., 1:]).permute(0, 3, 1, 2)
