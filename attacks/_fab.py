"""Fast adaptive boundary: the nearest point of a linearised decision boundary, over and over, with a pull towards x."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.attacks._minimal import Closest, size
from robench.errors import ConfigError, must
from robench.inference import chunks
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(points, rows) → margins (n,), height above the boundary's plane (n,) and the plane's normal (n, d)."""

_RADIUS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""Reach of a random start where neither the threat nor a success bounds it."""


@facts(version=2, norms=("linf", "l2", "l1"), access="white", randomness="per_sample")
def fab(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    stop: bool = True,
) -> Tensor:
    """The nearest misclassified point found by untargeted FAB, (N, ...) in [0, 1]; the best guess where none is in reach.

    A step costs two forward passes, as a misclassified point goes back before its gradient is asked for, and one backward
    pass per class that is looked at; besides, one forward pass for the clean logits.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf, l2 or l1; with eps ``inf`` nothing stops early and the smallest distance counts.
        seeds: Per-sample randomness of the starts after the first, which is x.
        steps: Steps per restart.
        restarts: Runs, the first from x, the others from random points within half of eps.
        targets: Look only at that many of the wrong classes, the highest of the clean logits; 0 is all.
        alpha_max: Largest weight of the projection of x itself.
        eta: Overshoot beyond the plane.
        beta: A misclassified point goes back to x + beta·(point − x).
        stop: A sample leaves at its first success in the ball.

    Raises:
        ConfigError: A norm, a count or a factor that FAB cannot use.

    Source: Croce & Hein, ICML 2020 (Minimally distorted adversarial examples), algorithm 1.
    """
    told = _Told(steps, restarts, alpha_max, eta, beta, stop and math.isfinite(threat.eps))
    _require(told, threat, targets, least=0)
    victim = as_victim(victim, x, y, threat)
    book = Closest(victim)
    rows, order = _ranked(victim, book, told)
    wrong = order[:, :targets] if targets else order.sort(1).values
    _runs(victim, book, _nearest_class(victim, wrong), rows, seeds, told)
    return book.result()


@facts(version=3, norms=("linf", "l2", "l1"), access="white", randomness="per_sample")
def fab_t(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    stop: bool = True,
    together: int = 1,
    shortcut: float = 0.0,
) -> Tensor:
    """The nearest misclassified point found by targeted FAB, (N, ...) in [0, 1]; the best guess where none is in reach.

    One run per target, the highest wrong class of the clean logits first; any misclassification is a success. A step
    costs two forward passes and a backward pass; besides, one forward pass for the clean logits. A victim's own target is
    the only one where it has one.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf, l2 or l1; with eps ``inf`` nothing stops early and the smallest distance counts.
        seeds: Per-sample randomness of the starts after the first, which is x.
        steps: Steps per run.
        restarts: Runs per target, the first from x, the others from random points within half of eps.
        targets: Wrong classes to aim at; fewer classes are all aimed at.
        alpha_max: As in ``fab``.
        eta: As in ``fab``.
        beta: As in ``fab``.
        stop: A sample leaves at its first success in the ball.
        together: Targets that are run at the same time, which fills batches when few samples are left.
        shortcut: In [0, 1). A misclassified point is tried at x + shortcut·(point − x), too, and goes on from there where
            that is misclassified as well: one forward pass more. The first point is often ten times as far as the
            boundary, from where ``beta`` alone takes twenty steps. 0 does without.

    Raises:
        ConfigError: A norm, a count or a factor that FAB cannot use.

    Source: Croce & Hein, ICML 2020 (Minimally distorted adversarial examples), section 3.4; targets as in AutoAttack.
    """
    told = _Told(steps, restarts, alpha_max, eta, beta, stop and math.isfinite(threat.eps), shortcut)
    _require(told, threat, targets, least=1, together=together)
    victim = as_victim(victim, x, y, threat)
    book = Closest(victim)
    rows, order = _ranked(victim, book, told)
    for group in torch.arange(min(targets, order.shape[1]), device=x.device).split(together):
        rows = rows[_open(victim, book, rows, told)]
        if not len(rows):
            break
        copies, target = rows.repeat(len(group)), order[rows][:, group].T.flatten()
        part, draws = victim.part(copies, target=target), seeds[copies]
        own, number = book.part(part), group.repeat_interleave(len(rows))
        _runs(part, own, _targeted(part), torch.arange(len(copies), device=rows.device), draws, told, target=number)
        for points, found in zip(own.points.split(len(rows)), own.distance.split(len(rows)), strict=True):
            book.book(points, rows, found.isfinite())
        victim.absorb(part)
    return book.result()


@dataclass(frozen=True)
class _Told:
    steps: int
    restarts: int
    alpha_max: float
    eta: float
    beta: float
    stop: bool
    shortcut: float = 0.0


def _require(told: _Told, threat: ThreatModel, targets: int, *, least: int, together: int = 1) -> None:
    if threat.norm not in _RADIUS:
        raise ConfigError(must("FAB's norm", "linf, l2 or l1", threat.norm, "choose another attack"))
    if told.steps < 1 or told.restarts < 1 or targets < least:
        got = (told.steps, told.restarts, targets)
        raise ConfigError(must("steps, restarts and targets", f"at least 1, 1 and {least}", got, "else nothing is attacked"))
    if together < 1:
        raise ConfigError(must("together", "at least 1", together, "1 runs one target after the other"))
    if not (0 <= told.alpha_max <= 1 and told.eta > 0 and 0 < told.beta <= 1):
        got_factors = (told.alpha_max, told.eta, told.beta)
        remedy = "the paper's are 0.1, 1.05 and 0.9"
        raise ConfigError(must("alpha_max, eta and beta", "in [0, 1], above 0 and in (0, 1]", got_factors, remedy))
    if not 0 <= told.shortcut < 1:
        raise ConfigError(must("shortcut", "in [0, 1)", told.shortcut, "0 does without"))


def _ranked(victim: Victim, book: Closest, told: _Told) -> tuple[Tensor, Tensor]:
    """Rows to attack, and the wrong classes (N, K - 1) in falling order of their clean logits; one forward pass.

    Without an early stop the samples that another attack broke are attacked too, for the sake of their distance.
    """
    rows = victim.alive() if told.stop else torch.arange(len(victim.x), device=victim.x.device)
    if not len(rows):
        return rows, rows.new_zeros(len(victim.x), 0)
    logits = victim.logits(victim.x[rows], rows)
    y = victim.y[rows]
    book.book(victim.x[rows], rows, victim.task.margin(logits, y) <= 0)
    falling = logits.scatter(1, y[:, None], -torch.inf).sort(dim=1, descending=True, stable=True).indices
    wrong = falling[falling != y[:, None]].reshape(len(rows), -1) if victim.target is None else victim.target[rows][:, None]
    order = rows.new_zeros(len(victim.x), wrong.shape[1])
    order[rows] = wrong
    return rows[_open(victim, book, rows, told)], order


def _open(victim: Victim, book: Closest, rows: Tensor, told: _Told) -> Tensor:
    """Whether each row still has something to gain, bool (n,)."""
    return (book.distance[rows] > 0) & ~(victim.broken[rows] & told.stop)


def _targeted(victim: Victim) -> Look:
    def look(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = victim.gradient(points, rows, "margin")
        return found.margin, found.loss, found.gradient.flatten(1)

    return look


def _nearest_class(victim: Victim, wrong: Tensor) -> Look:
    """The plane of the wrong class whose plane is nearest; one batch's gradients at a time are held."""

    def one(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, gradients = victim.class_gradients(points, rows, wrong[rows])
        normals = gradients.flatten(2)
        heights = outputs.gather(1, wrong[rows]) - outputs.gather(1, victim.y[rows][:, None])
        far = heights.abs() / (1e-12 + _dual(normals.flatten(0, 1), victim.threat.norm).view_as(heights))
        nearest = far.argmin(1)
        each = torch.arange(len(rows), device=rows.device)
        return victim.task.margin(outputs, victim.y[rows]), heights[each, nearest], normals[each, nearest]

    def look(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [one(points[a:b], rows[a:b]) for a, b in chunks(len(rows), victim.width)]
        margin, height, normal = (torch.cat(column) for column in zip(*parts, strict=True))
        return margin, height, normal

    return look


def _runs(
    victim: Victim, book: Closest, look: Look, rows: Tensor, seeds: Draws, told: _Told, *, target: Tensor | None = None
) -> None:
    """All restarts; ``target`` (N,) tells the targets of one sample apart, so that each has starts of its own."""
    number = torch.zeros_like(victim.parents) if target is None else target
    for restart in range(told.restarts):
        rows = rows[_open(victim, book, rows, told)]
        if len(rows):
            step = number[rows] * told.restarts + restart
            points = _start(victim, book, rows, seeds[rows], step=step) if restart else victim.x[rows]
            _run(victim, book, look, rows, points, told)


def _start(victim: Victim, book: Closest, rows: Tensor, draws: Draws, *, step: Tensor) -> Tensor:
    """A random direction at half of eps, or of the smallest distance found where that is less, clipped to the box."""
    x, norm = victim.x[rows], victim.threat.norm
    if norm == "linf":
        noise = draws.uniform("fab.start", x.shape[1:], step=step).double() * 2 - 1
    else:
        noise = draws.normal("fab.start", x.shape[1:], step=step).double()
    eps = victim.threat.eps if math.isfinite(victim.threat.eps) else _RADIUS[norm]
    reach = 0.5 * book.distance[rows].clamp(max=eps) / size(noise.flatten(1), norm).clamp_min(1e-12)
    return (x.double() + noise * per_sample(reach, noise)).clamp(0, 1).to(x.dtype)


def _run(victim: Victim, book: Closest, look: Look, rows: Tensor, points: Tensor, told: _Told) -> None:
    """One descent; every point that is queried is booked."""
    for _ in range(told.steps):
        if not len(rows):
            return
        margin, height, normal = look(points, rows)
        book.book(points, rows, margin <= 0)
        keep = _open(victim, book, rows, told)
        rows, points, margin, height, normal = (v[keep] for v in (rows, points, margin, height, normal))
        if len(rows):
            points = _moved(victim.x[rows], points, height, normal, told=told, norm=victim.threat.norm)
            rows, points = _checked(victim, book, rows, points, told)


def _checked(victim: Victim, book: Closest, rows: Tensor, points: Tensor, told: _Told) -> tuple[Tensor, Tensor]:
    """Rows that go on and their points, misclassified ones on their way back; one forward pass, two with a shortcut."""
    margin = victim.margins(points, rows)
    book.book(points, rows, margin <= 0)
    if told.shortcut:
        points = _shortened(victim, book, rows, points, margin <= 0, told)
    keep = _open(victim, book, rows, told)
    rows, points = rows[keep], points[keep]
    x = victim.x[rows]
    return rows, torch.where(per_sample(margin[keep] <= 0, x), x + (points - x) * told.beta, points)


def _shortened(victim: Victim, book: Closest, rows: Tensor, points: Tensor, wrong: Tensor, told: _Told) -> Tensor:
    """The points, those of them that are ``wrong``, bool (n,), much nearer to x where they are misclassified there, too."""
    tried = (wrong & _open(victim, book, rows, told)).nonzero()[:, 0]
    if not len(tried):
        return points
    x = victim.x[rows[tried]]
    nearer = x + (points[tried] - x) * told.shortcut
    holds = victim.margins(nearer, rows[tried]) <= 0
    book.book(nearer, rows[tried], holds)
    return points.index_copy(0, tried[holds], nearer[holds])


def _moved(x: Tensor, points: Tensor, height: Tensor, normal: Tensor, *, told: _Told, norm: str) -> Tensor:
    """The next points; ``height`` and ``normal`` were taken at ``points``. A non-finite result stays behind."""
    normal = normal.nan_to_num(0, 0, 0)
    both = torch.cat([points, x]).flatten(1)
    above = height.double()
    heights = torch.cat([above, above + row_sums(normal * (x - points).flatten(1))])
    step = crossing(both, normal, heights, norm)
    reach = size(step, norm).clamp_min(1e-8)
    share = (reach[: len(x)] / (reach[: len(x)] + reach[len(x) :])).clamp(0, told.alpha_max)[:, None].to(x.dtype)
    ends = both + told.eta * step
    moved = (ends[: len(x)] * (1 - share) + ends[len(x) :] * share).clamp(0, 1).to(x.dtype).view_as(x)
    return torch.where(moved.isfinite(), moved, points)


def crossing(points: Tensor, normal: Tensor, height: Tensor, norm: str) -> Tensor:
    """The smallest move within the box onto a plane, (M, d); to the box's nearest corner where the plane misses the box.

    Args:
        points: (M, d) in [0, 1].
        normal: The plane's normal, (M, d); a move m changes the height by normal·m. Zero entries are not moved. Where the
            points are several blocks with the same normals, those of one block are enough.
        height: Signed height of the points above the plane, (M,); the move's aim is 0.
        norm: ``linf``, ``l2`` or ``l1``, the length that is smallest.

    Source: Croce & Hein, ICML 2020 (Minimally distorted adversarial examples), section 3.1 and appendix A.
    """
    blocks = len(points) // max(1, len(normal))
    every = normal.repeat(blocks, 1)
    down = torch.where((height >= 0)[:, None], -every.sign(), every.sign())
    weight, room = every.abs(), torch.where(down > 0, 1 - points, points)
    if norm == "l1":
        order = normal.abs().sort(dim=1, descending=True, stable=True).indices.repeat(blocks, 1)
        move = _dearest(weight, room, height.abs(), order)
    else:
        move = _level(weight, room, height.abs(), even=norm == "linf")
    return torch.where(weight > 0, move, 0) * down


def _level(weight: Tensor, room: Tensor, need: Tensor, *, even: bool) -> Tensor:
    """min(λ·q, room) with Σ weight·min(λ·q, room) = need, q = 1 (``even``) or the weight.

    The sum is piecewise linear and concave in λ, so that Newton's method from 0 never passes the solution, and ends at it
    exactly once it stands on the right piece. Samples that have arrived leave, when they are half of those under way.
    """
    rate = torch.ones_like(weight) if even else weight
    breaks = room * weight.sign() if even else (room / weight).nan_to_num_(0, 0, 0)  # a weight of 0 gains nothing
    ends, level, rows = need.new_zeros(len(need)), need.new_zeros(len(need)), torch.arange(len(need), device=need.device)
    gain, slope, known = weight * room, weight * rate, torch.full_like(need, -1)
    while len(rows):
        free = (breaks > level.to(breaks.dtype)[:, None]).to(gain.dtype)
        count = free.sum(1).double()  # exact in any order; the level only rises, so that the same count is the same piece
        ends[rows] = level
        under_way = count != known
        if 2 * int(under_way.sum()) <= len(rows):
            kept = (rows, breaks, gain, slope, free, need, level, count)
            rows, breaks, gain, slope, free, need, level, count = (v[under_way] for v in kept)
        reached = (need - row_sums(gain - gain * free)) / row_sums(slope * free)
        level, known = torch.where(count > 0, reached.maximum(level), torch.inf), count
    return torch.minimum(ends[:, None].to(rate.dtype) * rate, room)


def _dearest(weight: Tensor, room: Tensor, need: Tensor, order: Tensor) -> Tensor:
    """Moves Σ weight·size = need that fill the heaviest features first; ``order`` is theirs, (M, d)."""
    heavy, space = weight.gather(1, order), room.gather(1, order)
    gain = heavy * space
    used = (need[:, None] - (gain.cumsum(1, dtype=torch.float64) - gain)).clamp_min(0).to(gain.dtype)
    size = torch.where(used < gain, used / heavy, space)
    return torch.empty_like(size).scatter(1, order, size)


def _dual(normals: Tensor, norm: str) -> Tensor:
    return size(normals.double(), {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])
