"""``autoattack-rand``: closed forms with noise, honest counts where there is only luck, repeatable, its exact budget."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import robench
from robench import catalog
from robench.attacks import _rand, apgd
from robench.attacks._engine import Engine
from robench.inference import fingerprint, predict
from robench.judge import judge_repeatedly
from robench.metrics.robust import robust_accuracy_mean_draw, robust_accuracy_worst_draw
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

SIDE, COUNT, CLASSES = 4, 14, 4


def linear(classes: int = CLASSES) -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, classes)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, SIDE * SIDE, generator=torch.Generator().manual_seed(0)) * 0.5)
        net[1].bias.zero_()
    return net


class Jittered(nn.Module):
    """A net whose logits get noise, and whose inputs are dropped and moved at random, in every forward pass."""

    def __init__(self, net: nn.Module, *, noise: float = 0.0, drop: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.net, self.noise, self.drop, self.shift = net, noise, drop, shift

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift * torch.randn_like(x)
        out = self.net(functional.dropout(x, self.drop, training=True) if self.drop else x)
        return out + self.noise * torch.randn_like(out)


def images(count: int = COUNT) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 0.6 + 0.2


def run(net: nn.Module, x: Tensor, y: Tensor, threat: str, **told) -> Engine:
    told = {"width": 16, **told}
    engine = Engine(net, x, y, torch.arange(len(x)) * 7 + 5, ThreatModel.parse(threat), **told)
    catalog.ATTACKS["autoattack-rand"].load()(engine)
    return engine


def worst_margins(net: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Lowest margin of a linear net in the linf ball, (N,); the box plays no role."""
    weight, out = net[1].weight.detach(), predict(net, x, width=16)
    found = torch.full((len(x), weight.shape[0]), torch.inf)
    for k in range(weight.shape[0]):
        gap = out.gather(1, y[:, None])[:, 0] - out[:, k] - eps * (weight[y] - weight[k]).abs().sum(1)
        found[:, k] = torch.where(y == k, torch.inf, gap)
    return found.amin(1)


@pytest.fixture
def short(monkeypatch):
    """Stages of 15 steps; what they were told is returned."""
    held, heard = _rand.once, []

    def once(function, **told):
        heard.append((function, told))
        return held(function, **{**told, "steps": 15})

    monkeypatch.setattr(_rand, "once", once)
    return heard


@pytest.mark.parametrize("told", [{"noise": 0.3}, {"drop": 0.2}, {"shift": 0.2}])
def test_a_randomised_linear_model_of_two_classes_falls_where_its_mean_does(short, told):
    net, x = linear(2), images()
    y = predict(net, x, width=16).argmax(1)
    engine = run(Jittered(net, **told), x, y, "linf(0.15)")
    worst = worst_margins(net, x, y, 0.15)
    sure = worst.abs() > 0.25  # nearer to the boundary draws decide
    assert 3 < (worst[sure] < 0).sum() < sure.sum() - 1
    assert torch.equal(engine.broken[sure], worst[sure] < 0)


class Luck(nn.Module):
    """Right with a fixed probability whatever the image is, and its gradient is noise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        margin = torch.where(torch.rand(len(x)) < self.share, 1.0, -1.0)
        margin = margin + 1e-6 * (x * torch.randn_like(x)).flatten(1).sum(1)
        return torch.stack([margin, 0 * margin, 0 * margin - 2], 1)


@pytest.mark.parametrize(("share", "falls"), [(0.8, False), (0.25, True)])
def test_luck_alone_breaks_nothing_and_saves_nothing(short, share, falls):
    engine = run(Luck(share), images(), torch.zeros(COUNT, dtype=torch.int64), "linf(0.1)")
    assert engine.broken.tolist() == [falls] * COUNT
    assert (engine.stage == (0 if falls else -1)).all()


def test_the_same_seed_gives_the_same_bytes_and_the_generators_and_the_model_are_left_alone(short):
    net, x = Jittered(linear(), noise=0.3, drop=0.2), images()
    y = predict(net.net, x, width=16).argmax(1)
    before, results = fingerprint(net), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        results.append(run(copy.deepcopy(net), x, y, "l2(0.3)", seed=4))
        assert torch.equal(torch.get_rng_state(), state)
    one, other = results
    assert torch.equal(one.best, other.best) and torch.equal(one.broken, other.broken)
    assert 0 < one.broken.sum() < COUNT and fingerprint(net) == before
    for a, b in zip(one.waterfall, other.waterfall, strict=True):
        assert {**asdict(a), "seconds": 0} == {**asdict(b), "seconds": 0}


def test_what_is_broken_is_broken_for_the_judge_and_its_image_lies_in_the_ball(short):
    net, x = Jittered(linear(), noise=0.3), images()
    y = predict(net.net, x, width=16).argmax(1)
    for threat in ("linf(0.02)", "l2(0.1)", "l1(0.4)"):
        engine = run(net, x, y, threat)
        found = judge_repeatedly(net, x, y, x_adv=engine.best, threat=engine.threat, draws=400, seed=99, width=16)
        assert not found.projected.any()
        sure = (found.score - 0.5).abs() > 0.15
        assert torch.equal(found.broken()[sure], engine.broken[sure]) and 0 < engine.broken.sum() < COUNT
        assert (engine.stage >= 0).equal(engine.broken)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_deterministic_model_falls_to_the_same_points_as_without_averaging(short, classes):
    net, x = linear(classes), images()
    y = predict(net, x, width=16).argmax(1)
    engine, threat = run(net, x, y, "linf(0.05)"), ThreatModel.parse("linf(0.05)")
    fallen = torch.zeros(COUNT, dtype=torch.bool)
    for loss in ("ce", "margin" if classes == 2 else "dlr"):
        victim = Victim(net, x, y, threat=threat, width=16)
        apgd(victim, x, y, threat=threat, seeds=Draws(0, engine.ids), loss=loss, steps=15)
        fallen |= victim.broken
    assert torch.equal(engine.broken, fallen) and 0 < fallen.sum() < COUNT
    near = worst_margins(net, x, y, 0.05)
    assert torch.equal(engine.broken, near <= 0)


def test_it_spends_autoattacks_budget_and_the_judge_s_draws(short):
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)).eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.tensor([3.0, 1.0, 0.0]))
    engine = run(net, images(2), torch.zeros(2, dtype=torch.int64), "linf(0.01)")
    found = {s.name: (s.forwards // 2, s.backwards // 2) for s in engine.waterfall}
    ascent = (20 * (15 + 1) + 50, 20 * 15)
    assert found == {"clean": (20 + 50, 0), "apgd-ce-eot": ascent, "apgd-dlr-eot": ascent}
    assert [(f.__name__, told["loss"], told["steps"]) for f, told in short] == [("apgd", "ce", 100), ("apgd", "dlr", 100)]
    assert all(set(told) == {"stage", "loss", "steps"} for _, told in short)
    assert catalog.ATTACKS["autoattack-rand"].facts["draws"] == _rand.LOOKS == 50 and _rand.SAMPLES == 20


@pytest.mark.slow
def test_averaging_breaks_what_single_draws_do_not_and_as_much_as_autoattack(digits, net):
    """Strong input noise: AutoAttack's own code on the same images and budget, its finds judged as ours are."""
    peer = pytest.importorskip("pyautoattack")
    x, y = digits[0][1400:1430], digits[1][1400:1430]
    model, threat = Jittered(net, shift=0.15), ThreatModel.parse("linf(0.06)")
    engine = run(model, x, y, "linf(0.06)")
    theirs = peer.AutoAttack(model, norm="Linf", eps=0.06, seed=0, version="rand", device="cpu")
    torch.manual_seed(0)
    x_adv = theirs.run_standard_evaluation(x, y, batch_size=64)[0]
    told = {"threat": threat, "draws": 200, "seed": 77}
    ours, peers = (judge_repeatedly(model, x, y, x_adv=found, **told).broken().sum() for found in (engine.best, x_adv))
    assert ours >= peers - 1 and ours > 5


@pytest.mark.slow
def test_the_protocol_runs_through_attack_and_is_judged_by_many_draws():
    class Noisy(nn.Module):
        """Its noise decides nothing for most images: the signal is larger."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = 20 * (x.flatten(1).mean(1) - 0.5) + 0.2 * torch.randn(len(x))
            return torch.stack([-value, value, 0 * value - 30], 1)

    x = torch.linspace(0.2, 0.8, 24)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    y = (x.flatten(1).mean(1) > 0.5).long()
    told = {"threat": "linf(0.1)", "protocol": "autoattack-rand"}
    first, second = (robench.attack(Noisy(), x, y, **told) for _ in range(2))
    assert first.rows["score_adv"].tolist() == second.rows["score_adv"].tolist()
    margin = (x.flatten(1).mean(1) - 0.5).abs()
    assert first.robust[margin > 0.12].all() and not first.robust[margin < 0.08].any()
    assert not first.validity.sound
    mean, worst = robust_accuracy_mean_draw(first.rows), robust_accuracy_worst_draw(first.rows)
    kept = first.rows[first.robust.tolist()]
    assert kept["score_mean"].min() > 0.5 and kept["score_worst"].min() == 0 and worst.value < first.robust_accuracy.value
    assert worst.value < mean.value and mean.low < mean.value < mean.high
