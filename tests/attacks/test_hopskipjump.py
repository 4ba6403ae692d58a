"""HopSkipJump on linear models, whose distances are known, its exact budget, and its independence from company."""

import pytest
import torch
from torch import nn

from robench.attacks._hopskipjump import hop_skip_jump
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def line():
    """Two classes with a plane between them, and images near the middle of the box."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 16, generator=generator))
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = 0.4 + 0.2 * torch.rand(12, 1, 4, 4, generator=generator)
    return net, x, net(x).argmax(1), Draws(0, torch.arange(12))


def optimum(net, x, norm):
    slope = (net[1].weight[1] - net[1].weight[0]).detach()
    gap = (net(x)[:, 1] - net(x)[:, 0]).detach().abs()
    return (gap / (slope.norm() if norm == "l2" else slope.abs().sum())).double()


@pytest.mark.slow
@NORMS
def test_the_distance_to_a_plane_is_found(norm):
    net, x, y, seeds = line()
    found = hop_skip_jump(net, x, y, threat=ThreatModel.parse(f"{norm}(inf)"), seeds=seeds, queries=1500)
    far, shortest = distance(x, found, norm), optimum(net, x, norm)
    assert (net(found).argmax(1) != y).all()
    assert (far >= shortest * 0.999).all()
    assert (far <= shortest * {"l2": 1.1, "linf": 1.3}[norm] + 1e-3).all(), far / shortest


@NORMS
def test_a_budget_breaks_what_can_be_broken_and_nothing_else(norm):
    net, x, y, seeds = line()
    shortest = optimum(net, x, norm)
    eps = round(float(shortest.median()), 4)
    threat = ThreatModel.parse(f"{norm}({eps})")
    victim = Victim(net, x, y, threat=threat, access="decision")
    found = hop_skip_jump(victim, x, y, threat=threat, seeds=seeds, queries=700)
    assert (distance(x, found, norm) <= eps + 1e-6).all()
    assert not victim.broken[shortest > eps * 1.0001].any()
    assert victim.broken[shortest < eps * 0.7].all()
    assert torch.equal(net(found).argmax(1) != y, victim.broken)


@NORMS
@pytest.mark.parametrize("queries", [2, 3, 120])
def test_no_sample_asks_more_than_the_budget(norm, queries):
    net, x, y, seeds = line()
    for text in (f"{norm}(0.0001)", f"{norm}(inf)"):
        threat = ThreatModel.parse(text)
        victim = Victim(net, x, y, threat=threat, access="decision")
        hop_skip_jump(victim, x, y, threat=threat, seeds=seeds, queries=queries)
        assert victim.forwards.max() <= queries and not victim.backwards.any()
        if text.endswith("(inf)"):
            assert (victim.forwards == queries - 1).all(), "the last query looks into a finite ball"
        else:
            assert not victim.broken.any() and (victim.forwards >= queries - 1).all()


@NORMS
def test_company_order_and_batch_size_change_no_byte(net, held_out, norm):
    x, y, ids = (part[:6] for part in held_out)

    def run(rows):
        threat = ThreatModel.parse(f"{norm}(inf)")
        return hop_skip_jump(net, x[rows], y[rows], threat=threat, seeds=Draws(0, ids[rows]), queries=80, directions=20)

    whole = run(torch.arange(6))
    assert (net(whole).argmax(1) != y).all()
    assert torch.equal(run(torch.arange(5, -1, -1)).flip(0), whole)
    assert torch.equal(torch.cat([run(rows) for rows in torch.arange(6).split(4)]), whole)


@pytest.mark.slow
@NORMS
def test_more_queries_come_nearer(net, held_out, norm):
    x, y, ids = (part[:16] for part in held_out)
    threat = ThreatModel.parse(f"{norm}(inf)")
    far = [
        distance(x, hop_skip_jump(net, x, y, threat=threat, seeds=Draws(0, ids), queries=queries), norm)
        for queries in (100, 400)
    ]
    assert (far[1] <= far[0]).all() and far[1].sum() < 0.8 * far[0].sum()


@pytest.mark.parametrize("options", [{"queries": 0}, {"queries": 1}, {"directions": 0}])
def test_a_budget_that_finds_nothing_is_refused(options):
    net, x, y, seeds = line()
    with pytest.raises(ConfigError, match="queries and directions must be at least 2 and 1"):
        hop_skip_jump(net, x, y, threat=ThreatModel.parse("l2(1)"), seeds=seeds, **options)
