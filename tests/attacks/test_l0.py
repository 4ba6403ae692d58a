"""sigma-zero and PGD-L0 beside closed forms, one-sample twins and a search over all pairs of features."""

import itertools
import math

import pytest
import torch
from torch import nn

from robench.attacks._pgd_l0 import nearest, pgd_l0
from robench.attacks._sigma_zero import sigma_zero
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

BOTH = pytest.mark.parametrize("attack", [sigma_zero, pgd_l0])


def linear(features, classes=2, seed=0, dtype=torch.float32):
    net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, features, generator=generator))
        net[1].bias.zero_()
    return net.eval().to(dtype)


def images(net, count, side, seed=1, dtype=torch.float32):
    x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x, net(x).argmax(1), Draws(0, torch.arange(count))


def fewest(net, x, y):
    """Smallest number of features that any linear class needs, (N,): each gives at most its weight times its room."""
    weight, logits, flat = net[1].weight.detach().double(), net(x).detach().double(), x.flatten(1).double()
    counts = []
    for target in range(len(weight)):
        slope = weight[target] - weight[y]
        gains = torch.maximum(slope * (1 - flat), -slope * flat).sort(dim=1, descending=True).values.cumsum(1)
        missing = logits.gather(1, y[:, None])[:, 0] - logits[:, target]
        counts.append(torch.where(y == target, flat.shape[1] + 1, (gains < missing[:, None]).sum(1) + 1))
    return torch.stack(counts).amin(0)


@pytest.mark.parametrize(("side", "classes"), [(10, 2), (10, 5), (28, 2), (28, 10)])
def test_sigma_zero_finds_the_fewest_features_of_a_linear_model_within_ten_percent(side, classes):
    net = linear(side * side, classes)
    x, y, seeds = images(net, 40, side)
    found = sigma_zero(net, x, y, threat=ThreatModel.parse("l0(inf)"), seeds=seeds, steps=100)
    assert (net(found).argmax(1) != y).all()
    count, optimum = distance(x, found, "l0"), fewest(net, x, y)
    assert (count >= optimum).all() and optimum.max() > 2
    if classes == 2:
        assert torch.equal(count, optimum.double())
    assert (count <= optimum * 1.1).double().mean() >= 0.95, "the descent may end at a class that is not the nearest"
    assert count.sum() <= 1.1 * optimum.sum()


@pytest.mark.parametrize(("attack", "side", "steps"), [(sigma_zero, 10, 60), (pgd_l0, 10, 50), (pgd_l0, 28, 50)])
def test_a_budget_breaks_a_two_class_linear_model_exactly_where_it_can_be_broken(attack, side, steps):
    net = linear(side * side)
    x, y, _ = images(net, 40, side)
    optimum = fewest(net, x, y)
    for eps in range(2, 9):
        found = attack(net, x, y, threat=ThreatModel.parse(f"l0({eps})"), seeds=Draws(0, torch.arange(40)), steps=steps)
        assert torch.equal(net(found).argmax(1) != y, optimum <= eps)
        assert distance(x, found, "l0").max() <= eps


def test_the_projection_is_the_nearest_of_all_pairs_of_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 1, 2, 3, generator=generator, dtype=torch.float64)
    points = x + 2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    best = torch.full((30,), math.inf, dtype=torch.float64)
    for pair in itertools.combinations(range(6), 2):
        trial = x.flatten(1).clone()
        trial[:, pair] = points.flatten(1)[:, pair].clamp(0, 1)
        best = torch.minimum(best, (points.flatten(1) - trial).square().sum(1))
    found = nearest(x, points, 2)
    assert torch.allclose((points - found).square().flatten(1).sum(1), best, rtol=1e-12)
    assert (distance(x, found, "l0") <= 2).all() and ((found >= 0) & (found <= 1)).all()
    assert torch.equal(nearest(x, points, 0), x) and torch.equal(nearest(x, points, 6), points.clamp(0, 1))


def twin_sigma_zero(net, x, y, steps):
    """One image, torch's own Adam and scheduler, the loss differentiated as it is written."""
    delta = torch.zeros_like(x, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps, eta_min=0.1)
    threshold, best, fewest_changes = 0.3, x, math.inf
    for _ in range(steps):
        logits = net(x + delta)[0]
        others = torch.cat([logits[:y], logits[y + 1 :]]).max()
        right, changes = bool(logits[y] > others), int((delta != 0).sum())
        if not right and changes < fewest_changes:
            best, fewest_changes = (x + delta).detach().clone(), changes
        smooth = (delta**2 / (delta**2 + 1e-3)).sum() / delta.numel()
        optimiser.zero_grad()
        ((logits[y] - others).clamp_min(0) + smooth).backward()
        delta.grad /= delta.grad.abs().max().clamp_min(1e-12)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            threshold = min(1.0, max(0.0, threshold + (-1 if right else 1) * 0.01 * schedule.get_last_lr()[0]))
            delta[delta.abs() < threshold] = 0
    return best


def test_sigma_zero_follows_its_one_sample_twin(net, held_out):
    net = net.double()
    x, y, ids = held_out[0][:12].double(), held_out[1][:12], held_out[2][:12]
    options = {"threat": ThreatModel.parse("l0(inf)"), "seeds": Draws(0, ids), "steps": 60, "polish": False}
    mine = sigma_zero(net, x, y, **options)
    theirs = torch.cat([twin_sigma_zero(net, x[i : i + 1], int(y[i]), 60) for i in range(12)])
    net.float()
    assert (distance(x, mine, "l0") > 0).sum() >= 10
    assert torch.allclose(mine, theirs, atol=1e-9, rtol=0)


def twin_pgd_l0(net, x, y, start, eps, steps):
    point = start
    for _ in range(steps):
        leaf = point.clone().requires_grad_(True)
        logits = net(leaf)[0]
        others = torch.cat([logits[:y], logits[y + 1 :]]).max()
        if logits[y] <= others:
            return point
        gradient = torch.autograd.grad(others - logits[y], leaf)[0]
        moved = point + 10 * x.numel() * gradient / gradient.abs().sum()
        delta, clipped = (moved - x).flatten(), moved.clamp(0, 1)
        saving = delta**2 - (moved - clipped).flatten() ** 2
        point = x.clone()
        for feature in sorted(range(x.numel()), key=lambda i: -float(saving[i]))[:eps]:
            point.view(-1)[feature] = clipped.view(-1)[feature]
    return point


def test_pgd_l0_follows_its_one_sample_twin(net, held_out):
    net = net.double()
    x, y, ids = held_out[0][:20].double(), held_out[1][:20], held_out[2][:20]
    right = net(x).argmax(1) == y
    x, y, seeds = x[right], y[right], Draws(3, ids[right])
    victim = Victim(net, x, y, threat=ThreatModel.parse("l0(4)"))
    found = pgd_l0(victim, x, y, threat=victim.threat, seeds=seeds, steps=15)
    starts = nearest(x, seeds.uniform("pgd_l0.start", x.shape[1:]).double(), 4)
    twins = [twin_pgd_l0(net, x[i : i + 1], int(y[i]), starts[i : i + 1], 4, 15) for i in range(len(x))]
    broken = victim.broken
    net.float()
    assert 2 < broken.sum() < len(x)
    assert torch.allclose(found[broken], torch.cat(twins)[broken], atol=1e-12, rtol=0)


@BOTH
@pytest.mark.parametrize("threat", ["l0(4)", "l0(inf)"])
def test_company_order_and_batch_size_change_no_byte(net, held_out, attack, threat):
    x, y, ids = (part[:24] for part in held_out)
    threat = ThreatModel.parse(threat)

    def run(rows):
        return attack(net, x[rows], y[rows], threat=threat, seeds=Draws(0, ids[rows]), steps=25)

    whole = run(torch.arange(24))
    assert (distance(x, whole, "l0") > 0).sum() > 12
    assert torch.equal(run(torch.arange(23, -1, -1)).flip(0), whole)
    assert torch.equal(torch.cat([run(rows) for rows in torch.arange(24).split(5)]), whole)


def test_a_sample_leaves_with_its_first_success_unless_told_otherwise(net, held_out):
    x, y, ids = (part[:40] for part in held_out)
    threat = ThreatModel.parse("l0(8)")
    spent, counts = [], []
    for stop in (True, False):
        victim = Victim(net, x, y, threat=threat)
        found = sigma_zero(victim, x, y, threat=threat, seeds=Draws(0, ids), steps=80, stop=stop)
        spent.append(victim.forwards)
        counts.append(distance(x, found, "l0"))
        assert victim.broken.sum() > 20 and (net(found).argmax(1)[victim.broken] != y[victim.broken]).all()
    assert (spent[0] <= spent[1]).all() and spent[0].sum() < spent[1].sum() / 2
    assert (spent[1] >= 80).all() and counts[1].sum() < counts[0].sum()


@pytest.mark.parametrize(
    ("attack", "options", "text"),
    [
        (sigma_zero, {"steps": 0}, "steps, rate and sigma must be"),
        (sigma_zero, {"sigma": 0.0}, "steps, rate and sigma must be"),
        (sigma_zero, {"rate": math.nan}, "steps, rate and sigma must be"),
        (sigma_zero, {"threshold": -0.1}, "threshold and factor must be at least 0"),
        (pgd_l0, {"steps": 0}, "steps and restarts must be at least 1"),
        (pgd_l0, {"restarts": 0}, "steps and restarts must be at least 1"),
        (pgd_l0, {"step_size": 0.0}, "step_size must be above 0"),
    ],
)
def test_arguments_that_attack_nothing_are_refused(attack, options, text):
    net = linear(4)
    x, y, seeds = images(net, 2, 2)
    with pytest.raises(ConfigError, match=text):
        attack(net, x, y, threat=ThreatModel.parse("l0(1)"), seeds=seeds, **options)
