"""FAB against pyautoattack iterate by iterate, its projections against other solvers, and closed forms."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from robench.attacks import _fab
from robench.attacks._fab import crossing, fab, fab_t
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": "0.04", "l2": "0.25", "l1": "1.2"}
DUAL = {"linf": 1, "l2": 2, "l1": 60}
COUNT = 20


class Seen(nn.Module):
    """A model that remembers what it was asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.points = inner, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.inner(x)


def tiny(classes: int = 4, side: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(3 * side * side, 12), nn.ReLU(),
        nn.Linear(12, classes),
    ).eval()  # fmt: skip


def images(count: int = COUNT, side: int = 5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(8)
    return (torch.rand(count, 1, side, side, generator=generator) * 1.4 - 0.2).clamp(0, 1).to(dtype)


def run(attack, net, x, *, threat, ids=None, seed=0, y=None, width=64, **params):
    y = net(x).argmax(1) if y is None else y
    threat = ThreatModel.parse(threat)
    victim = Victim(net, x, y, threat=threat, width=width)
    seeds = Draws(seed, torch.arange(len(x)) if ids is None else ids)
    return victim, attack(victim, x, y, threat=threat, seeds=seeds, **params)


@pytest.fixture
def double(monkeypatch):
    """pyautoattack in float64: it casts its input to float32 otherwise."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(net, norm, x, *, target=None, steps=30, eps=0.1, random=False):
    """(points asked for after the preparation, result) of one run of pyautoattack."""
    attack = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT(net, norm=NORMS[norm], n_iter=steps, eps=eps)
    attack.target_class, attack.device = None if target is None else target + 2, x.device
    net.points.clear()
    found = attack.attack_single_run(x, net.inner(x).argmax(1), use_rand_start=random, is_targeted=target is not None)
    return torch.stack(net.points[1 if target is None else 2 :]), found


def ours(attack, net, norm, x, *, eps="inf", **params):
    """(points asked for after the clean ones, result) of ours, in AutoAttack's order of questions."""
    net.points.clear()
    told = {"width": len(x), "y": net.inner(x).argmax(1), **params}
    _, found = run(attack, net, x, threat=f"{norm}({eps})", **told)
    return torch.stack(net.points[1:]), found


@pytest.mark.parametrize("norm", NORMS)
def test_fab_t_asks_for_the_points_of_autoattack_in_float64(norm, double):
    net, x = Seen(tiny()), images(dtype=torch.float64)
    expected, results = zip(*(theirs(net, norm, x, target=k) for k in range(3)), strict=True)
    asked, found = ours(fab_t, net, norm, x, steps=30)
    assert asked.shape == (180, *x.shape)
    assert torch.allclose(asked, torch.cat(expected), atol=1e-8, rtol=0)
    far = torch.stack([distance(x, r, norm) for r in results])
    best = far.masked_fill(far == 0, torch.inf).amin(0)
    reached = best.isfinite()
    assert reached.sum() > COUNT / 2
    assert (distance(x, found, norm)[reached] <= best[reached] + 1e-8).all()
    assert (net.inner(found).argmax(1) != net.inner(x).argmax(1))[reached].all()


@pytest.mark.parametrize("norm", NORMS)
def test_fab_asks_for_the_points_of_autoattack_in_float64(norm, double):
    net, x = Seen(tiny()), images(dtype=torch.float64)
    expected, result = theirs(net, norm, x)
    asked, found = ours(fab, net, norm, x, steps=30)
    assert torch.allclose(asked, expected, atol=1e-8, rtol=0)
    reached = distance(x, result, norm) > 0
    assert reached.sum() > COUNT / 2
    assert (distance(x, found, norm)[reached] <= distance(x, result, norm)[reached] + 1e-8).all()


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_where_autoattack_begins(norm, double, monkeypatch):
    net, eps, x = Seen(tiny()), 1e-4, images(dtype=torch.float64)
    draws, shape = Draws(0, torch.arange(COUNT)), x.shape[1:]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_: draws.uniform("fab.start", shape, step=1).double())
        patch.setattr(torch, "randn", lambda *_: draws.normal("fab.start", shape, step=1).double())
        expected, _ = theirs(net, norm, x, steps=5, eps=eps, random=True)
    asked, _ = ours(fab, net, norm, x, eps=eps, steps=5, restarts=2)
    assert torch.allclose(asked[10:], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_and_distances_against_autoattack(norm):
    module = pytest.importorskip("pyautoattack.fab_pt")
    net, x = tiny(), images(60)
    y, eps = net(x).argmax(1), float(EPS[norm])
    attack = module.FABAttack_PT(net, norm=NORMS[norm], n_iter=40, eps=eps, targeted=True, n_target_classes=3, device="cpu")
    theirs_broken = net(attack.perturb(x, y)).argmax(1) != y
    victim, found = run(fab_t, net, x, threat=f"{norm}({EPS[norm]})", steps=40)
    assert 5 < victim.broken.sum() < 55
    assert not (theirs_broken & ~victim.broken).any()
    assert ((net(found).argmax(1) != y) == victim.broken).all()


# --- projections


def planes(count: int, size: int):
    """Points in the box, many on its edges, with planes: some miss the box, some normals have zeros."""
    generator = np.random.default_rng(5)
    points = np.clip(generator.uniform(-0.3, 1.3, (count, size)), 0, 1)
    normal = generator.normal(size=(count, size)) * (generator.uniform(size=(count, size)) > 0.2)
    height = generator.normal(size=count) * np.abs(normal).sum(1) * 0.35
    return (torch.from_numpy(v) for v in (points, normal, height))


def reachable(points, normal, height):
    room = torch.where(normal * height[:, None].sign() > 0, points, 1 - points)
    return (normal.abs() * room).sum(1) >= height.abs()


@pytest.mark.parametrize("norm", NORMS)
def test_the_crossing_lies_on_the_plane_and_in_the_box(norm):
    points, normal, height = planes(400, 12)
    move = crossing(points, normal, height, norm)
    feasible = reachable(points, normal, height)
    assert 100 < feasible.sum() < 390
    left = height + (normal * move).sum(1)
    assert left[feasible].abs().max() < 1e-12
    assert (left.abs() <= height.abs() + 1e-12).all()
    assert ((points + move >= 0) & (points + move <= 1)).all()
    assert (move[normal == 0] == 0).all()
    corner = torch.where(normal * height[:, None] > 0, 0.0, 1.0).double()
    missed = ~feasible[:, None] & (normal != 0)
    assert torch.equal((points + move)[missed], corner[missed])


def shortest(point, normal, height, norm):
    """Length of the smallest move, by a general solver."""
    size, bounds = len(point), list(zip(-point, 1 - point, strict=True))
    if norm == "l2":
        constraint = {"type": "eq", "fun": lambda m: normal @ m + height, "jac": lambda m: normal}
        options = {"maxiter": 500, "ftol": 1e-14}
        told = {"bounds": bounds, "constraints": [constraint], "options": options}
        return np.sqrt(minimize(lambda m: m @ m, np.zeros(size), jac=lambda m: 2 * m, **told).fun)
    eye, extra = np.eye(size), size if norm == "l1" else 1
    cap = np.eye(size) if norm == "l1" else np.ones((size, 1))
    limits = np.block([[eye, -cap], [-eye, -cap]])
    cost = np.r_[np.zeros(size), np.ones(extra)]
    equal = np.r_[normal, np.zeros(extra)][None]
    return linprog(cost, limits, np.zeros(2 * size), equal, [-height], bounds + [(0, None)] * extra).fun


@pytest.mark.parametrize("norm", NORMS)
def test_the_crossing_is_the_shortest(norm):
    points, normal, height = planes(80, 7)
    move = crossing(points, normal, height, norm)
    length = distance(points, points + move, norm)
    for i in reachable(points, normal, height).nonzero()[:25, 0]:
        best = shortest(points[i].numpy(), normal[i].numpy(), float(height[i]), norm)
        assert abs(float(length[i]) - best) < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_the_crossing_is_the_projection_of_autoattack(norm, double):
    module = pytest.importorskip("pyautoattack.fab_projections")
    points, normal, height = planes(300, 40)
    expected = getattr(module, f"projection_{norm}")(points, normal, (normal * points).sum(1) - height)
    assert torch.allclose(crossing(points, normal, height, norm), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_without_a_normal_moves_nothing(norm):
    point = torch.tensor([[0.0, 0.3, 1.0]], dtype=torch.float64)
    for height in (-1.0, 0.0, 1.0):
        move = crossing(point, torch.zeros_like(point), torch.tensor([height]).double(), norm)
        assert torch.equal(move, torch.zeros_like(point))


# --- closed forms


class Linear(nn.Module):
    def __init__(self, weight, bias) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_models_smallest_distance_is_found_within_one_percent(norm, classes):
    generator = torch.Generator().manual_seed(classes)
    net = Linear(torch.randn(classes, 9, generator=generator), torch.zeros(classes))
    x = torch.rand(12, 1, 3, 3, generator=generator)
    x[:6] = x[:6].round()
    logits = net(x).detach()
    y, checked = logits.argmax(1), 0
    for attack in (fab, fab_t):
        _, found = run(attack, net, x, threat=f"{norm}(inf)", steps=100)
        for i in range(len(x)):
            options, free = [], []
            for k in set(range(classes)) - {int(y[i])}:
                normal = (net.weight[k] - net.weight[y[i]]).detach().double()
                height = (logits[i, k] - logits[i, y[i]]).double()
                free.append(float(height.abs() / normal.abs().pow(DUAL[norm]).sum().pow(1 / DUAL[norm])))
                if reachable(x[i].double().flatten()[None], normal[None], height[None]):
                    options.append(shortest(x[i].flatten().double().numpy(), normal.numpy(), float(height), norm))
            # the untargeted attack chooses the class by its distance without the box, as the paper does
            if options and (attack is fab_t or abs(min(free) - min(options)) < 1e-6 or classes == 2):
                checked += 1
                assert net(found[i : i + 1]).argmax(1) != y[i]
                assert float(distance(x, found, norm)[i]) <= min(options) * 1.01 + 1e-6
    assert checked >= 12


# --- books, company, budgets


@pytest.mark.slow
@pytest.mark.parametrize("attack", [fab, fab_t])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_its_company(attack, norm):
    net, x = tiny(), images(10)
    for threat in (f"{norm}({EPS[norm]})", f"{norm}(inf)"):
        whole = run(attack, net, x, threat=threat, steps=4, restarts=2)
        for size in (1, 4):
            for a in range(0, 10, size):
                ids = torch.arange(10)[a : a + size]
                victim, found = run(attack, net, x[a : a + size], threat=threat, ids=ids, steps=4, restarts=2)
                assert torch.equal(found, whole[1][a : a + size])
                assert torch.equal(victim.forwards, whole[0].forwards[a : a + size])


def test_passes_are_counted_exactly():
    net, x = tiny(), images()
    for steps, restarts in ((5, 1), (3, 2)):
        runs, each = 3 * restarts, 2 * steps
        victim, _ = run(fab_t, net, x, threat="linf(0)", steps=steps, restarts=restarts)
        assert (victim.backwards == runs * steps).all()
        assert (victim.forwards == 1 + runs * each).all()
        victim, _ = run(fab, net, x, threat="linf(0)", steps=steps, restarts=restarts)
        assert (victim.backwards == restarts * steps * 3).all()
        assert (victim.forwards == 1 + restarts * each).all()
    victim, _ = run(fab, net, x, threat="linf(0)", steps=5, targets=2)
    assert (victim.backwards == 10).all()


def test_a_broken_sample_leaves_at_its_success_unless_told_to_stay():
    net, x = tiny(), images(40)
    victim, _ = run(fab_t, net, x, threat="linf(0.04)", steps=20)
    full = 3 * 20
    assert 5 < victim.broken.sum() < 35
    assert (victim.backwards[victim.broken] < full).all()
    assert (victim.backwards[~victim.broken] == full).all()
    thorough, found = run(fab_t, net, x, threat="linf(0.04)", steps=20, stop=False)
    assert (thorough.backwards == full).all()
    assert thorough.broken[victim.broken].all()
    free = distance(x, run(fab_t, net, x, threat="linf(inf)", steps=20)[1], "linf")
    assert torch.equal(distance(x, found, "linf")[thorough.broken], free[thorough.broken])


def test_a_misclassified_sample_is_returned_as_it_is():
    net, x = tiny(), images()
    y = net(x).argmax(1).clone()
    y[::2] = (y[::2] + 1) % 4
    for attack in (fab, fab_t):
        for threat in ("l2(0.1)", "l2(inf)"):
            victim, found = run(attack, net, x, threat=threat, y=y, steps=5)
            assert torch.equal(found[::2], x[::2])
            assert (victim.forwards[::2] == 1).all()
            assert (victim.backwards[::2] == 0).all()


def test_the_victims_own_target_is_the_only_one():
    net, x = tiny(), images()
    y = net(x).argmax(1)
    target = (y + 1) % 4
    threat = ThreatModel.parse("linf(0)")
    victim = Victim(net, x, y, threat=threat, target=target)
    fab_t(victim, x, y, threat=threat, seeds=Draws(0, torch.arange(len(x))), steps=4)
    assert (victim.backwards == 4).all()
    assert torch.equal(victim.target, target)


def test_a_gradient_that_is_not_finite_leaves_the_points_finite():
    class Broken(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            return torch.stack([flat.sum(1), (flat - flat).sqrt().sum(1)], 1)

    for attack in (fab, fab_t):
        _, found = run(attack, Broken(), images(), threat="linf(0.1)", steps=4, y=torch.zeros(COUNT, dtype=torch.int64))
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"steps": 0}, "steps, restarts and targets must be at least 1"),
        ({"restarts": 0}, "steps, restarts and targets"),
        ({"targets": -1}, "steps, restarts and targets"),
        ({"alpha_max": 1.5}, "alpha_max, eta and beta"),
        ({"beta": 0}, "alpha_max, eta and beta"),
        ({"eta": 0}, "alpha_max, eta and beta"),
    ],
)
def test_what_cannot_be_used_is_refused(params, text):
    for attack in (fab, fab_t):
        with pytest.raises(ConfigError, match=text):
            run(attack, tiny(), images(), threat="linf(0.1)", **params)


def test_other_norms_are_refused():
    for attack in (fab, fab_t):
        with pytest.raises(ConfigError, match="FAB's norm must be linf, l2 or l1, got 'l0'"):
            run(attack, tiny(), images(), threat="l0(3)")


def test_fab_t_needs_a_target():
    with pytest.raises(ConfigError, match="targets"):
        run(fab_t, tiny(), images(), threat="linf(0.1)", targets=0)


def test_the_untargeted_plane_is_the_nearest_of_all_classes():
    net, x = tiny(), images().double()
    net, y = net.double(), net.double()(x).argmax(1)
    victim = Victim(net, x, y, threat=ThreatModel.parse("l2(1)"), width=7)
    wrong = torch.stack([torch.tensor([k for k in range(4) if k != int(label)]) for label in y])
    _, height, normal = _fab._nearest_class(victim, wrong)(x, torch.arange(len(x)))
    for i in range(len(x)):
        planes_of = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], x[i]).flatten(1)
        gaps = net(x[i : i + 1])[0] - net(x[i : i + 1])[0, y[i]]
        normals = planes_of - planes_of[y[i]]
        far = gaps.abs() / normals.norm(dim=1).clamp_min(1e-12)
        far[y[i]] = torch.inf
        best = int(far.argmin())
        assert torch.allclose(height[i], gaps[best])
        assert torch.allclose(normal[i], normals[best])


@pytest.mark.parametrize("norm", NORMS)
def test_a_shortcut_comes_near_in_few_steps_and_is_charged(norm):
    """A boundary close to x between two plateaus, whose slope sends every step to a corner of the box."""

    class Plateaus(nn.Module):
        def forward(self, x):
            along = x.flatten(1).mean(1) - 0.5
            return torch.stack([torch.zeros_like(along), 1e-3 * along + torch.where(along > 0.004, 1.0, -1.0)], 1)

    x, y = torch.full((4, 1, 5, 5), 0.5), torch.zeros(4, dtype=torch.int64)
    plain, far = run(fab_t, Plateaus(), x, y=y, threat=f"{norm}(inf)", steps=4)
    cut, near = run(fab_t, Plateaus(), x, y=y, threat=f"{norm}(inf)", steps=4, shortcut=0.5)
    assert (plain.best_margin <= 0).all() and (cut.best_margin <= 0).all()
    assert (distance(x, near, norm) < 0.6 * distance(x, far, norm)).all()
    assert (
        (plain.forwards == 1 + 2 * 4).all() and (cut.forwards > plain.forwards).all() and (cut.forwards <= 1 + 3 * 4).all()
    )
    assert torch.equal(cut.backwards, plain.backwards)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_shortcut_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match="shortcut"):
        run(fab_t, tiny(), images(2), threat="l2(0.1)", shortcut=share)
