"""What APGD does differently in l1: the projection onto ball and box at once, and steps along few features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robench.ops.norms import Ball, per_sample


def project_l1(ball: Ball, points: Tensor) -> Tensor:
    """Nearest points that lie in the l1 ball and in the box at once, (N, ...); points inside are untouched.

    Ball and box one after the other would not be the nearest, and would waste budget on features that cannot move.

    Args:
        ball: An l1 ball; eps may be infinite.
        points: Points (N, ...), anywhere.

    Source: Croce & Hein, ICML 2021 (l1-APGD), section 3.1, proposition 3.1.
    """
    centre = ball.x.double().flatten(1)
    delta = points.double().flatten(1) - centre
    size, room = delta.abs(), torch.where(delta > 0, 1 - centre, centre)
    capped = torch.minimum(size, room)
    inside = capped.sum(1) <= ball.threat.eps
    cut = _threshold(size, (size - room).clamp_min(0), ball.threat.eps)
    moved = delta.sign() * torch.minimum((size - cut[:, None]).clamp_min(0), room)
    return torch.where(per_sample(inside, points), points, _added(ball.x, moved.view_as(points))).clamp(0, 1)


def _added(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in the images' own precision, features rounded towards x; what rounding errors left of a step is dropped.

    Signed steps of equal sizes often bring a feature exactly back to x; it must not count as changed then.
    """
    delta = torch.where(delta.abs() > 8 * torch.finfo(x.dtype).eps, delta, 0.0)
    moved = (x.double() + delta).to(x.dtype)
    over = (moved.double() - x.double()).abs() > delta.abs()
    return torch.where(over, torch.nextafter(moved, x), moved)


def _threshold(size: Tensor, free: Tensor, eps: float) -> Tensor:
    """The t >= 0 at which the sum of size - max(t, free) over the features with size > t is eps, (N,); 0 where it is less.

    The sum falls piecewise linearly, by what sorted sizes and sorted ``free`` tell: Newton's steps, and where one leaves
    what is still possible, the middle of that. The last step, on the right piece, is exact.
    """
    falls, starts = _Above(size), _Above(free)
    at = low = torch.zeros(len(size), dtype=size.dtype, device=size.device)
    high = size.amax(1)
    for _ in range(_MOST_STEPS):
        (total, count), (rest, still) = falls(at), starts(at)
        moving = count - still
        over = total - rest - moving * at - eps
        low, high = torch.where(over > 0, at, low), torch.where(over > 0, high, at)
        there = (over.abs() <= 100 * _CLOSE * eps) | (high - low <= _CLOSE * high)
        if bool(there.all()):
            break
        exact = (total - rest - eps) / moving.clamp_min(1)
        new = torch.where((moving > 0) & (exact > low) & (exact < high), exact, (low + high) / 2)
        at = torch.where(there, at, new)
    return at


_MOST_STEPS, _CLOSE = 64, 1e-15
"""Steps in which bisection alone reaches the rounding of float64, and the relative distance that ends them."""


class _Above:
    """Values (N, d), ready to tell how many of each row lie above a bound, and their sum."""

    def __init__(self, values: Tensor) -> None:
        self.values = _rising(values)
        sums = self.values.flip(1).cumsum(1).flip(1)
        self.sums = torch.cat([sums, torch.zeros_like(sums[:, :1])], 1)

    def __call__(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number (N,) of the values above ``bound`` (N,)."""
        first = torch.searchsorted(self.values, bound[:, None], right=True)
        return self.sums.gather(1, first)[:, 0], (self.values.shape[1] - first)[:, 0]


def sparse_step(gradient: Tensor, share: Tensor) -> Tensor:
    """Signs of the ``share`` (N,) of features with the highest gradients, of unit l1 norm, (N, ...).

    Source: Croce & Hein, ICML 2021, section 3.2.
    """
    height = gradient.abs().flatten(1)
    count = height.shape[1]
    index = ((1 - share) * count).clamp(0, count - 1).long()
    least = _rising(height).gather(1, index[:, None])[:, 0]
    sign = gradient.sign() * (gradient.abs() >= per_sample(least, gradient))
    return sign / per_sample(changed(sign).clamp_min(1), sign)


def _rising(values: Tensor) -> Tensor:
    """The values (N, d) of each row in rising order; NumPy's sort of bare values is some 20 times as fast as torch's."""
    if values.device.type == "cpu" and not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def vertex(ball: Ball, gradient: Tensor) -> Tensor:
    """The point of the l1 ball and the box where a linear function with this gradient is highest, (N, ...).

    The budget goes to the features of the highest gradients, each as far as the box lets it go.
    """
    centre = ball.x.double().flatten(1)
    slope = gradient.double().flatten(1)
    order = slope.abs().argsort(dim=1, descending=True, stable=True)
    room = torch.where(slope > 0, 1 - centre, centre) * (slope != 0)
    spent = room.gather(1, order).cumsum(1).clamp_max(ball.threat.eps)
    spent = spent.diff(dim=1, prepend=torch.zeros_like(spent[:, :1]))
    delta = slope.sign() * torch.zeros_like(spent).scatter(1, order, spent)
    return _added(ball.x, delta.view_as(ball.x)).clamp(0, 1)


def changed(delta: Tensor) -> Tensor:
    """Number of features that are not zero, int64 (N,)."""
    return (delta != 0).flatten(1).sum(1)
