"""What every protocol keeps to: the same rows in any company, exact budgets, confirmed finds, closed forms, certificates.

Most tests run the protocols with shortened stages (``short``); the exact budgets and the slow ones run them whole.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from torch import nn

import robench
from robench import api, catalog
from robench.attacks import _cascade, _protocols
from robench.attacks._apgd import apgd_t
from robench.attacks._cascade import diversified, ladder, sieve
from robench.attacks._engine import Engine
from robench.attacks._fab import fab_t
from robench.errors import ConfigError
from robench.inference import predict
from robench.judge import judge
from robench.ops.norms import Ball, distance
from robench.spec import ThreatModel
from robench.suite import parse_suite
from robench.victim import BOOKS, Victim

SIDE, COUNT, CLASSES = 6, 10, 5
EPS = {"linf": "0.05", "l2": "0.3", "l1": "1.2", "l0": "2"}
OWN_TESTS = {"autoattack-rand"}
"""Protocols for other models than those of this file."""

PROTOCOLS = [name for name, entry in catalog.ATTACKS.items() if entry.facts.get("protocol") and name not in OWN_TESTS]
ALONE = [name for name in PROTOCOLS if not catalog.ATTACKS[name].facts.get("surrogate")]
"""Those that need no second model."""
PAIRS = [(name, norm) for name in PROTOCOLS for norm in catalog.ATTACKS[name].facts["norms"]]
DEAR = {("robench-deep", "linf"), ("robench-deep", "l2"), ("autoattack-plus", "l2")}
"""Seconds each with one sample held at a time; the other norms of these protocols are always looked at, or their stages."""


def build(classes: int = CLASSES, *, features: int = SIDE * SIDE) -> nn.Sequential:
    """A small ReLU net with fixed random weights, the same at every call."""
    generator = torch.Generator().manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(features, 24), nn.ReLU(), nn.Linear(24, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return net.eval()


def images(count: int = COUNT, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def threat_of(name: str, norm: str) -> ThreatModel:
    return ThreatModel.parse(f"{norm}({'inf' if name == 'curve' else EPS[norm]})")


def run(name: str, threat: ThreatModel, *, net: nn.Module | None = None, x=None, y=None, ids=None, **told) -> Engine:
    """A protocol's engine after it has run; labels are the net's own predictions, two of them wrong."""
    net, x = net or build(), images() if x is None else x
    if y is None:
        y = predict(net, x, width=64).argmax(1)
        y[:2] = (y[:2] + 1) % int(y.max() + 1)
    engine = Engine(net, x, y, torch.arange(len(x)) * 7 + 5 if ids is None else ids, threat, **told)
    engine.surrogate = relative(net) if name not in ALONE else None
    catalog.ATTACKS[name].load()(engine)
    return engine


def relative(net: nn.Module) -> nn.Module:
    """Another model of the same kind: the weights moved a little."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return net


def waterfall(engine: Engine) -> list[dict]:
    return [{k: v for k, v in asdict(stage).items() if k != "seconds"} for stage in engine.waterfall]


def same(one: Engine, other: Engine) -> None:
    """Both found the same, to the byte, and were charged the same."""
    place = torch.stack([(other.ids == i).nonzero()[0, 0] for i in one.ids])
    assert torch.equal(one.broken, other.broken[place])
    assert torch.equal(one.stage, other.stage[place])
    assert torch.equal(one.best, other.best[place])
    for name in BOOKS:
        assert torch.equal(one.books[name], other.books[name][place]), name
    assert waterfall(one) == waterfall(other)


@pytest.fixture
def short(monkeypatch):
    """Every stage with a small budget, so that a protocol takes a fraction of a second."""
    most = {"steps": 6, "queries": 12, "restarts": 2, "searches": 2, "targets": 3}

    def capped(make):
        def made(function, **params):
            known = inspect.signature(function).parameters
            found = {k: params.get(k, known[k].default) for k in most if k in known}
            return make(function, **{**params, **{k: min(v, most[k]) for k, v in found.items()}})

        return made

    for name in ("plain", "nearest"):
        monkeypatch.setattr(_protocols, name, capped(getattr(_protocols, name)))
    ladder, polish = _protocols.ladder, _protocols.polish
    monkeypatch.setattr(_protocols, "ladder", lambda ranks, steps=40, *, diverse: ladder(ranks, 5, diverse=diverse))
    diversified = _protocols.diversified
    monkeypatch.setattr(_protocols, "polish", lambda loss: polish(loss, 5))
    monkeypatch.setattr(
        _protocols, "diversified", lambda *turns, **m: diversified(*turns[:4], **{**m, "before": 2, "steps": 3})
    )
    shrinking = _protocols.shrinking
    monkeypatch.setattr(_protocols, "shrinking", lambda *turns, **m: shrinking(*turns[:4], steps=4))


# --- stages


def crowd(classes=10, count=120):
    """A net of many classes on more samples than a batch holds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
    for parameter in net.parameters():
        parameter.data *= 2
    x = torch.rand(count, 30, generator=torch.Generator().manual_seed(1))
    return net.eval(), x, net(x).argmax(1).detach()


STAGES = {
    "ladder-3": lambda: ladder(3, 6, diverse=True),
    "ladder-9": lambda: ladder(9, 6, diverse=False),
    "rounds-3": lambda: diversified(0, 1, 2, steps=6),
    "restarts-48": lambda: diversified(*range(19, 67), steps=4),
    "apgd-t": lambda: _protocols.plain(apgd_t, steps=6, together=4),
    "fab-t": lambda: _protocols.plain(fab_t, steps=6, together=4),
}


@pytest.mark.parametrize("norm", ["linf(0.03)", "l2(0.15)"])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_of_many_copies_does_not_depend_on_how_many_samples_are_held(name, norm):
    net, x, y = crowd()
    found = []
    for hold in (1024, 28, 4):
        engine = Engine(net, x, y, torch.arange(len(x)), ThreatModel.parse(norm), hold=hold)
        engine.look()
        engine.rank()
        engine.run("stage", STAGES[name]())
        found.append(engine)
    first, *others = found
    assert 0 < first.broken.sum() < len(x)
    for other in others:
        assert torch.equal(first.broken, other.broken) and torch.equal(first.best, other.best)
        assert all(torch.equal(first.books[k], other.books[k]) for k in first.books)


@pytest.mark.parametrize("norm", ["linf(0.03)", "l2(0.15)"])
def test_a_sample_without_a_finite_gradient_does_not_touch_the_others(norm):
    class Sick(nn.Module):
        """Its gradient is not finite on images that begin with 0."""

        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) + (x[:, :1] == 0) * (x[:, :1] - x[:, :1].detach()).abs().sqrt()

    net, x, y = crowd()
    x[0, 0] = 0.0
    found = []
    for rows in (torch.arange(len(x)), torch.arange(1, len(x))):
        engine = Engine(Sick(net), x[rows], y[rows], rows, ThreatModel.parse(norm), width=8)
        engine.run("sieve", sieve(8))
        found.append(engine)
    whole, without = found
    assert whole.books["nonfinite_gradients"][0] > 0
    assert torch.equal(whole.best[1:], without.best) and torch.equal(whole.broken[1:], without.broken)
    assert whole.books["nonfinite_outputs"].sum() == 0


@pytest.mark.parametrize("norm", ["l2(0.1)", "l2(2.0)", "l2(inf)", "linf(inf)"])
def test_a_gradient_of_zero_moves_nothing_anywhere(norm):
    class Dead(nn.Module):
        def forward(self, x):
            lead = (x.sum(1) - 14).clamp_min(0.5)
            return torch.stack([lead, 0 * lead, 0 * lead], 1)

    x = torch.rand(20, 30, generator=torch.Generator().manual_seed(2))
    engine = Engine(Dead(), x, torch.zeros(20, dtype=torch.int64), torch.arange(20), ThreatModel.parse(norm), width=8)
    engine.run("sieve", sieve(8))
    assert engine.books["nonfinite_outputs"].sum() == 0 and engine.best.isfinite().all()
    assert engine.books["zero_gradients"].sum() > 0


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 9])
def test_every_near_class_meets_both_guides(ranks):
    net, x, y = crowd(classes=ranks + 1, count=4)
    engine = Engine(net, x, y, torch.arange(4), ThreatModel.parse("linf(0.1)"))
    engine.look()
    engine.rank()
    turns = torch.arange(1, 1 + 2 * ranks)
    guides = _cascade._guides(engine._victim(torch.arange(4), "white"), turns)
    assert len(set(zip(((turns - 1) % ranks).tolist(), guides.tolist(), strict=True))) == 2 * ranks


# --- promise 1 and 2


@pytest.mark.parametrize(("name", "norm"), [pytest.param(*p, marks=pytest.mark.slow if p in DEAR else ()) for p in PAIRS])
def test_how_many_are_held_and_their_order_change_no_byte(short, name, norm):
    threat, x = threat_of(name, norm), images()
    whole = run(name, threat)
    assert whole.broken.sum() > 2 and (name == "curve" or whole.broken.sum() < COUNT), int(whole.broken.sum())
    same(whole, run(name, threat, hold=1))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    same(whole, run(name, threat, x=x[order], y=whole.y[order], ids=whole.ids[order], hold=7))


@pytest.mark.parametrize("name", ALONE)
def test_rows_do_not_depend_on_the_batch_size(short, name):
    net, x = build(), images()
    y = predict(net, x, width=64).argmax(1)
    threat = str(threat_of(name, catalog.ATTACKS[name].facts["norms"][0]))
    found = [robench.attack(net, x, y, threat=threat, protocol=name, batch_size=size) for size in (1, 7, 256)]
    first, *others = [f.rows.drop(columns="seconds") for f in found]
    for frame in others:
        pd.testing.assert_frame_equal(frame, first, check_exact=True)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_another_width_gives_the_same_verdicts_but_at_the_boundary(short, name):
    threat = threat_of(name, catalog.ATTACKS[name].facts["norms"][0])
    one = run(name, threat)
    for width in (16, 256):
        other = run(name, threat, width=width)
        near = (one.best_margin.abs() < 1e-4) | (other.best_margin.abs() < 1e-4)
        assert torch.equal(one.broken[~near], other.broken[~near])


SUITE = """
name: protocols
data: digits
limit: 12
models: [digits-mlp, digits-pgd-at]
threats: [linf(0.1)]
attacks: [robench-standard, "pgd(steps=5)"]
"""


@pytest.mark.slow
def test_one_worker_and_two_write_the_same_rows(tmp_path):
    frames = []
    for workers in (1, 2):
        found = api.run(parse_suite(SUITE), out=tmp_path / str(workers), workers=workers, device="cpu")
        assert not found.summary.failures
        frame = api.load(tmp_path / str(workers))["evasion"].drop(columns="seconds")
        frames.append(frame.sort_values(["cell", "sample"], ignore_index=True))
    assert len(frames[0]) == 12 * 2 * 2
    pd.testing.assert_frame_equal(*frames, check_exact=True)


# --- budgets

ROBUST = 10
"""Classes of the net that nothing breaks: nine targets."""


def robust_case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear net whose logits hardly move within the ball, and one image."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, ROBUST)).eval()
    with torch.no_grad():
        net[1].weight.copy_(1e-3 * torch.randn(ROBUST, 16, generator=torch.Generator().manual_seed(0)))
        net[1].bias.copy_(torch.arange(ROBUST).flip(0).float())
    return net, images(1)[:, :, :4, :4].contiguous(), torch.zeros(1, dtype=torch.int64)


def spent(name: str, threat: str) -> dict[str, tuple[int, int]]:
    """Forward and backward passes of each stage per sample that nothing breaks."""
    net, x, y = robust_case()
    engine = run(name, ThreatModel.parse(threat), net=net, x=x, y=y)
    assert not engine.broken.any()
    for book, column in (("forwards", "forwards"), ("backwards", "backwards")):
        assert (engine.books[book] == sum(getattr(s, column) for s in engine.waterfall) // len(x)).all()
    return {s.name: (s.forwards // len(x), s.backwards // len(x)) for s in engine.waterfall}


@pytest.mark.slow
def test_autoattack_standard_spends_exactly_its_budget():
    """AutoAttack's own 7857 forwards and 1910 backwards, less the clean logits that it asks for again and again.

    APGD: one pass with gradient per iteration, one look at the end; FAB-T: that, and one look at the label.
    """
    found = spent("autoattack-standard", "linf(0.01)")
    assert found == {
        "clean": (1, 0),
        "apgd-ce": (101, 100),
        "apgd-t": (9 * 101, 9 * 100),
        "fab-t": (1 + 9 * 200, 9 * 100),
        "square": (5001, 0),
    }
    assert [sum(column) for column in zip(*found.values(), strict=True)] == [7813, 1900]


def test_a_sample_that_holds_is_charged_what_the_arguments_say(short):
    """The same with 6 steps, 3 targets, 2 restarts and 12 queries."""
    assert spent("autoattack-standard", "linf(0.01)") == {
        "clean": (1, 0), "apgd-ce": (7, 6), "apgd-t": (3 * 7, 3 * 6), "fab-t": (1 + 3 * 12, 3 * 6), "square": (13, 0),
    }  # fmt: skip
    assert spent("autoattack-plus", "l2(0.01)") == {
        "clean": (1, 0), "apgd-ce": (2 * 7, 2 * 6), "apgd-dlr": (2 * 7, 2 * 6), "fab": (1 + 2 * 12, 2 * 6 * 9),
        "square": (13, 0), "apgd-t": (3 * 7, 3 * 6), "fab-t": (1 + 3 * 12, 3 * 6),
    }  # fmt: skip


@pytest.mark.slow
def test_autoattack_plus_and_l1_spend_exactly_their_budgets():
    assert spent("autoattack-plus", "l2(0.01)") == {
        "clean": (1, 0),
        "apgd-ce": (5 * 101, 5 * 100),
        "apgd-dlr": (5 * 101, 5 * 100),
        "fab": (1 + 5 * 200, 5 * 100 * 9),
        "square": (5001, 0),
        "apgd-t": (9 * 101, 9 * 100),
        "fab-t": (1 + 9 * 200, 9 * 100),
    }
    assert spent("autoattack-standard", "l1(0.01)") == {
        "clean": (1, 0),
        "apgd-ce": (5 * 103, 5 * 100),
        "apgd-t": (5 * 103, 5 * 100),
        "fab-t": (1 + 9 * 200, 9 * 100),
        "square": (5001, 0),
    }


@pytest.mark.slow
def test_robench_deep_costs_less_than_autoattack_on_a_sample_that_holds():
    """Its shares of the survivors are worth what they say where there are many; here they are counted by hand."""
    shares = {"frontier": 0.05, "fab-t": 0.3, "apgd-t": 0.3, "square-long": 0.2}
    deep, auto = spent("robench-deep", "linf(0.01)"), {"forwards": 7813, "backwards": 1900}
    forwards, backwards = (sum(v[k] * shares.get(n, 1) for n, v in deep.items()) for k in (0, 1))
    for cost in (1.0, 1.35):
        assert forwards + cost * backwards < 0.95 * (auto["forwards"] + cost * auto["backwards"])


def test_the_parameters_are_those_of_autoattacks_own_code(monkeypatch):
    authors = pytest.importorskip("pyautoattack")
    made: list[tuple[str, dict]] = []
    monkeypatch.setattr(_protocols, "plain", lambda f, **params: made.append((f.__name__, params)) or (lambda v, d: None))
    net, x, y = robust_case()
    for version, norm, name in (("standard", "Linf", "linf"), ("standard", "L1", "l1"), ("plus", "L2", "l2")):
        made.clear()
        run(f"autoattack-{version}", ThreatModel.parse(f"{name}(0.01)"), net=net, x=x, y=y)
        theirs = authors.AutoAttack(net, norm=norm, eps=0.01, version=version)
        ours = {"fab" if f == "fab" else f: params for f, params in made}
        assert ours["apgd"]["steps"] == theirs.apgd.n_iter == ours["apgd_t"]["steps"] == theirs.apgd_targeted.n_iter == 100
        assert ours["apgd"].get("restarts", 1) == theirs.apgd.n_restarts
        assert ours["apgd_t"].get("restarts", 1) == theirs.apgd_targeted.n_restarts == 1
        assert ours["apgd_t"]["targets"] == theirs.apgd_targeted.n_target_classes
        assert (ours["apgd"].get("schedule") == "large_eps") == theirs.apgd.use_largereps
        assert ours["fab_t"]["targets"] == theirs.fab.n_target_classes == 9
        assert ours["fab_t"]["steps"] == theirs.fab.n_iter == 100
        assert ours.get("fab", {"restarts": 1})["restarts"] == theirs.fab.n_restarts
        assert ours["square"]["queries"] == theirs.square.n_queries == 5000
        assert [n.replace("_", "-") for n, _ in made] == [
            {"apgd-ce": "apgd", "apgd-dlr": "apgd"}.get(n, n) for n in theirs.attacks_to_run
        ]


# --- what is counted


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_the_waterfall_adds_up_and_every_find_is_confirmed(short, name, norm):
    engine = run(name, threat_of(name, norm))
    left = COUNT
    for stage in engine.waterfall:
        left -= stage.broken
        assert stage.remaining == left and (name == "curve" or stage.given <= left + stage.broken)
    assert engine.broken.sum() == sum(stage.broken for stage in engine.waterfall)
    assert ((engine.stage >= 0) == engine.broken).all()
    for book in ("forwards", "backwards"):
        assert engine.books[book].sum() == sum(getattr(stage, book) for stage in engine.waterfall)
    verdicts = judge(engine.model, engine.x, engine.y, x_adv=engine.best, threat=engine.threat)
    assert torch.equal(verdicts.broken(), engine.broken)
    assert not verdicts.projected.any() and not verdicts.unstable.any()


def lie_outside(victim, draws):
    """Books points beyond the ball as broken."""
    victim.best = 1 - victim.x
    victim.best_margin[:], victim.broken[:] = -1, True


def lie_unbroken(victim, draws):
    """Books what is classified right as broken."""
    victim.best_margin[:], victim.broken[:] = -1, True


def lie_nan(victim, draws):
    victim.best = torch.full_like(victim.x, math.nan)
    victim.best_margin[:], victim.broken[:] = -1, True


@pytest.mark.parametrize("lie", [lie_outside, lie_unbroken, lie_nan])
def test_a_stage_that_lies_is_not_believed(lie):
    net, x = build(), images()
    y = predict(net, x, width=64).argmax(1)
    sure = certified(net, x, y, 0.004)
    engine = Engine(net, x[sure], y[sure], torch.arange(int(sure.sum())), ThreatModel.parse("linf(0.004)"))
    assert engine.run("liar", lie) == 0
    assert not engine.broken.any() and (engine.stage == -1).all()
    assert torch.equal(engine.best, engine.x) and engine.best_margin.isinf().all()
    assert engine.waterfall[0].broken == 0


# --- few classes, all broken, arguments


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_two_and_three_classes_are_attacked(short, name, norm, classes):
    threat = threat_of(name, norm)
    if classes == 2 and norm != "l0":
        threat = threat.at(str(4 * threat.eps))
    engine = run(name, threat, net=build(classes))
    assert engine.broken[2:].any()
    verdicts = judge(engine.model, engine.x, engine.y, x_adv=engine.best, threat=engine.threat)
    assert torch.equal(verdicts.broken(), engine.broken)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_a_model_that_is_broken_altogether_ends_without_an_error(short, name, norm):
    net, x = build(), images()
    right = predict(net, x, width=64).argmax(1)
    for y, threat in (((right + 1) % CLASSES, threat_of(name, norm)), (right, ThreatModel.parse(f"{norm}(inf)"))):
        engine = run(name, threat, x=x, y=y)
        assert engine.broken.all()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_takes_no_arguments_and_no_other_norm(name):
    net, x = build(), images(2)
    y = net(x).argmax(1)
    with pytest.raises(ConfigError, match=f"an argument of {name} must be a known one, got 'steps'"):
        catalog.ATTACKS.resolve(f"{name}(steps=3)")
    with pytest.raises(ConfigError, match="steps"):
        robench.evaluate(net, x, y, threat="linf(0.1)", attacks=[f"{name}(steps=3)"])
    for norm in set(EPS) - set(catalog.ATTACKS[name].facts["norms"]):
        with pytest.raises(ConfigError, match="norm of " + name):
            robench.attack(net, x, y, threat=f"{norm}({EPS[norm]})", protocol=name)


# --- closed forms and certificates


def worst_margins(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """Lowest margin of a linear net in ball and box, in closed form, (N,) float64; l2 without the box."""
    weight, bias = net[1].weight.detach().double(), net[1].bias.detach().double()
    flat, lowest = x.flatten(1).double(), torch.full((len(x),), math.inf, dtype=torch.float64)
    for k in range(len(bias)):
        slope, gap = weight[y] - weight[k], flat @ (weight - weight[k]).T
        margin = gap.gather(1, y[:, None])[:, 0] + bias[y] - bias[k]
        room = torch.where(slope > 0, flat, 1 - flat)
        worst = margin - gained(slope.abs(), room, threat)
        lowest = torch.where(y == k, lowest, torch.minimum(lowest, worst))
    return lowest


def gained(slope: torch.Tensor, room: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """How much a linear margin can fall."""
    if threat.norm == "linf":
        return (slope * room.clamp(max=threat.eps)).sum(1)
    if threat.norm == "l2":
        return slope.norm(dim=1) * threat.eps
    if threat.norm == "l0":
        return (slope * room).topk(int(threat.eps), dim=1).values.sum(1)
    order = slope.argsort(dim=1, descending=True)
    room, slope = room.gather(1, order), slope.gather(1, order)
    moved = (threat.eps - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
    return (slope * moved).sum(1)


def linear_case(norm: str) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).eval()
    with torch.no_grad():
        net[1].weight.copy_(0.3 * torch.randn(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(2)))
        net[1].bias.copy_(torch.arange(CLASSES) == 0).mul_(3 if norm == "l0" else 0)
    x = images(24, seed=9)
    x = 0.3 + 0.4 * x if norm == "l2" else (1.6 * x - 0.3).clamp(0, 1)
    return net, x, predict(net, x, width=64).argmax(1)


def exactly_at_the_optimum(name: str, norm: str) -> None:
    """One sample's critical radius is found by bisection; just above it that sample falls, just below it stands."""
    net, x, y = linear_case(norm)
    low, high = 0.0, 40.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        falls = (worst_margins(net, x, y, ThreatModel(norm, middle, str(middle))) <= 0).sum() > 12
        low, high = (low, middle) if falls else (middle, high)
    for eps in (low * (1 - 1e-4), high * (1 + 1e-4)):
        threat = ThreatModel(norm, eps, str(eps))
        assert torch.equal(run(name, threat, net=net, x=x, y=y).broken, worst_margins(net, x, y, threat) <= 0), eps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_even_a_short_robench_standard_breaks_a_linear_model_exactly_at_its_optimum(short, norm):
    exactly_at_the_optimum("robench-standard", norm)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["robench-standard", "autoattack-standard", "robench-deep"])
def test_whole_protocols_break_a_linear_model_exactly_at_its_optimum(name, norm):
    exactly_at_the_optimum(name, norm)


@pytest.mark.parametrize("eps", [2, 4])
def test_robench_l0_breaks_a_linear_model_exactly_where_it_can_be_broken(short, eps):
    net, x, y = linear_case("l0")
    threat = ThreatModel.parse(f"l0({eps})")
    expected = worst_margins(net, x, y, threat) <= 0
    assert 0 < expected.sum() < len(x)
    assert torch.equal(run("robench-l0", threat, net=net, x=x, y=y).broken, expected)


def optimum(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, norm: str) -> torch.Tensor:
    """Each sample's smallest distance on a linear net, by bisection over the closed form, (N,) float64."""
    if norm == "l0":
        falls = [worst_margins(net, x, y, ThreatModel(norm, k, "")) <= 0 for k in range(1, 20)]
        return 1 + (~torch.stack(falls)).sum(0).double()
    found = []
    for i in range(len(x)):
        low, high = 0.0, 40.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            falls = bool(worst_margins(net, x[i : i + 1], y[i : i + 1], ThreatModel(norm, middle, "")) <= 0)
            low, high = (low, middle) if falls else (middle, high)
        found.append(high)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_curve_finds_the_smallest_distances_of_a_linear_model(norm):
    net, x, y = linear_case(norm)
    found = distance(x, run("curve", ThreatModel.parse(f"{norm}(inf)"), net=net, x=x, y=y).best, norm)
    expected = optimum(net, x, y, norm)
    assert ((found >= expected * (1 - 1e-4) - 1e-6) & (found <= expected * 1.01 + 1e-6)).all(), (found / expected).max()


def test_the_curve_finds_the_fewest_features_of_a_linear_model_within_ten_percent():
    net, x, y = linear_case("l0")
    found = distance(x, run("curve", ThreatModel.parse("l0(inf)"), net=net, x=x, y=y).best, "l0")
    expected = optimum(net, x, y, "l0")
    assert (found >= expected).all() and (found <= expected + 1).all()
    assert found.mean() <= 1.1 * expected.mean()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_curve_is_no_farther_than_any_of_its_attacks(norm, monkeypatch):
    net, x, threat = build(), images(), ThreatModel.parse(f"{norm}(inf)")
    brief = [(name, f, {k: min(v, 40) for k, v in params.items()}) for name, f, params in _protocols._NEAREST[norm]]
    monkeypatch.setitem(_protocols._NEAREST, norm, brief)
    engine = run("curve", threat)
    assert engine.broken.all()
    found = distance(x, engine.best, norm)
    assert (found[:2] == 0).all() and (found[2:] > 0).all()
    names = [stage.name for stage in engine.waterfall]
    assert engine.waterfall[1].broken == COUNT - 2 and {names[s] for s in engine.stage.tolist()} <= set(names)
    for name, function, params in _protocols._NEAREST[norm]:
        if name == "line":
            continue
        victim = Victim(net, x[2:], engine.y[2:], threat=threat)
        draws = _protocols.Draws(0, engine.ids[2:])
        alone = function(victim, victim.x, victim.y, threat=threat, seeds=draws, **params)
        broken = judge(net, x[2:], engine.y[2:], x_adv=alone, threat=threat).broken()
        assert (found[2:] <= distance(x[2:], alone, norm) + 1e-9)[broken].all(), name


@pytest.mark.slow
def test_one_curve_gives_the_robust_accuracy_of_every_radius():
    net, x = build(), images(40)
    y = predict(net, x, width=64).argmax(1)
    reach = robench.attack(net, x, y, threat="linf(inf)", protocol="curve").rows["distance"].to_numpy()
    for eps in ("0.02", "0.06", "0.12"):
        found = robench.attack(net, x, y, threat=f"linf({eps})", protocol="robench-standard")
        assert abs(int(found.robust.sum()) - int((reach > float(eps)).sum())) <= 1


def certified(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """Samples whose every margin is positive in all of the linf ball and the box, by interval bounds, bool (N,)."""
    low, high = (x - eps).clamp(0, 1).flatten(1).double(), (x + eps).clamp(0, 1).flatten(1).double()
    *hidden, last = list(net)[1:]
    for layer in hidden:
        if isinstance(layer, nn.Linear):
            low, high = interval(layer.weight.double(), layer.bias.double(), low, high)
        else:
            low, high = low.clamp(min=0), high.clamp(min=0)
    sure = torch.ones(len(x), dtype=torch.bool)
    for k in range(last.out_features):
        weight, bias = last.weight.double()[y] - last.weight.double()[k], last.bias.double()[y] - last.bias.double()[k]
        worst = (weight.clamp(min=0) * low + weight.clamp(max=0) * high).sum(1) + bias
        sure &= (worst > 1e-6) | (y == k)
    return sure


def interval(weight, bias, low, high):
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    return low @ up.T + high @ down.T + bias, high @ up.T + low @ down.T + bias


def never_broken(name: str, eps: float) -> None:
    net, x = build(), images(60)
    y = predict(net, x, width=64).argmax(1)
    sure = certified(net, x, y, eps)
    engine = run(name, ThreatModel.parse(f"linf({eps})"), net=net, x=x, y=y)
    assert sure.sum() >= 5 and engine.broken.sum() >= 5, (sure.sum(), engine.broken.sum())
    assert not engine.broken[sure].any()


@pytest.mark.parametrize("name", [name for name, norm in PAIRS if norm == "linf" and name != "curve"])
def test_certified_images_are_never_broken(short, name):
    never_broken(name, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, norm in PAIRS if norm == "linf" and name != "curve"])
def test_certified_images_are_never_broken_with_whole_budgets(name):
    never_broken(name, 0.02)


def test_no_certified_image_lies_beyond_the_curve():
    net, x = build(), images(60)
    y = predict(net, x, width=64).argmax(1)
    found = distance(x, run("curve", ThreatModel.parse("linf(inf)"), net=net, x=x, y=y).best, "linf")
    for eps in (0.01, 0.02, 0.04):
        assert (found[certified(net, x, y, eps)] > eps).all()


# --- memory


class Greedy(nn.Module):
    """Runs out of memory on more than ``most`` distinct images at once."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.refused = inner, most, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x.detach().flatten(1).unique(dim=0)) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


@pytest.mark.parametrize("name", ["robench-l0", "autoattack-plus"])
def test_a_stage_that_runs_out_of_memory_goes_on_with_half_as_many_samples(short, name):
    threat = threat_of(name, catalog.ATTACKS[name].facts["norms"][0])
    y = run(name, threat).y
    greedy = Greedy(build(), 6)
    engine = run(name, threat, net=greedy, y=y)
    assert greedy.refused > 0 and engine.hold <= 6
    same(run(name, threat), engine)


def test_the_balls_projection_is_not_asked_of_a_find_in_the_ball(short):
    engine = run("robench-standard", threat_of("robench-standard", "l2"))
    assert Ball(engine.x, engine.threat).contains(engine.best).all()
