"""Distances, balls and steps of the Lp threat models: every projection and distance is written here, once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.spec import ThreatModel


def tolerance(eps: float) -> float:
    """Slack of the judge's distance check: 1e-6·max(1, eps); infinite for an unbounded threat."""
    return 1e-6 * max(1.0, eps)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over ``like`` (N, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def distance(x: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """Distance of each pair in float64, shape (N,); ``l0`` counts changed features."""
    delta = (x_adv.double() - x.double()).flatten(1)
    if norm == "l0":
        return (delta != 0).sum(1).double()
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(delta, order, dim=1)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """Direction of steepest ascent of unit norm: the sign for linf, g/‖g‖ for l2; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    size = torch.linalg.vector_norm(gradient.flatten(1), 2, dim=1)
    return gradient / per_sample(size.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)


def dual_size(gradient: Tensor, norm: str) -> Tensor:
    """Dual norm of each gradient, (N,): how much the loss can grow per unit of the threat's norm."""
    order = {"linf": 1, "l2": 2, "l1": math.inf, "l0": math.inf}[norm]
    return torch.linalg.vector_norm(gradient.flatten(1), order, dim=1)


@dataclass(frozen=True)
class Ball:
    """The points within ``eps`` of ``x`` and within the box [0, 1]; projections meet eps exactly after casting."""

    x: Tensor
    """Centres, (N, ...), in [0, 1]."""
    threat: ThreatModel

    def __getitem__(self, rows: Tensor) -> Ball:
        part = Ball(self.x[rows], self.threat)
        if self.threat.norm == "linf":
            part.__dict__["_bounds"] = tuple(b[rows] for b in self._bounds)
        return part

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest float values that lie within eps of x and in [0, 1] (linf)."""
        centre, eps = self.x.double(), min(self.threat.eps, 1.0)
        edges = []
        for exact in (centre - eps, centre + eps):
            edge = exact.to(self.x.dtype)
            over = (edge.double() - centre).abs() > eps
            edges.append(torch.where(over, torch.nextafter(edge, self.x), edge).clamp(0, 1))
        return edges[0], edges[1]

    def contains(self, points: Tensor) -> Tensor:
        """Whether each point is finite, in the box and within eps (judge's tolerance), bool (N,)."""
        flat = points.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        if math.isinf(self.threat.eps):
            return inside
        return inside & (distance(self.x, points, self.threat.norm) <= self.threat.eps + tolerance(self.threat.eps))

    def project(self, points: Tensor) -> Tensor:
        """Nearest point of the ball (then of the box), (N, ...); points inside are untouched.

        Source: linf and l2 in closed form; l1 by Duchi et al., ICML 2008, figure 1; l0 keeps the largest changes.
        """
        if self.threat.norm == "linf":
            low, high = self._bounds
            return torch.clamp(points, low, high)
        if math.isinf(self.threat.eps):
            return points.clamp(0, 1)
        delta = points.double() - self.x.double()
        shrunk = {"l2": _shrink_l2, "l1": _shrink_l1, "l0": _shrink_l0}[self.threat.norm](delta.flatten(1), self.threat.eps)
        outside = distance(self.x, points, self.threat.norm) > self.threat.eps
        return torch.where(per_sample(outside, points), self._moved(shrunk.view_as(delta)), points).clamp(0, 1)

    def confine(self, points: Tensor) -> Tensor:
        """``project`` for search loops (linf, l2): in place and in the points' own precision, (N, ...).

        In l2 it stops a few units of rounding inside eps; to meet it exactly, ``project`` what is given away in the end.
        """
        if self.threat.norm == "linf":
            low, high = self._bounds
            return torch.clamp(points, low, high, out=points)
        return confine_l2(points, self.x, self.threat.eps)

    def start(self, draws: Draws, stage: str, *, step: int | Tensor = 0) -> Tensor:
        """A random point to search from, (N, ...): in l2 on the sphere within the box, else as ``random`` has it."""
        if self.threat.norm != "l2":
            return self.random(draws, stage, step=step)
        direction = draws.normal(stage, self.x.shape[1:], step=step)
        return self.confine(sphere(self.x, direction, self.threat.eps))

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest values in the ball and in the box (linf), (N, ...) each."""
        return self._bounds

    def _moved(self, delta: Tensor) -> Tensor:
        """x + delta in the images' own precision, every feature rounded towards x so that no norm grows."""
        reach = delta if self.threat.norm == "l0" else delta * (1 - 1e-12)
        moved = (self.x.double() + reach).to(self.x.dtype)
        over = (moved.double() - self.x.double()).abs() > reach.abs()
        return torch.where(over, torch.nextafter(moved, self.x), moved)

    def random(self, draws: Draws, stage: str, *, step: int | Tensor = 0) -> Tensor:
        """A random point of the ball, (N, ...): uniform in linf; random direction and radius otherwise."""
        shape = self.x.shape[1:]
        if self.threat.norm == "linf":
            noise = draws.uniform(stage, shape, step=step).to(self.x.dtype) * 2 - 1
            return self.project(self.x + noise * min(self.threat.eps, 1.0))
        size = math.prod(shape)
        direction = steepest(draws.normal(stage, shape, step=step).to(self.x.dtype), "l2")
        if self.threat.norm == "l0":
            return self.project(self.x + direction * math.sqrt(size))
        luck = draws.uniform(f"{stage}.radius", (1,), step=step)[:, 0].double()
        # in float64, because the last bit of a power depends on where in a batch its sample stands
        radius = (luck ** (1 / size) * min(self.threat.eps, math.sqrt(size))).to(self.x.dtype)
        return self.project(self.x + direction * per_sample(radius, direction))


def sphere(centre: Tensor, direction: Tensor, eps: float) -> Tensor:
    """The point where a ray from the centre, cut off feature by feature at the box's faces, is ``eps`` away in l2, (N, ...).

    A random point of the sphere that is clipped to the box loses about half of its distance where most pixels are black
    or white. Where the box ends before the sphere, the ray's last corner is returned.

    Args:
        centre: (N, ...), in [0, 1].
        direction: (N, ...), of any length; zero entries are not moved.
        eps: Distance, may be infinite.
    """
    steep = direction.double().flatten(1)
    flat = centre.double().flatten(1)
    rate, room = steep.square(), torch.where(steep > 0, 1 - flat, flat).square().masked_fill(steep == 0, 0)
    square, free = torch.zeros(len(flat), dtype=torch.float64, device=flat.device), room > 0
    while bool(free.any()):
        # Newton's method on a concave, piecewise linear sum: it passes no solution, and ends on the right piece
        used = row_sums(room.masked_fill(free, 0))
        reached = ((eps**2 - used) / row_sums(rate.masked_fill(~free, 0))).nan_to_num(torch.inf, torch.inf)
        square = torch.where(free.any(1), reached.maximum(square), square)
        left = free & (room > rate * square[:, None])
        if bool((left == free).all()):
            break
        free = left
    length = torch.minimum(rate * square[:, None], room).where(room > 0, 0).sqrt()
    return (flat + steep.sign() * length).view_as(centre).to(centre.dtype).clamp(0, 1)


def confine_l2(points: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    """Pull points (N, ...) in place to within eps, one or (N,), of the centre, less some rounding, then into the box.

    Adding the centre rounds every feature by up to half a unit of 1, at random, and so the distance by that much at the
    most and by its share of the distance on average.
    """
    delta = points.sub_(centre)
    size = torch.linalg.vector_norm(delta.flatten(1), 2, dim=1, dtype=torch.float64)
    unit = torch.finfo(delta.dtype).eps
    shrink = (eps * (1 - 16 * unit) / size.clamp_min(1e-300)).clamp(max=1).to(delta.dtype)
    return delta.mul_(per_sample(shrink, delta)).add_(centre).clamp_(0, 1)


def _shrink_l2(delta: Tensor, eps: float) -> Tensor:
    size = torch.linalg.vector_norm(delta, 2, dim=1, keepdim=True)
    return delta * (eps / size.clamp_min(1e-300)).clamp(max=1)


def _shrink_l1(delta: Tensor, eps: float) -> Tensor:
    ordered = delta.abs().sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - eps) / torch.arange(1, delta.shape[1] + 1, device=delta.device)
    kept = (ordered > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = excess.gather(1, kept - 1).clamp_min(0)
    return delta.sign() * (delta.abs() - threshold).clamp_min(0)


def _shrink_l0(delta: Tensor, eps: float) -> Tensor:
    kept = delta.abs().topk(min(int(eps), delta.shape[1]), dim=1).indices
    return torch.zeros_like(delta).scatter(1, kept, delta.gather(1, kept))
