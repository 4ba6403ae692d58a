"""Short distances from decisions alone: along the boundary, by gradients that are estimated from signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.norms import distance, per_sample, steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

STARTS, MOST, HALVINGS = 100, 10_000, 30
"""Random images tried as start, directions per estimate at most, and halvings of a step at most."""


@facts(version=1, norms=("linf", "l2"), access="decision", randomness="per_sample")
def hop_skip_jump(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    queries: int = 1000,
    directions: int = 100,
    stop: bool = True,
) -> Tensor:
    """The nearest misclassified points that decisions lead to, (N, ...) in [0, 1]; what was nearest in eps elsewhere.

    Args:
        victim: The victim or a plain module; only its decisions are asked.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf or l2.
        seeds: Per-sample randomness of starts and directions.
        queries: Forward passes per sample at most; the threat's own limit holds too.
        directions: Directions of the first estimate; later ones take √t times as many.
        stop: A sample leaves with its first success within a finite eps.

    Raises:
        ConfigError: Fewer than two queries or one direction.

    Source: Chen et al., IEEE S&P 2020, algorithms 1 and 2; directions are no shorter than 2e-5 per feature, so that
    float32 can hold them.
    """
    limit = queries if threat.queries is None else min(queries, threat.queries)
    if limit < 2 or directions < 1:
        got = (limit, directions)
        raise ConfigError(must("queries and directions", "at least 2 and 1", got, "without them no boundary is found"))
    victim = as_victim(victim, x, y, threat)
    search = _Search(victim, seeds, limit=limit - 1, stop=stop and not math.isinf(threat.eps))
    rows = search.started()
    search.approach(rows)
    step = 0
    while len(rows := search.going(rows)):
        step += 1
        direction = search.direction(rows, count=min(int(directions * math.sqrt(step)), MOST), step=step)
        search.jump(rows, direction, step=step)
        search.approach(rows)
    return search.result()


class _Search:
    """Each sample's point on the far side of the boundary, its nearest success, and the queries it has left."""

    def __init__(self, victim: Victim, seeds: Draws, *, limit: int, stop: bool) -> None:
        self.victim, self.seeds, self.stop, self.norm = victim, seeds, stop, victim.threat.norm
        self.x, self.features = victim.x, victim.x[0].numel()
        self.left = torch.full((len(self.x),), limit, dtype=torch.int64, device=self.x.device)
        self.points, self.nearest = self.x.clone(), self.x.clone()
        self.shortest = torch.full((len(self.x),), torch.inf, dtype=torch.float64, device=self.x.device)

    def may(self, rows: Tensor) -> Tensor:
        """Whether each of the rows may still ask, bool (n,)."""
        return (self.left[rows] > 0) & ~(self.victim.broken[rows] & self.stop)

    def going(self, rows: Tensor) -> Tensor:
        """Those of the rows that may still ask."""
        return rows[self.may(rows)]

    def ask(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether each point is misclassified, (n,); the nearest such point is kept."""
        self.left[rows] -= 1
        wrong = self.victim.misclassified(points, rows)
        far = distance(self.x[rows], points, self.norm)
        better = wrong & (far < self.shortest[rows])
        self.nearest[rows[better]], self.shortest[rows[better]] = points[better], far[better]
        return wrong

    def started(self) -> Tensor:
        """Positions of the samples for which a misclassified random image was found."""
        rows = missing = self.victim.alive()
        for step in range(STARTS):
            missing = self.going(missing)
            if not len(missing):
                break
            points = self.seeds[missing].uniform("hop.start", self.x.shape[1:], step=step).to(self.x.dtype)
            wrong = self.ask(points, missing)
            self.points[missing[wrong]] = points[wrong]
            missing = missing[~wrong]
        return rows[self.shortest[rows].isfinite()]

    def approach(self, rows: Tensor) -> None:
        """Bisect between x and the points, to the boundary's far side."""
        high = distance(self.x[rows], self.points[rows], self.norm)
        high = torch.ones_like(high) if self.norm == "l2" else high
        low, far = torch.zeros_like(high), self.points[rows]
        close = high * max(1 / (self.features * math.sqrt(self.features)), 1e-6)
        part = torch.arange(len(rows), device=rows.device)
        while True:
            part = part[(high - low)[part] > close[part]]
            part = part[self.may(rows[part])]
            if not len(part):
                break
            middle = (low[part] + high[part]) / 2
            points = self._between(rows[part], far[part], middle)
            wrong = self.ask(points, rows[part])
            self.points[rows[part[wrong]]] = points[wrong]
            high[part] = torch.where(wrong, middle, high[part])
            low[part] = torch.where(wrong, low[part], middle)

    def _between(self, rows: Tensor, far: Tensor, at: Tensor) -> Tensor:
        x, at = self.x[rows], per_sample(at.to(self.x.dtype), far)
        if self.norm == "l2":
            return (x + at * (far - x)).clamp(0, 1)
        return torch.minimum(torch.maximum(far, x - at), x + at).clamp(0, 1)

    def direction(self, rows: Tensor, *, count: int, step: int) -> Tensor:
        """Unit steps away from the label, (n, ...): signs of decisions around the points, less their mean."""
        x = self.points[rows]
        reach = distance(self.x[rows], x, self.norm).to(x.dtype) / self.features
        reach = per_sample(reach.clamp_min(2e-5 * math.sqrt(self.features)), x)
        sums, signed, balance, asked = (torch.zeros_like(x) for _ in range(4))
        part = torch.arange(len(rows), device=rows.device)
        for number in range(count):
            part = part[self.may(rows[part])]
            if not len(part):
                break
            drawn = self._drawn(rows[part], step * MOST + number)
            points = (x[part] + reach[part] * drawn).clamp(0, 1)
            sign = per_sample(self.ask(points, rows[part]).to(x.dtype) * 2 - 1, x)
            moved = (points - x[part]) / reach[part]
            sums[part], signed[part] = sums[part] + moved, signed[part] + sign * moved
            balance[part], asked[part] = balance[part] + sign, asked[part] + 1
        mean = balance / asked.clamp_min(1)
        alike = mean.abs() == 1
        return steepest(torch.where(alike, mean * sums, signed - mean * sums), self.norm)

    def _drawn(self, rows: Tensor, step: int) -> Tensor:
        """Random directions of unit l2 norm: of a Gaussian, or for linf of a cube."""
        shape, seeds = self.x.shape[1:], self.seeds[rows]
        if self.norm == "l2":
            return steepest(seeds.normal("hop.direction", shape, step=step).to(self.x.dtype), "l2")
        return steepest(seeds.uniform("hop.direction", shape, step=step).to(self.x.dtype) * 2 - 1, "l2")

    def jump(self, rows: Tensor, direction: Tensor, *, step: int) -> None:
        """Step along the direction, half as far each time that the label comes back."""
        start = self.points[rows]
        size = distance(self.x[rows], start, self.norm).to(start.dtype) / math.sqrt(step)
        part = torch.arange(len(rows), device=rows.device)
        for _ in range(HALVINGS):
            part = part[self.may(rows[part])]
            if not len(part):
                break
            points = (start[part] + per_sample(size[part], start) * direction[part]).clamp(0, 1)
            wrong = self.ask(points, rows[part])
            self.points[rows[part[wrong]]] = points[wrong]
            size[part] = size[part] / 2
            part = part[~wrong]

    def result(self) -> Tensor:
        """The nearest successes within eps; where there is none, the nearest one's projection is asked with a last query."""
        within = self.victim.ball.contains(self.nearest) & self.shortest.isfinite()
        rows = (~within & self.shortest.isfinite() & ~self.victim.broken).nonzero()[:, 0]
        if len(rows):
            self.ask(self.victim.ball[rows].project(self.nearest[rows]), rows)
        within = self.victim.ball.contains(self.nearest) & self.shortest.isfinite()
        return torch.where(per_sample(within, self.x), self.nearest, self.victim.result())
