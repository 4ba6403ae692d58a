"""Auto-PGD: projected gradient ascent with momentum whose step sizes follow the run's own progress."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from robench.attacks._apgd_l1 import changed, project_l1, sparse_step, vertex
from robench.errors import ConfigError, must, suggestion
from robench.ops.norms import Ball, per_sample, steepest
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

_NORMS = ("linf", "l2", "l1")
_STARTS = ("random", "best", "clean")
_SCHEDULES = (None, "large_eps")


@facts(version=1, norms=("linf", "l2", "l1"), access="white", randomness="per_sample", targeted=True)
def apgd(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    loss: str = "ce",
    restarts: int = 1,
    start: str = "random",
    rho: float = 0.75,
    momentum: float = 0.25,
    schedule: str | None = None,
    corner: bool = False,
) -> Tensor:
    """The first success of Auto-PGD per sample, else its lowest-margin point, (N, ...) in [0, 1].

    Points, step sizes and restarts from the best point are AutoAttack's; but a broken sample leaves at the step that
    breaks it, and a run's last point is looked at without a gradient. A sample that holds costs, per restart, ``steps``
    forward and backward passes and one more forward pass (three more with ``large_eps``).

    Args:
        victim: The victim or a plain module; with a target the losses are targeted ones.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf, l2 or l1.
        seeds: Per-sample randomness of the starts.
        steps: Steps per restart, over all stages of a schedule.
        loss: ``ce``, ``dlr`` (3 classes, targeted 4), ``margin``, ``scaled_ce`` or ``probability_margin``.
        restarts: Independent runs over the samples that are still unbroken.
        start: ``random`` (on the sphere), ``best`` (the victim's best points so far) or ``clean``; the first restart's,
            the others are random.
        rho: Share of a period's steps that must raise the loss, else the step size is halved (linf, l2).
        momentum: Weight of the previous movement against the new step (linf, l2).
        schedule: None, or ``large_eps``: 30, 30 and 40 % of the steps in balls of 3, 2 and 1 times eps.
        corner: Look at the end of an l1 run, for one more forward pass, at the point where the loss linearised at the
            best point is highest. AutoAttack does not; its equal steps cannot weigh the last few features exactly.

    Raises:
        ConfigError: Too few steps or restarts, an unknown start, schedule or loss, weights outside [0, 1), or too few
            classes for dlr.

    Source: Croce & Hein, ICML 2020, algorithm 1 (linf, l2); Croce & Hein, ICML 2021, algorithm 1 (l1, large_eps).
    """
    plan = _Plan(steps, loss, restarts, start, rho, momentum, schedule, corner)
    victim = as_victim(victim, x, y, threat)
    _attack(victim, seeds, plan, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    return victim.result()


@facts(version=1, norms=("linf", "l2", "l1"), access="white", randomness="per_sample")
def apgd_t(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    seeds: Draws,
    steps: int = 100,
    loss: str = "auto",
    targets: int = 9,
    restarts: int = 1,
    start: str = "random",
    rho: float = 0.75,
    momentum: float = 0.25,
    schedule: str | None = None,
    corner: bool = False,
    together: int = 1,
) -> Tensor:
    """The first success of targeted Auto-PGD per sample, else its lowest-margin point, (N, ...) in [0, 1].

    The targets are the wrong classes in the order of the clean logits, highest first; the clean images are looked at
    once (one forward pass; a misclassified one is broken). Any misclassification is a success. ``margin``: MultiTargeted.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: linf, l2 or l1.
        seeds: Per-sample randomness of the starts, other draws for each target.
        steps: Steps per target and restart.
        loss: ``dlr`` (4 classes), ``margin``, ``ce``, or ``auto``: dlr, with fewer classes margin.
        targets: How many targets; with fewer wrong classes, all of them.
        restarts: Independent runs per target.
        start: As in ``apgd``; ``best`` and ``clean`` hold for each target's first restart.
        rho: As in ``apgd``, and so ``momentum``, ``schedule`` and ``corner``.
        together: Targets that are run at the same time, which fills batches when few samples are left.

    Raises:
        ConfigError: As in ``apgd``, or no target at all.

    Source: Croce & Hein, ICML 2020, section 4.1 (multi-targeted version) and equation (7); Gowal et al., 2019 (margin).
    """
    if targets < 1 or together < 1:
        raise ConfigError(must("targets and together", "at least 1", (targets, together), "else nothing is attacked"))
    plan = _Plan(steps, loss, restarts, start, rho, momentum, schedule, corner)
    victim = as_victim(victim, x, y, threat)
    order, classes = _wrong_classes(victim.clean_logits(), victim.y, targets)
    if loss == "auto":
        plan = replace(plan, loss="dlr" if classes >= 4 else "margin")
    for first in range(0, order.shape[1], together):
        rows, group = victim.alive(), order[:, first : first + together]
        if not len(rows):
            break
        part = victim.part(rows.repeat(group.shape[1]), target=group[rows].T.flatten())
        index = torch.arange(group.shape[1], device=x.device).repeat_interleave(len(rows)) + first
        _attack(part, seeds[part.parents], plan, index)
        victim.absorb(part)
    return victim.result()


def _wrong_classes(logits: Tensor, y: Tensor, count: int) -> tuple[Tensor, int]:
    """The highest classes other than the label, highest first, (N, at most count), and the number of classes."""
    classes = logits.shape[1]
    rest = logits.scatter(1, y[:, None], -torch.inf)
    return rest.argsort(dim=1, descending=True, stable=True)[:, : min(count, classes - 1)], classes


@dataclass(frozen=True)
class _Plan:
    """The arguments of one attack, checked."""

    steps: int
    loss: str
    restarts: int
    start: str
    rho: float
    momentum: float
    schedule: str | None
    corner: bool

    def __post_init__(self) -> None:
        least = 1 if self.schedule is None else 3
        if self.steps < least or self.restarts < 1:
            counts = (self.steps, self.restarts)
            raise ConfigError(must("steps and restarts", f"at least {least} and 1", counts, "else nothing is attacked"))
        if self.start not in _STARTS:
            raise ConfigError(must("start", "one of " + ", ".join(_STARTS), self.start, suggestion(self.start, _STARTS)))
        if self.schedule not in _SCHEDULES:
            raise ConfigError(must("schedule", "None or 'large_eps'", self.schedule, "leave it out or write large_eps"))
        if not (0 <= self.rho < 1 and 0 <= self.momentum < 1):
            weights = (self.rho, self.momentum)
            raise ConfigError(must("rho and momentum", "in [0, 1)", weights, "AutoAttack's are 0.75 and 0.25"))

    def stages(self, threat: ThreatModel) -> list[tuple[ThreatModel, int]]:
        """The balls of a run and the steps in each."""
        if self.schedule is None:
            return [(threat, self.steps)]
        first = math.ceil(0.3 * self.steps)
        wider = [(replace(threat, eps=k * threat.eps, text=f"{k}*{threat.text}"), first) for k in (3, 2)]
        return [*wider, (threat, self.steps - 2 * first)]

    def periods(self, norm: str, steps: int) -> dict[int, int]:
        """Steps after which a run looks back → length of the period that ends there."""
        if norm == "l1":
            length = max(int(0.04 * steps), 1)
            return dict.fromkeys(range(length, steps + 1, length), length)
        length, shrink, least = (max(int(share * self.steps), 1) for share in (0.22, 0.03, 0.06))
        found, at = {}, length
        while at <= steps:
            found[at] = length
            length = max(length - shrink, least)
            at += length
        return found


def _attack(victim: Victim, seeds: Draws, plan: _Plan, index: Tensor) -> None:
    """All restarts; ``index`` (N,) tells the targets of one sample apart, so that each has a start of its own."""
    if victim.threat.norm not in _NORMS:
        raise ConfigError(must("apgd's norm", "one of " + ", ".join(_NORMS), victim.threat.norm, "use an attack for it"))
    stages = plan.stages(victim.threat)
    for restart in range(plan.restarts):
        rows = victim.alive()
        if not len(rows):
            return
        outer = Ball(victim.x[rows], stages[0][0])
        start = plan.start if restart == 0 else "random"
        if start == "random":
            best = _random_points(outer, seeds[rows], index[rows] * plan.restarts + restart)
        else:
            best = (victim.best if start == "best" else victim.x)[rows]
        informed = start != "random" or plan.schedule is not None
        for threat, steps in stages:
            rows, best = _climb(victim, rows, best, plan, (threat, steps), informed)


def _random_points(ball: Ball, seeds: Draws, index: Tensor) -> Tensor:
    """Random points of the sphere within the box, (N, ...); samples of equal ``index`` (N,) share a step of the draws."""
    points = torch.empty_like(ball.x)
    for step in index.unique().tolist():
        rows = (index == step).nonzero()[:, 0]
        points[rows] = _random_point(ball[rows], seeds[rows], step)
    return points


def _random_point(ball: Ball, seeds: Draws, step: int) -> Tensor:
    """AutoAttack's random start: at the full distance for linf and l2, the projection of normal noise for l1."""
    shape, x = ball.x.shape[1:], ball.x
    if ball.threat.norm == "linf":
        noise = seeds.uniform("apgd.start", shape, step=step).to(x.dtype) * 2 - 1
        highest = noise.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny)
        return ball.project(x + _reach(ball) * noise / per_sample(highest, x))
    noise = seeds.normal("apgd.start", shape, step=step).to(x.dtype)
    if ball.threat.norm == "l2":
        return ball.project(x + _reach(ball) * steepest(noise, "l2"))
    return project_l1(ball, x + noise)


def _reach(ball: Ball) -> float:
    """Radius of the ball, at most the diameter of the box."""
    size = ball.x[0].numel()
    return min(ball.threat.eps, {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[ball.threat.norm])


@dataclass
class _Run:
    """Where the samples of a run stand; every field has one row per sample."""

    rows: Tensor
    ball: Ball
    points: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    size: Tensor
    """Step sizes, (n,)."""

    def take(self, index: Tensor) -> Self:
        """The run of some of its samples."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def move(self, plan: _Plan, *, first: bool) -> None:
        """Take one step from the points along the gradient."""
        raise NotImplementedError

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        """Note the loss and the gradient at the points; a loss that is no number is the lowest."""
        loss = loss.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        better = loss > self.best_loss
        wide = per_sample(better, self.points)
        self.gradient = gradient.nan_to_num(nan=0.0)
        self.best = torch.where(wide, self.points, self.best)
        self.best_gradient = torch.where(wide, self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def look_back(self, plan: _Plan, period: int) -> None:
        """Choose the step sizes of the next period."""
        raise NotImplementedError

    def resume(self, where: Tensor) -> None:
        """Go on from the best points where told, bool (n,)."""
        wide = per_sample(where, self.points)
        self.points = torch.where(wide, self.best, self.points)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)


@dataclass
class _Dense(_Run):
    """A run in linf or l2."""

    last_loss: Tensor
    rises: Tensor
    """Steps of the period that raised the loss, (n,)."""
    halved: Tensor
    """Whether the last look back halved the step size, bool (n,)."""
    checked_loss: Tensor
    """The best loss at the last look back, (n,)."""

    def move(self, plan: _Plan, *, first: bool) -> None:
        moved = self.points + per_sample(self.size, self.points) * steepest(self.gradient, self.ball.threat.norm)
        if not first and plan.momentum:
            drift = (self.points - self.previous) * plan.momentum
            moved = self.points + (_roughly(self.ball, moved) - self.points) * (1 - plan.momentum) + drift
        moved = self.ball.project(moved)
        self.previous, self.points = self.points, moved

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        super().learn(loss, gradient)
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss

    def look_back(self, plan: _Plan, period: int) -> None:
        stale = ~self.halved & (self.checked_loss >= self.best_loss)
        halve = (self.rises <= plan.rho * period) | stale
        self.size = torch.where(halve, self.size / 2, self.size)
        self.resume(halve)
        self.halved, self.checked_loss, self.rises = halve, self.best_loss, torch.zeros_like(self.rises)


def _roughly(ball: Ball, points: Tensor) -> Tensor:
    """The ball's projection up to rounding, for points that are projected again before anything is asked of them."""
    if ball.threat.norm == "linf":
        return ball.project(points)
    delta = points - ball.x
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(points.dtype).tiny)
    return (ball.x + delta * per_sample((ball.threat.eps / length).clamp(max=1), delta)).clamp(0, 1)


@dataclass
class _Sparse(_Run):
    """A run in l1."""

    share: Tensor
    """Share of the features that a step moves, float64 (n,)."""
    support: Tensor
    """Features that the best points changed at the last look back, int64 (n,)."""

    def move(self, plan: _Plan, *, first: bool) -> None:
        step = per_sample(self.size, self.points) * sparse_step(self.gradient, self.share)
        self.previous, self.points = self.points, project_l1(self.ball, self.points + step)

    def look_back(self, plan: _Plan, period: int) -> None:
        support = changed(self.best - self.ball.x)
        sparser = support.double() / self.support.clamp_min(1) < 0.95
        reach = _reach(self.ball)
        self.size = torch.where(sparser, reach, self.size / 1.5).clamp(reach / 10, reach)
        self.share, self.support = _share(support, self.points), support
        self.resume(sparser)


def _share(support: Tensor, points: Tensor) -> Tensor:
    """The share of features that the next steps move, given how many the best points changed, float64 (n,)."""
    return support.double() / points[0].numel() / 1.5


def _begin(rows: Tensor, points: Tensor, ball: Ball, found: tuple[Tensor, Tensor], informed: bool) -> _Run:
    """A run at its first points, whose loss and gradient are ``found``."""
    gradient, lowest = found[1].nan_to_num(nan=0.0), torch.full_like(found[0], -torch.inf)
    sizes = torch.full_like(found[0], _reach(ball) * (1 if ball.threat.norm == "l1" else 2), dtype=points.dtype)
    loss = torch.where(found[0].isnan(), lowest, found[0])
    common = (rows, ball, points, points, gradient, points, gradient, loss, sizes)
    if ball.threat.norm == "l1":
        support = changed(points - ball.x)
        told = (support > 0) if informed else torch.zeros_like(support, dtype=torch.bool)
        share = torch.where(told, _share(support, points), 0.2)
        return _Sparse(*common, share, torch.where(told, support, points[0].numel()))
    # AutoAttack compares the first step's loss with 0, not with the start's; being equal to it matters more
    zero = torch.zeros_like(loss)
    return _Dense(*common, zero, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool), loss)


def _climb(
    victim: Victim, rows: Tensor, points: Tensor, plan: _Plan, stage: tuple[ThreatModel, int], informed: bool
) -> tuple[Tensor, Tensor]:
    """One run in one ball; returns the rows that are left and their points of highest loss."""
    threat, steps = stage
    if not len(rows):
        return rows, points
    ball = Ball(victim.x[rows], threat)
    points = project_l1(ball, points) if threat.norm == "l1" else ball.project(points)
    inside = threat == victim.threat
    found = victim.gradient(points, rows, plan.loss, inside=inside)
    run = _begin(rows, points, ball, (found.loss, found.gradient), informed)
    periods = plan.periods(threat.norm, steps)
    for step in range(1, steps + 1):
        run = _unbroken(run, victim)
        if not len(run.rows):
            break
        run.move(plan, first=step == 1)
        if step == steps:
            run.learn(_last_look(victim, run, plan, inside), run.gradient)
            break
        found = victim.gradient(run.points, run.rows, plan.loss, inside=inside)
        run.learn(found.loss, found.gradient)
        if step in periods:
            run.look_back(plan, periods[step])
    run = _unbroken(run, victim)
    if plan.corner and threat.norm == "l1" and inside and len(run.rows):
        victim.margins(vertex(run.ball, run.best_gradient), run.rows, inside=True)
        run = _unbroken(run, victim)
    return run.rows, run.best


def _unbroken(run: _Run, victim: Victim) -> _Run:
    """The run without the samples that are broken."""
    index = (~victim.broken[run.rows]).nonzero()[:, 0]
    return run if len(index) == len(run.rows) else run.take(index)


def _last_look(victim: Victim, run: _Run, plan: _Plan, inside: bool) -> Tensor:
    """The loss of a run's last points, (n,), from a forward pass alone."""
    target = None if victim.target is None else victim.target[run.rows]
    outputs = victim.logits(run.points, run.rows, inside=inside)
    return victim.task.loss(plan.loss, target)(outputs, victim.y[run.rows])
