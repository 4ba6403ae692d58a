"""APGD against AutoAttack's own code, a slow twin, closed forms, and what it costs."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robench.attacks import apgd, apgd_t
from robench.attacks._apgd_l1 import project_l1, sparse_step
from robench.errors import ConfigError
from robench.inference import predict
from robench.ops.norms import Ball, distance, tolerance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

COUNT, SHAPE = 20, (3, 5, 5)
IDS = 100 + 3 * torch.arange(COUNT)
EPS = {"linf": 0.02, "l2": 0.15, "l1": 0.7}
TINY = {"linf": 0.004, "l2": 0.03, "l1": 0.1}


def build(classes: int = 10, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(SHAPE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.empty(parameter.shape, dtype=torch.float64).normal_(0, 0.35, generator=generator))
    return net.to(dtype).eval().requires_grad_(False)


def images(count: int = COUNT, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images, some of whose pixels lie on the box's edges."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.empty(count, *SHAPE, dtype=torch.float64).uniform_(-0.2, 1.2, generator=generator)
    return noise.clamp(0, 1).to(dtype)


def threat(norm: str, eps: float | None = None) -> ThreatModel:
    return ThreatModel(norm, EPS[norm] if eps is None else eps, "test")


class Recorder(Victim):
    """A victim that remembers every visited point per sample."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, **options: object) -> None:
        super().__init__(model, x, y, **options)
        self.visited: dict[int, list[Tensor]] = defaultdict(list)

    def _record(self, points: Tensor, rows: Tensor, margin: Tensor, *told: bool) -> None:
        for row, point in zip(rows.tolist(), points, strict=True):
            self.visited[row].append(point.detach().clone())
        super()._record(points, rows, margin, *told)


# --- AutoAttack's own code


@pytest.fixture
def double(monkeypatch):
    """float64 throughout: the peer casts with ``float()`` and builds tensors of the default type."""
    held = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(held)


@pytest.fixture
def peer(double, monkeypatch):
    """AutoAttack's module, which draws what we draw at the first start of the samples ``IDS``."""
    peer = pytest.importorskip("pyautoattack.autopgd_base")
    seeds = Draws(5, IDS)
    monkeypatch.setattr(torch, "rand", lambda shape: seeds.uniform("apgd.start", shape[1:]).double())
    monkeypatch.setattr(torch, "randn", lambda shape: seeds.normal("apgd.start", shape[1:]).double())
    monkeypatch.setattr(torch, "randn_like", lambda like: seeds.normal("apgd.start", like.shape[1:]).double())
    # its projection leaves rounding errors where nothing changed, which its count of changed features would count
    monkeypatch.setattr(peer, "L0_norm", lambda delta: (delta.abs() > 1e-9).flatten(1).sum(1))
    return peer


def peer_run(peer, net, x, y, one, loss, *, steps, schedule, target=None) -> Tensor:
    """Every point that AutoAttack's APGD visits, (steps + 1 per stage, N, ...)."""
    log = []

    def logged(points: Tensor) -> Tensor:
        log.append(points.detach().clone())
        return net(points)

    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[one.norm]
    if target is None:
        attack = peer.APGDAttack(logged, n_iter=steps, norm=name, eps=one.eps, loss=loss, device="cpu")
    else:
        attack = peer.APGDAttack_targeted(logged, n_iter=steps, norm=name, eps=one.eps, device="cpu")
        attack.y_target = target
    attack.init_hyperparam(x)
    if schedule is None:
        attack.attack_single_run(x, y)
    else:
        first = math.ceil(0.3 * steps)
        attack.decr_eps_pgd(x, y, [3 * one.eps, 2 * one.eps, one.eps], [first, first, steps - 2 * first])
    return torch.stack(log)


def compare(theirs: Tensor, ours: Recorder) -> int:
    """Every point that we visited is theirs, up to the one that broke the sample; returns how many were compared."""
    compared = 0
    for row, points in ours.visited.items():
        mine = torch.stack(points)
        assert (mine - theirs[: len(mine), row]).abs().max() < 1e-10, row
        assert len(mine) == len(theirs) or ours.broken[row]
        assert ours.broken[row] or ours.ball.contains(ours.best)[row]
        compared += len(mine)
    return compared


def both(peer, one, loss, *, count: int = 200, steps: int = 100, schedule: str | None = None) -> tuple[Tensor, Recorder]:
    """AutoAttack's visits and our victim after the same run on the ``COUNT`` images of ``count`` with the widest margin."""
    net, x = build(), images(count)
    x = x[net(x).topk(2, dim=1).values.diff(dim=1)[:, 0].argsort()[:COUNT]]
    y = net(x).argmax(1)
    target = net(x).argsort(1)[:, -3] if loss.startswith("targeted") else None
    name = loss.rpartition(" ")[2]
    theirs = peer_run(peer, net, x, y, one, name, steps=steps, schedule=schedule, target=target)
    ours = Recorder(net, x, y, threat=one, width=COUNT, target=target)
    apgd(ours, x, y, threat=one, seeds=Draws(5, IDS), loss=name, steps=steps, schedule=schedule)
    return theirs, ours


LOSSES = ("ce", "dlr", "targeted dlr")
CASES = [(norm, loss) for norm in EPS for loss in LOSSES]


@pytest.mark.parametrize(("norm", "loss"), CASES)
def test_every_iterate_is_autoattacks_where_nothing_breaks(peer, norm, loss):
    theirs, ours = both(peer, threat(norm, TINY[norm]), loss)
    assert compare(theirs, ours) == 101 * COUNT
    assert not ours.broken.any()


@pytest.mark.parametrize(("norm", "loss"), CASES)
def test_every_iterate_is_autoattacks_up_to_the_success(peer, norm, loss):
    theirs, ours = both(peer, threat(norm), loss, count=COUNT)
    assert compare(theirs, ours) > 2 * COUNT
    assert 0 < ours.broken.sum() < COUNT
    margins = torch.stack([ours.task.margin(ours.model(points), ours.y) for points in theirs])
    assert torch.equal(ours.broken, (margins <= 0).any(0))


@pytest.mark.parametrize(("loss", "steps"), [("ce", 100), ("dlr", 40), ("targeted dlr", 10)])
def test_every_iterate_of_the_l1_schedule_is_autoattacks(peer, loss, steps):
    theirs, ours = both(peer, threat("l1", TINY["l1"]), loss, steps=steps, schedule="large_eps")
    assert len(theirs) == steps + 3
    assert compare(theirs, ours) == (steps + 3) * COUNT
    theirs, ours = both(peer, threat("l1"), loss, steps=steps, schedule="large_eps", count=COUNT)
    assert compare(theirs, ours) > steps
    assert 0 < ours.broken.sum() < COUNT


@pytest.mark.parametrize("norm", EPS)
def test_the_nine_targets_are_autoattacks(peer, monkeypatch, norm):
    net, x, one, steps = build(), images(), threat(norm, EPS[norm] * 0.7), 20
    logits, margins = net(x), []
    y = logits.argmax(1)
    for k in range(9):
        draw = {"uniform": Draws(5, IDS).uniform, "normal": Draws(5, IDS).normal}
        monkeypatch.setattr(torch, "rand", lambda shape, k=k, f=draw["uniform"]: f("apgd.start", shape[1:], step=k).double())
        monkeypatch.setattr(torch, "randn", lambda shape, k=k, f=draw["normal"]: f("apgd.start", shape[1:], step=k).double())
        target = logits.argsort(1)[:, -2 - k]
        visited = peer_run(peer, net, x, y, one, "dlr", steps=steps, schedule=None, target=target)
        margins += [Victim(net, x, y, threat=one).task.margin(net(points), y) for points in visited]
    lowest = torch.stack(margins).amin(0)
    ours = Victim(net, x, y, threat=one, width=COUNT)
    apgd_t(ours, x, y, threat=one, seeds=Draws(5, IDS), steps=steps)
    assert torch.equal(ours.broken, lowest <= 0)
    assert 0 < ours.broken.sum() < COUNT
    whole = ~ours.broken
    assert (ours.best_margin - lowest)[whole].abs().max() < 1e-10
    assert (ours.forwards[whole] == 1 + 9 * (steps + 1)).all() and (ours.backwards[whole] == 9 * steps).all()


# --- a slow twin: one image, plain loops, from the papers


def bisected(x: Tensor, point: Tensor, eps: float) -> Tensor:
    """The l1 projection onto ball and box by bisection of the multiplier."""
    delta = point - x
    room = torch.where(delta > 0, 1 - x, x)

    def at(cut: float) -> Tensor:
        return delta.sign() * torch.minimum((delta.abs() - cut).clamp(min=0), room)

    if at(0.0).abs().sum() <= eps:
        return x + at(0.0)
    low, high = 0.0, float(delta.abs().max())
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).abs().sum() > eps else (low, middle)
    return x + at(high)


def nearest(x: Tensor, point: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "linf":
        return (x + (point - x).clamp(-eps, eps)).clamp(0, 1)
    if norm == "l1":
        return bisected(x, point, eps)
    length = float((point - x).norm())
    return (x + (point - x) * min(1.0, eps / length)).clamp(0, 1) if length else x


def direction(gradient: Tensor, norm: str, kept: int) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        return gradient / gradient.norm()
    chosen = torch.zeros_like(gradient)
    chosen[gradient.abs().argsort(descending=True)[:kept]] = 1
    return gradient.sign() * chosen / kept


def twin(net: nn.Module, x: Tensor, y: int, start: Tensor, one: ThreatModel, steps: int) -> list[Tensor]:
    """Every point that APGD visits on one image with cross-entropy, up to the first success."""

    def look(point: Tensor) -> tuple[float, Tensor, bool]:
        leaf = point.clone().requires_grad_(True)
        logits = net(leaf.reshape(1, *SHAPE))
        loss = nn.functional.cross_entropy(logits, torch.tensor([y]))
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0], int(logits.argmax()) != y

    norm, eps, x, point = one.norm, one.eps, x.flatten(), start.flatten()
    checks = {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    size, kept, support = eps * (1 if norm == "l1" else 2), math.floor(0.2 * len(x)), len(x)
    visited, losses, old, cut_before = [point], [], point, True
    loss, gradient, broken = look(point)
    best = (loss, point, gradient)
    best_at_check = loss
    for step in range(1, steps + 1):
        if broken:
            return visited
        new = nearest(x, point + size * direction(gradient, norm, kept), norm, eps)
        if step > 1 and norm != "l1":
            new = nearest(x, point + 0.75 * (new - point) + 0.25 * (point - old), norm, eps)
        old, point = point, new
        loss, gradient, broken = look(point)
        visited.append(point)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, point, gradient)
        if norm != "l1" and step in checks:
            period = [0.0, *losses][-checks[step] - 1 :]
            rises = sum(b > a for a, b in pairwise(period))
            cut = rises <= 0.75 * checks[step] or (not cut_before and best[0] == best_at_check)
            if cut:
                size, (_, point, gradient) = size / 2, best
            cut_before, best_at_check = cut, best[0]
        if norm == "l1" and step % 4 == 0:
            now = int(((best[1] - x).abs() > 1e-9).sum())
            sparser = now < 0.95 * support
            size = eps if sparser else max(size / 1.5, eps / 10)
            share = now / len(x) / 1.5
            kept, support = len(x) - min(int((1 - share) * len(x)), len(x) - 1), now
            if sparser:
                _, point, gradient = best
    return visited


@pytest.mark.parametrize("norm", EPS)
def test_a_slow_twin_walks_the_same_way(double, norm):
    net, x, one = build(seed=3), images(4), threat(norm, EPS[norm] * 0.8)
    y = net(x).argmax(1)
    ours = Recorder(net, x, y, threat=one, width=8)
    apgd(ours, x, y, threat=one, seeds=Draws(5, IDS[:4]))
    for row, points in ours.visited.items():
        expected = twin(net, x[row], int(y[row]), points[0], one, 100)
        assert len(points) == len(expected)
        assert (torch.stack(points).flatten(1) - torch.stack(expected)).abs().max() < 1e-9
    assert 0 < ours.broken.sum() < 4


# --- the l1 geometry


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.01, 1.5, 12.0, math.inf])
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(dtype, eps):
    x = images(40, dtype=dtype)
    points = x + torch.empty(x.shape).normal_(0, 0.7, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = project_l1(Ball(x, threat("l1", eps)), points)
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    rows = (tensor.double().flatten(1) for tensor in (x, points, found))
    for centre, point, result in zip(*rows, strict=True):
        assert (result - bisected(centre, point, eps)).abs().max() < slack
    assert ((found >= 0) & (found <= 1)).all()
    assert (distance(x, found, "l1") <= eps + 1e-12).all()
    again = project_l1(Ball(x, threat("l1", eps)), found)
    assert (again - found).abs().max() <= slack


def test_a_feature_that_comes_back_exactly_counts_as_unchanged():
    x = torch.full((1, 4), 0.3)
    points = x + torch.tensor([[0.2, 0.2, 0.1, 0.1]])
    found = project_l1(Ball(x, threat("l1", 0.2)), points)
    assert (found != x).tolist() == [[True, True, False, False]]


def test_the_sparse_step_keeps_the_highest_gradients_and_has_unit_length():
    gradient = torch.tensor([[3.0, -1.0, 0.5, -4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    step = sparse_step(gradient, torch.tensor([0.4, 0.4], dtype=torch.float64))
    assert step.tolist() == [[0.5, 0, 0, -0.5, 0], [0, 0, 0, 0, 0]]


# --- closed form


def optimum(x: Tensor, weight: Tensor, margin: Tensor, one: ThreatModel) -> Tensor:
    """Lowest margin of a linear two-class model in the ball and the box; for l2 the box must not matter."""
    if one.norm == "l2":
        return margin - one.eps * weight.norm()
    room = torch.where(weight > 0, x, 1 - x)
    if one.norm == "linf":
        return margin - (weight.abs() * room.clamp(max=one.eps)).sum(1)
    order = weight.abs().argsort(descending=True)
    spent = torch.minimum(room[:, order].cumsum(1), torch.tensor(one.eps)).diff(dim=1, prepend=torch.zeros(len(x), 1))
    return margin - (spent * weight.abs()[order]).sum(1)


def linear(one: ThreatModel, **options: object) -> tuple[Victim, Tensor]:
    """A victim after APGD on a linear model of two classes, and how far its margins are from the optimum, relative."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.empty(30).normal_(0, 1, generator=generator)
    x = torch.empty(12, 30).uniform_(0.3, 0.7, generator=generator)
    net = nn.Linear(30, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight, -weight]) / 2)
        net.bias.copy_(torch.tensor([50.0, -50.0]))
    y, margin = torch.zeros(12, dtype=torch.int64), 100 + x @ weight
    victim = Victim(net, x, y, threat=one)
    apgd(victim, x, y, threat=one, seeds=Draws(0, torch.arange(12)), loss="margin", **options)
    lowest = optimum(x, weight, margin, one)
    assert not victim.broken.any()
    return victim, (victim.best_margin - lowest) / (margin - lowest)


@pytest.mark.parametrize(("norm", "eps", "schedule"), [
    ("linf", 0.05, None), ("linf", 0.3, None), ("linf", 0.05, "large_eps"), ("l2", 0.3, None), ("l2", 0.2, "large_eps"),
])  # fmt: skip
def test_on_a_linear_model_the_optimum_is_reached(double, norm, eps, schedule):
    _, gap = linear(threat(norm, eps), schedule=schedule)
    assert gap.abs().max() < 1e-6


@pytest.mark.parametrize("eps", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("schedule", [None, "large_eps"])
def test_on_a_linear_model_the_l1_optimum_is_reached_by_the_corner_alone(double, eps, schedule):
    plain, gap = linear(threat("l1", eps), schedule=schedule)
    assert (gap > -1e-9).all() and 1e-3 < gap.max() < 0.2
    victim, gap = linear(threat("l1", eps), schedule=schedule, corner=True)
    assert gap.abs().max() < 1e-9
    assert torch.equal(victim.forwards, plain.forwards + 1) and torch.equal(victim.backwards, plain.backwards)


# --- classes


def test_two_classes_are_broken_with_every_loss_but_dlr():
    net, x, one = build(2, dtype=torch.float32), images(dtype=torch.float32), threat("linf", 0.2)
    y = net(x).argmax(1)
    for loss in ("ce", "margin", "scaled_ce", "probability_margin"):
        found = apgd(net, x, y, threat=one, seeds=Draws(0, IDS), loss=loss, steps=20)
        assert (net(found).argmax(1) != y).float().mean() > 0.9, loss
    found = apgd_t(net, x, y, threat=one, seeds=Draws(0, IDS), steps=20)
    assert (net(found).argmax(1) != y).float().mean() > 0.9
    with pytest.raises(ConfigError, match="loss='margin'"):
        apgd(net, x, y, threat=one, seeds=Draws(0, IDS), loss="dlr")


@pytest.mark.parametrize("classes", [3, 4])
def test_dlr_needs_three_classes_and_with_a_target_four(classes):
    net, x, one = build(classes, dtype=torch.float32), images(dtype=torch.float32), threat("linf", 0.2)
    y = net(x).argmax(1)
    found = apgd(net, x, y, threat=one, seeds=Draws(0, IDS), loss="dlr", steps=20)
    assert (net(found).argmax(1) != y).float().mean() > 0.9
    options = {"threat": one, "seeds": Draws(0, IDS), "steps": 20}
    if classes == 3:
        with pytest.raises(ConfigError, match="loss='margin'"):
            apgd_t(net, x, y, loss="dlr", **options)
    same = apgd_t(net, x, y, loss="margin" if classes == 3 else "dlr", **options)
    assert torch.equal(apgd_t(net, x, y, **options), same)


# --- company


@pytest.mark.parametrize(("attack", "norm", "options"), [
    (apgd, "linf", {}), (apgd, "l2", {"loss": "dlr", "restarts": 2}), (apgd, "l1", {}),
    (apgd, "l1", {"schedule": "large_eps", "loss": "margin", "corner": True}), (apgd_t, "linf", {"targets": 3}),
    (apgd_t, "l2", {"targets": 4, "together": 2}), (apgd_t, "l1", {"targets": 3, "together": 3, "restarts": 2}),
])  # fmt: skip
def test_a_sample_does_not_depend_on_its_company(attack, norm, options):
    net, x, one = build(dtype=torch.float32), images(30, dtype=torch.float32), threat(norm, EPS[norm])
    y, ids, results = net(x).argmax(1), 7 + 5 * torch.arange(30), []
    for size in (30, 7, 1):
        parts = []
        for a in range(0, 30 if size > 1 else 8, size):
            rows = slice(a, a + size)
            victim = Victim(net, x[rows], y[rows], threat=one, width=32)
            found = attack(victim, x[rows], y[rows], threat=one, seeds=Draws(1, ids[rows]), steps=5, **options)
            parts.append((found, victim.broken, victim.forwards, victim.backwards))
        results.append([torch.cat(column) for column in zip(*parts, strict=True)])
    for other in results[1:]:
        assert all(torch.equal(a[: len(b)], b) for a, b in zip(results[0], other, strict=True))
    assert 0 < results[0][1].sum() < 30


def test_targets_that_share_a_batch_break_what_they_break_one_after_another():
    net, x, one = build(), images(), threat("linf", EPS["linf"] * 0.7)
    y, found = net(x).argmax(1), []
    for together in (1, 4, 9, 100):
        victim = Victim(net, x, y, threat=one)
        apgd_t(victim, x, y, threat=one, seeds=Draws(1, IDS), steps=15, together=together)
        found.append(victim)
        assert torch.equal(victim.broken, found[0].broken)
        whole = ~victim.broken
        assert (victim.best_margin - found[0].best_margin)[whole].abs().max() < 1e-10
        assert torch.equal(victim.forwards[whole], found[0].forwards[whole])
    assert 0 < found[0].broken.sum() < COUNT


# --- costs and starts


@pytest.mark.parametrize(("norm", "schedule", "looks"), [("linf", None, 1), ("l2", None, 1), ("l1", "large_eps", 3)])
def test_a_sample_that_holds_costs_its_steps_and_a_last_look_per_run(norm, schedule, looks):
    net, x, one = build(), images(), threat(norm, TINY[norm] / 20)
    y = net(x).argmax(1)
    victim = Victim(net, x, y, threat=one)
    apgd(victim, x, y, threat=one, seeds=Draws(0, IDS), steps=20, restarts=2, schedule=schedule)
    assert not victim.broken.any()
    assert (victim.backwards == 40).all() and (victim.forwards == 40 + 2 * looks).all()


def test_a_sample_leaves_at_the_step_that_breaks_it():
    net, x, one = build(), images(), threat("linf")
    y = net(x).argmax(1)
    victim = Recorder(net, x, y, threat=one)
    found = apgd(victim, x, y, threat=one, seeds=Draws(0, IDS), restarts=2)
    assert victim.broken.any()
    for row in victim.broken.nonzero()[:, 0].tolist():
        wrong = net(torch.stack(victim.visited[row])).argmax(1) != y[row]
        assert wrong[-1] and not wrong[:-1].any()
        assert torch.equal(found[row], victim.visited[row][-1])


def test_misclassified_images_cost_one_pass():
    net, x, one = build(), images(), threat("linf")
    y = (net(x).argmax(1) + 1) % 10
    victim = Victim(net, x, y, threat=one)
    assert torch.equal(apgd_t(victim, x, y, threat=one, seeds=Draws(0, IDS)), x)
    assert (victim.forwards == 1).all() and not victim.backwards.any()


@pytest.mark.parametrize("norm", EPS)
def test_the_first_restart_starts_where_it_is_told(norm):
    net, x, one = build(), images(), threat(norm, TINY[norm])
    y = net(x).argmax(1)
    victim = Recorder(net, x, y, threat=one)
    options = {"threat": one, "seeds": Draws(0, IDS), "steps": 3}
    apgd(victim, x, y, start="clean", restarts=2, **options)
    best = victim.best.clone()
    apgd(victim, x, y, start="best", **options)
    whole = victim.alive().tolist()
    assert len(whole) > COUNT / 2
    for row in whole:
        assert torch.equal(victim.visited[row][0], x[row])
        assert not torch.equal(victim.visited[row][4], x[row])
        assert torch.equal(victim.visited[row][8], best[row])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_lie_on_the_sphere_and_differ(norm):
    net, one = build(), threat(norm)
    x = torch.full((COUNT, *SHAPE), 0.5, dtype=torch.float64)
    y = net(x).argmax(1)
    victim = Recorder(net, x, y, threat=one)
    apgd(victim, x, y, threat=one, seeds=Draws(0, IDS), steps=1, restarts=2)
    first = torch.stack([victim.visited[row][0] for row in range(COUNT)])
    assert (distance(x, first, norm) - one.eps).abs().max() < tolerance(one.eps)
    assert len(first.flatten(1).unique(dim=0)) == COUNT


# --- what does not work


class Broken(nn.Module):
    """A net whose gradient is NaN in some images and infinite in others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        odd = (x.flatten(1).sum(1) * 50).long() % 2
        return self.inner(x) + ((x.flatten(1) - x.flatten(1).detach()).sum(1).abs().sqrt() * odd)[:, None]


@pytest.mark.parametrize("norm", EPS)
def test_gradients_that_are_no_numbers_never_reach_the_images(norm):
    net, x, one = Broken(build(dtype=torch.float32)), images(dtype=torch.float32), threat(norm)
    y = predict(net, x, width=64).argmax(1)
    victim = Recorder(net, x, y, threat=one)
    apgd(victim, x, y, threat=one, seeds=Draws(0, IDS), steps=10)
    assert victim.nonfinite_gradients.any()
    assert all(torch.stack(points).isfinite().all() for points in victim.visited.values())


@pytest.mark.parametrize(("options", "text"), [
    ({"steps": 0}, "steps"), ({"restarts": 0}, "restarts"), ({"steps": 2, "schedule": "large_eps"}, "steps"),
    ({"start": "bets"}, "did you mean 'best'"), ({"schedule": "small"}, "schedule"), ({"rho": 1.0}, "rho"),
    ({"momentum": -0.1}, "momentum"), ({"loss": "drl"}, "did you mean 'dlr'"),
])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(options, text):
    net, x = build(dtype=torch.float32), images(2, dtype=torch.float32)
    y = net(x).argmax(1)
    for attack in (apgd, apgd_t):
        with pytest.raises(ConfigError, match=text):
            attack(net, x, y, threat=threat("linf"), seeds=Draws(0, IDS[:2]), **options)


def test_no_targets_and_norms_that_apgd_does_not_know_are_refused():
    net, x, y = build(dtype=torch.float32), images(2, dtype=torch.float32), torch.zeros(2).long()
    for option in ({"targets": 0}, {"together": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            apgd_t(net, x, y, threat=threat("linf"), seeds=Draws(0, IDS[:2]), **option)
    with pytest.raises(ConfigError, match="the norm of apgd must be one of linf, l2, l1"):
        apgd(net, x, y, threat=ThreatModel.parse("l0(3)"), seeds=Draws(0, IDS[:2]))


# --- as users meet both


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.5), ("l1", 3.0)])
def test_in_float32_it_breaks_the_digits_that_autoattack_breaks(net, held_out, norm, eps):
    peer = pytest.importorskip("pyautoattack.autopgd_base")
    x, y, ids = (part[:100] for part in held_out)
    right = net(x).argmax(1) == y
    x, y, one, large = x[right], y[right], threat(norm, eps), norm == "l1"
    victim = Victim(net, x, y, threat=one)
    seeds = Draws(0, ids[right])
    found = apgd_t(victim, x, y, threat=one, seeds=seeds, schedule="large_eps" if large else None)
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    attack = peer.APGDAttack_targeted(net, norm=name, eps=eps, device="cpu", use_largereps=large)
    theirs = attack.perturb(x.clone(), y.clone())
    broken, peers = net(found).argmax(1) != y, net(theirs).argmax(1) != y
    assert torch.equal(broken, victim.broken)
    assert 10 < broken.sum() < len(x) - 10
    assert (peers & ~broken).sum() <= 1
