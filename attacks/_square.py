"""Square attack: random search with squares, from margins alone."""

from __future__ import annotations

import math
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

_PLANNED = 16
"""Batches that are filled by one plan."""
_MEMORY = 0.95
"""What each batch leaves of a sample's earlier record of improvements."""


@facts(version=2, norms=("linf", "l2", "l1"), access="score", randomness="per_sample", targeted=True)
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
        _Search(victim, rows, points, seeds, sides, first=restart << 16).run()
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


class _Search:
    """Random search from ``points`` by samples that go on at their own pace, each batch full as long as anything is left.

    Where fewer samples are left than a batch holds, a sample's next queries are asked together, all from its current
    point. Those behind the first improvement are asked again from there, so that every sample's queries, answers and
    books are those of a search one by one. Everything but the books is held for the unbroken samples only.
    """

    def __init__(self, victim: Victim, rows: Tensor, points: Tensor, seeds: Draws, sides: list[int], *, first: int) -> None:
        self.victim, self.rows, self.points, self.seeds, self.first = victim, rows, points, seeds, first
        self.margin = _known(victim.margins(points, rows, inside=True))
        self.sides = torch.tensor(sides, device=rows.device)
        self.at = torch.zeros_like(rows)
        self.tried, self.won = torch.full_like(self.margin, 4.0), torch.full_like(self.margin, 1.0)
        power = {"linf": 0, "l2": 2, "l1": 1}[victim.threat.norm]
        self.power, self.numbers = power, (5 if power else 2) + points.shape[1]
        self.used = _used(victim.x[rows], points, power) if power else points.new_zeros(len(rows), 1, 1)
        self.since = torch.full_like(rows, -(1 << 40))
        self.luck = points.new_zeros(len(rows), 0)

    def run(self) -> None:
        """Ask until every sample is broken or has had its queries."""
        while self._left():
            counts = self._shares()
            self._plan(counts)
            if bool((counts > 1).any()):
                for _ in range(_PLANNED):
                    if self._guess():
                        break
            else:
                self._march()

    def _left(self) -> bool:
        """Drop what has ended; whether anything is left."""
        keep = (~self.victim.broken[self.rows] & (self.at < len(self.sides))).nonzero()[:, 0]
        if len(keep) < len(self.rows):
            for name in ("rows", "points", "margin", "at", "tried", "won", "used", "since", "luck"):
                setattr(self, name, getattr(self, name)[keep])
        return len(self.rows) > 0

    def _plan(self, counts: Tensor) -> None:
        """Give the samples ``counts`` (n,) slots of the next batches each."""
        self.owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        self.ahead = torch.arange(len(self.owner), device=counts.device) - (counts.cumsum(0) - counts)[self.owner]
        rows = self.rows[self.owner]
        self.x, self.ball = self.victim.x[rows], self.victim.ball[rows]
        until = self.at + counts * _PLANNED
        self.ending = bool((until > len(self.sides)).any())
        if int((until - self.since).max()) > self.luck.shape[1]:
            self._deal(int(counts.max()) * _PLANNED)

    def _shares(self) -> Tensor:
        """Slots of each sample, int64 (n,): the batch goes where a further query is most likely to be needed."""
        count, width = len(self.rows), self.victim.width
        if not self.victim.separable:
            return torch.ones_like(self.rows)
        if count >= width:
            return torch.zeros_like(self.rows).index_fill_(0, self.at.argsort(stable=True)[:width], 1)
        depth = torch.arange(width, device=self.rows.device)
        need = depth * torch.log1p(-(self.won + 0.5) / (self.tried + 1))[:, None]
        need = need.masked_fill(depth >= (len(self.sides) - self.at)[:, None], -torch.inf)
        return torch.bincount(need.flatten().topk(width).indices // width, minlength=count)

    def _march(self) -> None:
        """Some queries one after another for samples with one slot each, until one breaks."""
        owner = self.owner
        rows, points, margin = self.rows[owner], self.points[owner], self.margin[owner]
        used, first = self.used[owner], self.at[owner]
        steps = min(_PLANNED, len(self.sides) - int(first.max()))
        query = first[:, None] + torch.arange(steps, device=owner.device)
        luck = self.luck[owner[:, None], query - self.since[owner][:, None]].double()
        for step in range(steps):
            asked = self._proposed(self.x, points, luck[:, step], query[:, step], self.ball, used)
            found = self.victim.margins(asked, rows, inside=True)
            better = (found < margin).nonzero()[:, 0]
            if len(better):
                points[better], margin[better] = asked[better], found[better]
                if self.power:
                    used[better] = _used(self.x[better], points[better], self.power)
                if bool((margin <= 0).any()):
                    break
        self.at[owner] += step + 1
        self.points[owner], self.margin[owner], self.used[owner] = points, margin, used

    def _guess(self) -> bool:
        """One batch of guesses, and what follows from the answers; whether a sample broke or nothing is left to ask."""
        owner, query, x, ball = self.owner, self.at[self.owner] + self.ahead, self.x, self.ball
        if self.ending:
            real = (query < len(self.sides)).nonzero()[:, 0]
            if not len(real):
                return True
            owner, query, x, ball = owner[real], query[real], x[real], ball[real]
        luck = self.luck[owner, query - self.since[owner]].double()
        asked = self._proposed(x, self.points[owner], luck, query, ball, self.used[owner])
        counted, won, margin = self.victim.race(asked, self.rows[owner], self.margin[owner])
        better = owner[won]
        self.at.index_add_(0, owner, counted)
        self.tried.mul_(_MEMORY).index_add_(0, owner, counted.to(self.tried.dtype))
        self.won.mul_(_MEMORY)[better] += 1
        self.points[better], self.margin[better] = asked[won], margin
        if self.power and len(won):
            self.used[better] = _used(x[won], asked[won], self.power)
        return bool((margin <= 0).any())

    def _proposed(self, x: Tensor, points: Tensor, luck: Tensor, query: Tensor, ball: Ball, used: Tensor) -> Tensor:
        """What the queries ask for; the sizes of squares may differ where the samples' paces do."""
        side = self.sides[query]
        if not self.power:
            return _stripe(x, points, luck, side, ball)
        sides = side.unique().tolist()
        if len(sides) == 1:
            return _bumps(x, points, luck, sides[0], ball, used)
        asked = torch.empty_like(points)
        for each in sides:
            of = (side == each).nonzero()[:, 0]
            asked[of] = _bumps(x[of], points[of], luck[of], each, ball[of], used[of])
        return asked

    def _deal(self, ahead: int) -> None:
        """Draw the numbers of every sample's next queries, for ``ahead`` of them and more, some blocks at once."""
        blocks = 1 + -(-ahead // _BLOCK) + min(14, 2 * self.victim.width // len(self.rows))
        since = self.at // _BLOCK
        step = (since[:, None] + torch.arange(blocks, device=since.device)).flatten() + self.first
        seeds = self.seeds[self.rows.repeat_interleave(blocks)]
        drawn = seeds.uniform("square", (_BLOCK, self.numbers), step=step)
        self.since, self.luck = since * _BLOCK, drawn.view(len(self.rows), -1, self.numbers)


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


def _corner(luck: Tensor, side: int | Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
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


def _stripe(x: Tensor, points: Tensor, luck: Tensor, side: int | Tensor, ball: Ball) -> Tensor:
    """One square per sample goes to the ball's edge, up or down per channel; ``side`` (n,) may differ by sample."""
    height, width = x.shape[-2:]
    first = torch.stack(_corner(luck, side, (height, width)), 1)
    place = torch.arange(max(height, width), device=x.device)
    last = first + (side[:, None] if isinstance(side, Tensor) else side)
    inside = ((place >= first[..., None]) & (place < last[..., None])).to(x.dtype)[:, None]
    change = (2 * _radius(ball) * _colours(luck[:, 2:])).to(x.dtype)[:, :, None, None]
    moved = (change * inside[:, :, 0, :height, None]) * inside[:, :, 1, None, :width]
    return torch.clamp(moved.add_(points), *ball.bounds(), out=moved)


def _used(x: Tensor, points: Tensor, power: int) -> Tensor:
    """Σ |points − x|^power over all features, (n, 1, 1) float64."""
    return _powers((points - x).flatten(2), power).sum(1, keepdim=True)


def _bumps(x: Tensor, points: Tensor, luck: Tensor, side: int, ball: Ball, used: Tensor) -> Tensor:
    """A square gets a bump and the budget of a second square, which is emptied, as well as what eps leaves.

    ``used`` (n, 1, 1) is what the points use of eps^power.
    """
    norm, eps, channels = ball.threat.norm, _radius(ball), x.shape[1]
    power = 2 if norm == "l2" else 1
    here, there = (_window(luck[:, k : k + 2], side, x) for k in (0, 2))
    delta = (points - x).flatten(2)
    old = delta.gather(2, here)
    delta.scatter_(2, here, 0)
    freed = _powers(old, power) + _powers(delta.gather(2, there), power)
    left = (freed + (eps**power - used).clamp_min(0) / channels) ** (1 / power) * (1 if norm == "l2" else channels)
    bump = _pattern(side, norm).to(x)
    bump = torch.stack([bump, bump.T]).flatten(1)[(luck[:, 4] > 0.5).long()][:, None] * _colours(luck[:, 5:])[:, :, None].to(
        x
    )
    new = bump + old / (1e-12 + _powers(old, power) ** (1 / power)).to(x)
    new = new * (left / (1e-12 + _powers(new, power) ** (1 / power))).to(x)
    delta.scatter_(2, there, 0).scatter_(2, here, new)
    if norm == "l1":
        return _placed(x, delta.view_as(x), ball)
    spent = used + (_powers(new, power) - freed).sum(1, keepdim=True)
    return _scaled(x, delta.view_as(x), spent.sqrt() + 1e-12, _radius(ball))


def _scaled(x: Tensor, delta: Tensor, length: Tensor, radius: float) -> Tensor:
    """x + delta, whose length is ``length`` (n, 1, 1), at full length; a little less, so that rounding keeps within eps."""
    slack = torch.finfo(x.dtype).eps * (math.sqrt(x[0].numel()) + 4 * radius) / 2
    reach = max(radius - slack, radius / 2)
    return delta.mul_((reach / length).to(x.dtype)[..., None]).add_(x).clamp_(0, 1)


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
