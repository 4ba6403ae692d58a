"""What APGD does differently in l1: the projection onto ball and box at once, and steps along few features."""

from __future__ import annotations

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
    cut = _threshold(size, (size - room).clamp_min(0), capped.sum(1), ball.threat.eps)
    moved = delta.sign() * torch.minimum((size - cut[:, None]).clamp_min(0), room)
    inside = capped.sum(1) <= ball.threat.eps
    return torch.where(per_sample(inside, points), points, _added(ball.x, moved.view_as(points))).clamp(0, 1)


def _added(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in the images' own precision, features rounded towards x; what rounding errors left of a step is dropped.

    Signed steps of equal sizes often bring a feature exactly back to x; it must not count as changed then.
    """
    delta = torch.where(delta.abs() > 8 * torch.finfo(x.dtype).eps, delta, 0.0)
    moved = (x.double() + delta).to(x.dtype)
    over = (moved.double() - x.double()).abs() > delta.abs()
    return torch.where(over, torch.nextafter(moved, x), moved)


def _threshold(size: Tensor, free: Tensor, total: Tensor, eps: float) -> Tensor:
    """The t at which the sum of size - max(t, free) over the features with size > t is eps, (N,).

    The sum falls piecewise linearly: a feature joins the fall at ``free`` and is used up at ``size``.
    """
    times, order = torch.cat([free, size], 1).sort(dim=1, stable=True)
    slope = torch.where(order < size.shape[1], -1.0, 1.0).to(size.dtype).cumsum(1)
    fall = (slope[:, :-1] * times.diff(dim=1)).cumsum(1)
    left = torch.cat([total[:, None], total[:, None] + fall], 1)
    last = ((left >= eps).sum(1, keepdim=True) - 1).clamp_min(0)
    rest = (left.gather(1, last) - eps) / slope.gather(1, last).clamp_max(-1).abs()
    return (times.gather(1, last) + rest.clamp_min(0))[:, 0]


def sparse_step(gradient: Tensor, share: Tensor) -> Tensor:
    """Signs of the ``share`` (N,) of features with the highest gradients, of unit l1 norm, (N, ...).

    Source: Croce & Hein, ICML 2021, section 3.2.
    """
    height = gradient.abs().flatten(1)
    count = height.shape[1]
    index = ((1 - share) * count).clamp(0, count - 1).long()
    least = height.sort(dim=1).values.gather(1, index[:, None])[:, 0]
    sign = gradient.sign() * (gradient.abs() >= per_sample(least, gradient))
    return sign / per_sample(changed(sign).clamp_min(1), sign)


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
