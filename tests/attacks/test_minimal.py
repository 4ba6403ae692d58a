"""Minimum-norm attacks beside closed forms, slow twins, foolbox, and the pitfalls that peers fell into."""

import math

import foolbox
import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from robench.attacks import cw, ddn, deepfool, ead, fmn
from robench.attacks._minimal import Constant, direction, size, within
from robench.data._digits import digits as digits_data
from robench.errors import ConfigError
from robench.inference import predict
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.spec import ThreatModel
from robench.victim import Victim
from robench.zoo import load

ATTACKS = {"ddn": ddn, "fmn": fmn, "deepfool": deepfool, "cw": cw, "ead": ead}
NORMS = {"ddn": "l2", "deepfool": "l2", "cw": "l2", "ead": "l1"}
QUICK = {
    "ddn": {"steps": 30}, "fmn": {"steps": 30}, "deepfool": {}, "cw": {"steps": 60, "searches": 3, "constant": 10.0},
    "ead": {"steps": 30, "searches": 5},
}  # fmt: skip
PAIRS = [(name, norm) for name in ATTACKS for norm in (("linf", "l2", "l1") if name == "fmn" else (NORMS[name],))]
PAIRS.append(("deepfool", "linf"))
DEAR = [pytest.param(*pair, marks=pytest.mark.slow) if pair[0] in ("cw", "ead") else pair for pair in PAIRS]
"""The same, the attacks that search a weight only among the slow tests."""
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def run(name, net, x, y, *, norm=None, eps="inf", ids=None, victim=None, **params):
    threat = ThreatModel.parse(f"{norm or NORMS[name]}({eps})")
    victim = victim or Victim(net, x, y, threat=threat)
    ids = torch.arange(len(x)) if ids is None else ids
    return victim, ATTACKS[name](victim, x, y, threat=threat, seeds=Draws(0, ids), **params)


class Linear(nn.Module):
    """Logits of a linear model over flat images, float64 inside."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1).to(self.weight.dtype) @ self.weight.T + self.bias


def linear(classes, pixels=12, gap=0.4):
    """A linear model, images and labels, whose boundary is near enough to the grey middle that no pixel saturates."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, pixels, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.02 * torch.randn(8, 1, 1, pixels, generator=generator, dtype=torch.float64)
    net = Linear(weight, -weight.sum(1) / 2)
    y = net(x).argmax(1)
    return net, x, y


def optimum(net, x, y, norm):
    """Distance to the nearest boundary of a linear model without a box."""
    logits, rows = net(x).detach(), torch.arange(len(x))
    gaps = logits[rows, y][:, None] - logits
    slopes = (net.weight[y][:, None] - net.weight).detach()
    far = gaps / torch.linalg.vector_norm(slopes, DUAL[norm], dim=2).clamp_min(1e-12)
    far[rows, y] = math.inf
    return far.amin(1)


# --- closed forms

SHARP = {
    ("ddn", "l2"): {"steps": 400, "init_norm": 0.02, "step_size": 0.05},
    ("fmn", "linf"): {"steps": 300},
    ("fmn", "l2"): {"steps": 300},
    ("fmn", "l1"): {"steps": 300},
    ("deepfool", "linf"): {"overshoot": 1e-4},
    ("deepfool", "l2"): {"overshoot": 1e-4},
    ("cw", "l2"): {"steps": 300, "step_size": 0.002, "constant": 0.01},
    ("ead", "l1"): {"searches": 15},
}


def require_near_the_optimum(name, norm, classes):
    net, x, y = linear(classes)
    victim, found = run(name, net, x, y, norm=norm, **SHARP[name, norm])
    assert victim.broken.all()
    ratio = distance(x, found, norm) / optimum(net, x, y, norm)
    assert ratio.min() >= 1 - 1e-9, ratio
    slack = 1e-4 / optimum(net, x, y, norm) if name == "deepfool" else 0.0
    assert (ratio <= 1.01 + slack).all(), ratio


@pytest.mark.parametrize(("name", "norm"), DEAR)
def test_distances_on_linear_models_are_within_one_percent_of_the_optimum(name, norm):
    require_near_the_optimum(name, norm, 2)


@pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if pair[0] in ("fmn", "deepfool")])
def test_fmn_and_deepfool_find_the_nearest_of_four_linear_classes(name, norm):
    require_near_the_optimum(name, norm, 4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_overshoots_a_linear_boundary_by_two_percent(norm):
    net, x, y = linear(4)
    _, found = run("deepfool", net, x, y, norm=norm)
    assert torch.allclose(distance(x, found, norm), 1.02 * (optimum(net, x, y, norm) + 1e-4), rtol=1e-9)


def boxed():
    """A two-class linear model at an image that the box cuts on many sides."""
    generator = torch.Generator().manual_seed(5)
    slope = torch.randn(10, generator=generator, dtype=torch.float64)
    x = torch.where(torch.arange(10) % 2 == 0, (slope > 0).double(), torch.rand(10, generator=generator).double())
    reach = torch.where(slope > 0, slope * (1 - x), -slope * x).sum()
    bias = -(slope @ x) - 0.7 * reach
    net = Linear(torch.stack([torch.zeros_like(slope), slope]), torch.stack([torch.zeros_like(bias), bias]))
    return net, x.view(1, 1, 1, 10), torch.zeros(1, dtype=torch.int64), slope.numpy(), float(bias)


def boxed_optimum(x, slope, bias, norm):
    """Smallest distance to slope·p + bias >= 0 in the box, by scipy."""
    x = x.flatten().numpy()
    n = len(x)
    if norm == "l2":
        told = {"type": "ineq", "fun": lambda p: slope @ p + bias, "jac": lambda p: slope}
        found = minimize(
            lambda p: ((p - x) ** 2).sum(), np.full(n, 0.5), jac=lambda p: 2 * (p - x), bounds=[(0, 1)] * n,
            constraints=[told], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return math.sqrt(found.fun)
    spread = np.eye(n) if norm == "l1" else np.ones((n, 1))
    cost = np.concatenate([np.zeros(n), np.ones(spread.shape[1])])
    upper = np.block([[np.eye(n), -spread], [-np.eye(n), -spread]])
    upper = np.vstack([upper, np.concatenate([-slope, np.zeros(spread.shape[1])])])
    limits = np.concatenate([x, -x, [bias]])
    box = [(0, 1)] * n + [(0, None)] * spread.shape[1]
    return linprog(cost, A_ub=upper, b_ub=limits, bounds=box).fun


BOXED = {
    ("fmn", "l1"): ({"steps": 500}, 1.02),
    ("fmn", "l2"): ({"steps": 500}, 1.01),
    ("fmn", "linf"): ({"steps": 500}, 1.01),
    ("ddn", "l2"): ({"steps": 500}, 1.01),
    ("deepfool", "l2"): ({"steps": 300, "overshoot": 1e-4}, 1.01),
    ("deepfool", "linf"): ({"steps": 300, "overshoot": 1e-4}, 1.01),
    ("cw", "l2"): ({"steps": 200}, 1.01),
    ("ead", "l1"): ({"steps": 300, "beta": 0.05}, 1.02),
}


@pytest.mark.parametrize(("name", "norm"), DEAR)
def test_distances_where_the_box_binds_are_those_of_scipy(name, norm):
    net, x, y, slope, bias = boxed()
    params, bound = BOXED[name, norm]
    _, found = run(name, net, x, y, norm=norm, **params)
    best = boxed_optimum(x, slope, bias, norm)
    assert ((found == 0) | (found == 1)).sum() >= 5
    assert 1 - 1e-6 <= float(distance(x, found, norm)) / best <= bound


def test_fmn_l0_finds_the_fewest_pixels_of_a_linear_model():
    net, x, y, slope, bias = boxed()
    gains = np.sort(np.where(slope > 0, slope * (1 - x.flatten().numpy()), -slope * x.flatten().numpy()))[::-1]
    fewest = int(np.searchsorted(np.cumsum(gains), -bias - float(slope @ x.flatten().numpy()))) + 1
    victim, found = run("fmn", net, x, y, norm="l0", steps=300)
    assert victim.broken.all()
    assert float(distance(x, found, "l0")) == fewest


# --- slow twins: one sample, plain loops, from the papers


def near(net, x, y):
    """A net's loss and margin at a point, and their gradients by autograd."""

    def ask(point, kind):
        leaf = torch.tensor(point, dtype=torch.float64).reshape(x.shape).requires_grad_(True)
        logits = net(leaf)[0]
        others = torch.cat([logits[:y], logits[y + 1 :]]).max()
        gap = others - logits[y]
        loss = nn.functional.cross_entropy(logits[None], torch.tensor([y])) if kind == "ce" else gap
        return float(gap.detach()), torch.autograd.grad(loss, leaf)[0].flatten().numpy()

    return ask


def twin_ddn(ask, x, steps):
    point, radius, best = x.copy(), 1.0, math.inf
    limit = math.sqrt(sum(max(a, 1 - a) ** 2 for a in x))
    for k in range(steps):
        gap, g = ask(point, "ce")
        far = math.sqrt(((point - x) ** 2).sum())
        best = min(best, far) if gap >= 0 else best
        radius = min(radius * (0.95 if gap >= 0 else 1.05), limit)
        alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2
        delta = point - x + alpha * g / math.sqrt((g * g).sum())
        point = np.clip(x + radius * delta / math.sqrt((delta * delta).sum()), 0, 1)
    gap, _ = ask(point, "ce")
    return min(best, math.sqrt(((point - x) ** 2).sum())) if gap >= 0 else best


def norm_of(delta, norm):
    return {"linf": abs(delta).max(), "l2": math.sqrt((delta**2).sum()), "l1": abs(delta).sum()}[norm]


def projected(delta, radius, norm):
    """Onto the ball, by bisection on the multiplier."""
    if norm_of(delta, norm) <= radius:
        return delta
    if norm == "linf":
        return np.clip(delta, -radius, radius)
    if norm == "l2":
        return delta * radius / norm_of(delta, "l2")
    low, high = 0.0, abs(delta).max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(abs(delta) - middle, 0).sum() > radius else (low, middle)
    return np.sign(delta) * np.maximum(abs(delta) - high, 0)


def twin_fmn(ask, x, steps, norm):
    point, radius, best, first = x.copy(), math.inf, math.inf, 10.0 if norm == "linf" else 1.0
    limit, dual = norm_of(np.maximum(x, 1 - x), norm), {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    for k in range(steps):
        gap, g = ask(point, "margin")
        far, half = norm_of(point - x, norm), (1 + math.cos(math.pi * k / steps)) / 2
        gamma = 0.001 + 0.049 * half
        if gap >= 0:
            best = min(best, far)
            radius = min(radius * (1 - gamma), best)
        elif best < math.inf:
            radius *= 1 + gamma
        else:
            aim = far + abs(gap) / norm_of(g, dual)
            radius = aim if radius == math.inf else max(aim, radius * (1 + gamma))
        radius = min(radius, limit)
        delta = point - x + first * (0.01 + 0.99 * half) * g / norm_of(g, "l2")
        point = np.clip(x + projected(delta, radius, norm), 0, 1)
    gap, _ = ask(point, "margin")
    return min(best, norm_of(point - x, norm)) if gap >= 0 else best


def twin_deepfool(net, x, y, shape, norm):
    point, total = x.copy(), np.zeros_like(x)
    for _ in range(50):
        leaf = torch.tensor(point).reshape(shape).requires_grad_(True)
        logits = net(leaf)[0]
        if logits.argmax() != y:
            return norm_of(point - x, norm)
        found = []
        for k in range(len(logits)):
            if k != y:
                gap = logits[k] - logits[y]
                w = torch.autograd.grad(gap, leaf, retain_graph=True)[0].flatten().numpy()
                found.append((abs(float(gap.detach())) / norm_of(w, "l1" if norm == "linf" else "l2"), w))
        far, w = min(found, key=lambda pair: pair[0])
        total += (far + 1e-4) * (np.sign(w) if norm == "linf" else w / norm_of(w, "l2"))
        point = np.clip(x + 1.02 * total, 0, 1)
    return math.inf


def search(value, low, high, won):
    """The next weight of the classification term and its bounds."""
    if won:
        high = min(high, value)
    else:
        low = max(low, value)
    return (value * 10 if high == math.inf else (low + high) / 2), low, high


def twin_cw(ask, x, steps, searches, shrink):
    best, c, low, high = math.inf, 1e-3, 0.0, math.inf
    for _ in range(searches):
        w = np.arctanh((2 * x - 1) * shrink)
        m, v, won, last = np.zeros_like(w), np.zeros_like(w), False, math.inf
        for k in range(steps):
            point = np.clip(0.5 + np.tanh(w) / (2 * shrink), 0, 1)
            gap, g = ask(point, "margin")
            if gap >= 0:
                won, best = True, min(best, norm_of(point - x, "l2"))
            loss = ((point - x) ** 2).sum() + c * max(-gap, 0)
            slope = (2 * (point - x) - (c * g if gap < 0 else 0)) * (1 - np.tanh(w) ** 2) / (2 * shrink)
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            w = w - 0.01 * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
            if k % math.ceil(steps / 10) == 0:
                if not loss <= 0.9999 * last:
                    break
                last = loss
        c, low, high = search(c, low, high, won)
    return best


def twin_ead(ask, x, steps, searches, beta, rule):
    best, kept, c, low, high = math.inf, math.inf, 1e-3, 0.0, math.inf

    def look(point, gap):
        nonlocal best, kept
        l1 = norm_of(point - x, "l1")
        score = l1 if rule == "L1" else beta * l1 + ((point - x) ** 2).sum()
        if gap >= 0 and score < best:
            best, kept = score, l1

    for _ in range(searches):
        point, ahead, won, last = x.copy(), x.copy(), False, math.inf
        for k in range(steps):
            gap, g = ask(ahead, "margin")
            look(ahead, gap)
            smooth = ((ahead - x) ** 2).sum() + c * max(-gap, 0)
            slope = 2 * (ahead - x) - (c * g if gap < 0 else 0)
            z = ahead - 0.01 * math.sqrt(1 - k / steps) * slope
            new = np.where(z - x > beta, np.minimum(z - beta, 1), np.where(z - x < -beta, np.maximum(z + beta, 0), x))
            ahead_loss = smooth + beta * norm_of(ahead - x, "l1")
            ahead, point = np.clip(new + k / (k + 3) * (new - point), 0, 1), new
            gap, _ = ask(point, "margin")
            won |= gap >= 0
            look(point, gap)
            if k % math.ceil(steps / 10) == 0:
                if not ahead_loss <= 0.9999 * last:
                    break
                last = ahead_loss
        c, low, high = search(c, low, high, won)
    return kept


@pytest.fixture(scope="module")
def smooth():
    """A smooth float64 net of 5 classes on 20 pixels, and 3 images that it classifies right, some pixels saturated."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * 0.6)
    x = (torch.rand(30, 1, 4, 5, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    with torch.no_grad():
        top = net(x).topk(2, dim=1).values
    x = x[(top[:, 0] - top[:, 1]).argsort()[5:8]]
    return net, x, net(x).argmax(1)


def twin(name, net, x, y, norm):
    ask, flat = near(net, x, int(y)), x.flatten().numpy()
    if name == "ddn":
        return twin_ddn(ask, flat, 100)
    if name == "fmn":
        return twin_fmn(ask, flat, 100, norm)
    if name == "deepfool":
        return twin_deepfool(net, flat, int(y), x.shape, norm)
    if name == "cw":
        return twin_cw(ask, flat, 40, 6, 0.9)
    return twin_ead(ask, flat, 40, 6, 1e-2, norm)


@pytest.mark.parametrize(("name", "norm"), [*((n, p) for n, p in PAIRS if n != "ead"), ("ead", "L1"), ("ead", "EN")])
def test_the_distances_are_those_of_the_slow_twin(smooth, name, norm):
    net, x, y = smooth
    params = {"steps": 40, "searches": 6} if name in ("cw", "ead") else {}
    space = norm
    if name == "ead":
        params["rule"], space = norm, "l1"
    _, found = run(name, net, x, y, norm=space, **params)
    expected = [twin(name, net, x[i : i + 1], y[i], norm) for i in range(len(x))]
    assert all(0 < e < math.inf for e in expected)
    assert distance(x, found, space).tolist() == pytest.approx(expected, rel=1e-6)


# --- the zoo: beside foolbox


@pytest.fixture(scope="module")
def zoo():
    """The zoo's standard net and its first 20 test digits, all classified right."""
    net, data = load("digits-standard"), digits_data(split="test")
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x, y = data.images(torch.arange(20)), data.labels[:20]
    assert (net(x).argmax(1) == y).all()
    return net, x, y


FOOLBOX = {
    ("ddn", "l2"): (foolbox.attacks.DDNAttack, {"steps": 100}, {}),
    ("deepfool", "l2"): (foolbox.attacks.L2DeepFoolAttack, {}, {}),
    ("deepfool", "linf"): (foolbox.attacks.LinfDeepFoolAttack, {}, {}),
    ("fmn", "linf"): (foolbox.attacks.LInfFMNAttack, {"steps": 100}, {}),
    ("fmn", "l2"): (foolbox.attacks.L2FMNAttack, {"steps": 100}, {}),
    ("fmn", "l1"): (foolbox.attacks.L1FMNAttack, {"steps": 100}, {}),
    ("cw", "l2"): (foolbox.attacks.L2CarliniWagnerAttack, {"steps": 100}, {}),
    ("ead", "l1"): (foolbox.attacks.EADAttack, {"steps": 100, "decision_rule": "L1"}, {}),
}
GOLDEN = {
    ("ddn", "l2"): 1.3255, ("deepfool", "l2"): 1.3987, ("deepfool", "linf"): 0.0715, ("fmn", "linf"): 0.0677,
    ("fmn", "l2"): 1.3242, ("fmn", "l1"): 10.52, ("cw", "l2"): 1.3254,
}  # fmt: skip
"""Median distance over the 20 digits with the default parameters."""


def theirs(net, x, y, norm, attack, params):
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    found = attack(**params).run(model, x, foolbox.criteria.Misclassification(y))
    far = distance(x, found, norm)
    return far.where(net(found).argmax(1) != y, math.inf)


def compare(zoo, name, norm):
    net, x, y = zoo
    attack, params, own = FOOLBOX[name, norm]
    _, found = run(name, net, x, y, norm=norm, **own)
    assert (predict(net, found, width=64).argmax(1) != y).all()
    mine, other = float(distance(x, found, norm).median()), float(theirs(net, x, y, norm, attack, params).median())
    assert mine <= 1.05 * other, (mine, other)
    if (name, norm) in GOLDEN:
        assert mine == pytest.approx(GOLDEN[name, norm], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [pair for pair in FOOLBOX if pair[0] not in ("cw", "ead")])
def test_the_median_distance_is_no_larger_than_foolboxs(zoo, name, norm):
    compare(zoo, name, norm)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [("cw", "l2"), ("ead", "l1")])
def test_the_median_distance_of_searches_is_no_larger_than_foolboxs(zoo, name, norm):
    compare(zoo, name, norm)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_an_image_is_the_same_in_any_company_and_order(zoo, name, norm):
    net, x, y = zoo
    rows = torch.arange(6)
    params = {"steps": 6, "searches": 3, "constant": 1.0} if name in ("cw", "ead") else {"steps": 8}
    _, whole = run(name, net, x[rows], y[rows], norm=norm, ids=rows, **params)
    order = rows.flip(0)
    _, turned = run(name, net, x[order], y[order], norm=norm, ids=order, **params)
    assert torch.equal(turned.flip(0), whole)
    singles = [run(name, net, x[i : i + 1], y[i : i + 1], norm=norm, ids=rows[i : i + 1], **params)[1] for i in (0, 4)]
    assert torch.equal(torch.cat(singles), whole[[0, 4]])


# --- what is returned


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_a_budget_keeps_the_nearest_success_in_the_ball(smooth, name, norm):
    net, x, y = smooth
    _, free = run(name, net, x, y, norm=norm, **QUICK[name])
    far = distance(x, free, norm)
    for eps in (f"{float(far.median()) * 1.001:.6f}", "0"):
        victim, found = run(name, net, x, y, norm=norm, eps=eps, **QUICK[name])
        assert torch.equal(victim.broken, far <= float(eps) + 1e-6)
        assert torch.equal(found[victim.broken], free[victim.broken])
        assert torch.equal(victim.result()[victim.broken], free[victim.broken])
        assert (distance(x, found, norm) <= float(eps) + 1e-6).all()


@pytest.mark.parametrize("name", ["ddn", "fmn", "cw", "ead"])
def test_stop_leaves_a_sample_at_its_first_success_in_the_ball(smooth, name):
    net, x, y = smooth
    norm = NORMS.get(name, "l2")
    params = {"norm": norm, "eps": "20", **QUICK[name]}
    full, best = run(name, net, x, y, **params)
    first, found = run(name, net, x, y, stop=True, **params)
    assert first.broken.all()
    assert (first.forwards < full.forwards).all()
    assert (distance(x, found, norm) >= distance(x, best, norm)).all()
    assert (net(found).argmax(1) != y).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_misclassified_stays_where_it_is_after_one_pass(smooth, name):
    net, x, y = smooth
    victim, found = run(name, net, x, (y + 1) % 5, norm=NORMS.get(name, "l2"))
    assert torch.equal(found, x)
    assert victim.forwards.tolist() == [1, 1, 1]


def test_a_known_success_is_never_made_worse(smooth):
    net, x, y = smooth
    victim, near_by = run("fmn", net, x, y, norm="l2")
    _, found = run("ddn", net, x, y, victim=victim, steps=2)
    assert torch.equal(found, near_by)


def test_ead_by_the_elastic_net_prefers_another_success_than_by_l1(smooth):
    net, x, y = smooth
    found = {rule: run("ead", net, x, y, rule=rule, **QUICK["ead"])[1] for rule in ("L1", "EN")}
    delta = {rule: (points - x).flatten(1) for rule, points in found.items()}
    l1 = {rule: d.abs().sum(1) for rule, d in delta.items()}
    net_of = {rule: 1e-2 * l1[rule] + (d**2).sum(1) for rule, d in delta.items()}
    assert (l1["L1"] <= l1["EN"] + 1e-12).all()
    assert (net_of["EN"] <= net_of["L1"] + 1e-12).all()
    assert not torch.equal(found["L1"], found["EN"])


# --- pitfalls of peers


def saturated():
    """A two-class model and black-and-white images, as in MNIST."""
    generator = torch.Generator().manual_seed(8)
    slope = torch.randn(30, generator=generator)
    x = (torch.rand(8, 1, 5, 6, generator=generator) > 0.5).float()
    bias = -(x.flatten(1) @ slope).mean()
    net = Linear(torch.stack([torch.zeros_like(slope), slope]), torch.stack([torch.zeros_like(bias), bias]))
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("name", ATTACKS)
def test_pitfall_8_images_with_only_black_and_white_pixels_are_broken(name):
    net, x, y = saturated()
    norm = NORMS.get(name, "l2")
    victim, found = run(name, net, x, y, norm=norm)
    assert victim.broken.all()
    if norm == "l2":
        for i in range(len(x)):
            gap = (net.weight[1 - y[i]] - net.weight[y[i]]).detach().double()
            bias = float((net.bias[1 - y[i]] - net.bias[y[i]]).detach())
            best = boxed_optimum(x[i].double(), gap.numpy(), bias, "l2")
            assert float(distance(x[i : i + 1], found[i : i + 1], "l2")) <= 1.05 * best + 1e-3


def test_pitfall_8_cw_represents_the_pixels_0_and_1_exactly_and_moves_off_them():
    net, x, y = saturated()
    points = []
    threat = ThreatModel.parse("l2(inf)")

    class Watching(Victim):
        def gradient(self, at, rows, loss="ce"):
            points.append(at.clone())
            return super().gradient(at, rows, loss)

    run("cw", net, x, y, victim=Watching(net, x, y, threat=threat), constant=10.0, searches=1, steps=20, abort=False)
    assert torch.allclose(points[0], x, atol=1e-6, rtol=0)
    assert ((points[1] - x).abs().flatten(1).amax(1) > 5e-4).all()
    assert ((points[15] - x).abs().flatten(1).amax(1) > 0.01).all()


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_pitfall_8_the_margin_of_all_negative_logits_still_has_a_slope(smooth, name, norm):
    net, x, y = smooth

    class Lowered(nn.Module):
        def forward(self, points):
            return net(points) - 1000

    victim, found = run(name, Lowered(), x, y, norm=norm, **QUICK[name])
    _, plain = run(name, net, x, y, norm=norm, **QUICK[name])
    assert victim.broken.all()
    assert torch.allclose(distance(x, found, norm), distance(x, plain, norm), rtol=1e-3)


@pytest.mark.parametrize("name", ["cw", "ead"])
def test_pitfall_8_a_sample_stops_by_its_own_loss_not_by_the_batchs(smooth, name):
    net, x, y = smooth
    together, _ = run(name, net, x, y, steps=30)
    alone = [run(name, net, x[i : i + 1], y[i : i + 1], steps=30)[0].forwards.item() for i in range(len(x))]
    assert together.forwards.tolist() == alone
    assert len(set(alone)) > 1


class Flat(nn.Module):
    """A hard threshold: outputs depend on the image, gradients are zero everywhere."""

    def forward(self, x):
        bright = (x.flatten(1) > 0.5).to(x.dtype).mean(1) + 0 * x.flatten(1).sum(1)
        return torch.stack([bright, 1.06 - bright], 1)


@pytest.mark.parametrize("name", ["ddn", "fmn"])
def test_pitfall_10_without_a_gradient_the_image_is_neither_frozen_nor_nan(name):
    x = torch.linspace(0.3, 0.7, 40).view(1, 1, 5, 8).repeat(6, 1, 1, 1)
    x = (x + 0.02).clamp(0, 1)
    y = Flat()(x).argmax(1)
    victim, found = run(name, Flat(), x, y, norm="l2")
    assert found.isfinite().all()
    assert (victim.zero_gradients == 100).all()
    assert ((found - x).abs().flatten(1).amax(1) > 0.01).all()
    assert victim.broken.any(), "random directions find what the gradient does not show"


@pytest.mark.parametrize("name", ATTACKS)
def test_pitfall_9_a_gradient_that_is_not_finite_makes_no_success(smooth, name):
    net, x, y = smooth

    class Broken(nn.Module):
        def forward(self, points):
            return net(points) * (1 + 0 * (points.flatten(1) - points.detach().flatten(1)).abs().sqrt().sum(1, keepdim=True))

    victim, found = run(name, Broken(), x, y, norm=NORMS.get(name, "l2"), **QUICK[name])
    assert (victim.nonfinite_gradients > 0).all()
    assert found.isfinite().all()
    margin = victim.task.margin(net(found), y)
    assert torch.equal(margin <= 0, victim.broken)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_pitfall_28_boundary_points_are_misclassified_in_other_company_too(zoo, name, norm):
    net, x, y = zoo
    params = {"steps": 20, "searches": 3, "constant": 1.0} if name in ("cw", "ead") else {"steps": 40}
    victim, found = run(name, net, x[:6], y[:6], norm=norm, **params)
    for width in (16, 64, 128):
        assert torch.equal(predict(net, found, width=width).argmax(1) != y[:6], victim.broken)


# --- the shared parts


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_within_is_the_nearest_point_of_each_samples_ball(norm):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(20, 1, 3, 7, generator=generator, dtype=torch.float64)
    radius = torch.linspace(0, 12, 20).double()
    radius = radius.floor() if norm == "l0" else radius / 4
    found = within(delta, radius, norm)
    assert (size(found, norm) <= radius + 1e-12).all()
    inside = size(delta, norm) <= radius
    assert torch.equal(found[inside], delta[inside])
    far = ((found - delta) ** 2).flatten(1).sum(1)
    for _ in range(200):
        other = within(torch.randn(delta.shape, generator=generator, dtype=torch.float64), radius, norm)
        assert (((other - delta) ** 2).flatten(1).sum(1) >= far - 1e-12).all()
    for row in range(20):
        if norm != "l0":
            expected = projected(delta[row].flatten().numpy(), float(radius[row]), norm)
            assert np.allclose(found[row].flatten().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("columns", [1, 2, 3, 31, 784])
def test_row_sums_are_exact_sums_whatever_the_number_of_rows(columns):
    values = torch.randn(9, columns, generator=torch.Generator().manual_seed(1))
    whole = row_sums(values)
    assert whole.tolist() == pytest.approx([math.fsum(row) for row in values.tolist()], rel=1e-12, abs=1e-12)
    assert torch.equal(torch.cat([row_sums(values[i : i + 1]) for i in range(9)]), whole)


def test_a_direction_has_length_one_even_where_the_gradient_is_tiny_zero_or_infinite():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-38, 0.0], [math.inf, 1.0], [math.nan, 0.0]])
    found = direction(gradient, Draws(0, torch.arange(5)), "test", step=0)
    assert torch.allclose(size(found, "l2"), torch.ones(5).double())
    assert torch.allclose(found[0], torch.tensor([0.6, 0.8]).double())
    assert torch.equal(found[2], torch.tensor([1.0, 0.0]).double())
    assert gradient[3, 0] == math.inf


def test_each_weight_grows_tenfold_until_its_first_success_and_is_then_halved_in():
    weight, rows = Constant.of(2, 1.0, torch.zeros(1)), torch.arange(2)
    for success in ([False, True], [True, True], [False, False]):
        weight.update(rows, torch.tensor(success))
    assert weight.value.tolist() == [7.75, 0.375]
    weight.update(rows[:1], torch.tensor([True]))
    assert weight.value.tolist() == [6.625, 0.375]


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("ddn", {"steps": 0}, "steps must be above 0, got 0"),
        ("ddn", {"init_norm": 0.0}, "init norm must be above 0, got 0.0"),
        ("fmn", {"gamma": -1.0}, "gamma must be above 0"),
        ("fmn", {"step_size": math.nan}, "step size must be above 0"),
        ("deepfool", {"candidates": 1}, "candidates"),
        ("deepfool", {"overshoot": -1.5}, "overshoot"),
        ("cw", {"shrink": 1.0}, "shrink"),
        ("cw", {"searches": 0}, "searches must be above 0"),
        ("ead", {"rule": "l3"}, "rule must be 'L1' or 'EN', got 'l3'"),
    ],
)
def test_parameters_that_would_attack_nothing_are_refused(smooth, name, params, text):
    net, x, y = smooth
    with pytest.raises(ConfigError, match=text):
        run(name, net, x, y, norm=NORMS.get(name, "l2"), **params)
