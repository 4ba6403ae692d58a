"""Sparse random search: its schedule, a slow twin of one sample, exact budgets, and what it finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robench.attacks import sparse_rs
from robench.attacks._sparse_rs import exchanged
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

IDS = torch.arange(40, 52)


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 20), nn.Tanh(), nn.Linear(20, 4)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    x = torch.rand(12, 2, 5, 5, generator=generator)
    return net, x, net(x).argmax(1)


def attacked(case, eps: int, **params) -> tuple[Victim, torch.Tensor]:
    net, x, y = case
    victim = Victim(net, x, y, threat=ThreatModel.parse(f"l0({eps})"), access="score")
    return victim, sparse_rs(victim, x, y, threat=victim.threat, seeds=Draws(0, IDS), **params)


@pytest.mark.parametrize(
    ("query", "divisor"), [(1, 2), (50, 2), (51, 4), (201, 5), (501, 6), (1001, 8), (2001, 10), (4001, 12), (8001, 20)]
)
def test_the_schedule_is_that_of_the_authors(query, divisor):
    assert exchanged(query, 10_000, 0.6, 100, 1000) == max(int(0.6 / divisor * 100), 1)
    assert exchanged(query, 5_000, 0.6, 100, 1000) == exchanged(2 * query, 10_000, 0.6, 100, 1000)


def test_no_more_features_than_rest_or_budget_are_exchanged():
    assert exchanged(1, 10, 1.0, 9, 10) == 1 and exchanged(1, 10, 1.0, 1, 10) == 1


def twin(case, place: int, eps: int, queries: int) -> torch.Tensor:
    """One sample, one query at a time, over a Python list of changed features."""
    net, x, y = case
    x, y, seeds = x[place].flatten(), y[place], Draws(0, IDS[place : place + 1])

    def margin(point):
        logits = net(point.view(1, 2, 5, 5))[0].detach()
        return float(logits[y] - max(logits[k] for k in range(4) if k != y))

    order = seeds.uniform("sparse.order", (50,))[0].argsort(stable=True).tolist()
    best = x.clone()
    best[order[:eps]] = seeds.uniform("sparse.start", (eps,))[0].round()
    lowest = margin(best)
    for query in range(queries):
        if lowest <= 0:
            break
        count = exchanged(query + 1, queries, 0.3, eps, 50)
        if query % 64 == 0:
            luck = seeds.uniform("sparse", (64, 2 + count), step=query // 64)[0]
            if query:
                keys = seeds.uniform("sparse.order", (50,), step=query // 64)[0]
                changed = [order[int(i)] for i in keys[:eps].argsort(stable=True)]
                order = changed + [order[eps + int(i)] for i in (keys[eps:] + 1).argsort(stable=True)]
        row, trial, moved = luck[query % 64], best.clone(), list(order)
        leave = [(int(float(row[0]) * eps) + j) % eps for j in range(count)]
        enter = [(int(float(row[1]) * (50 - eps)) + j) % (50 - eps) + eps for j in range(count)]
        for j in range(count):
            trial[order[leave[j]]] = x[order[leave[j]]]
            moved[leave[j]], moved[enter[j]] = order[enter[j]], order[leave[j]]
        for j in range(count):
            trial[order[enter[j]]] = float(row[2 + j].round())
        found = margin(trial)
        if found < lowest:
            best, lowest, order = trial, found, moved
    return best.view(2, 5, 5)


@pytest.mark.parametrize("eps", [3, 12])
def test_it_follows_its_one_sample_twin(case, eps):
    _, found = attacked(case, eps, queries=150)
    for place in range(12):
        assert torch.allclose(found[place], twin(case, place, eps, 150), atol=1e-6), place


def test_at_most_eps_features_are_changed_and_they_lie_at_the_boxs_edge(case):
    for eps in (1, 4, 49, 50, 60):
        _, found = attacked(case, eps, queries=30)
        assert (distance(case[1], found, "l0") <= min(eps, 49)).all()
        changed = found != case[1]
        assert set(found[changed].unique().tolist()) <= {0.0, 1.0}


def test_a_sample_that_holds_is_charged_one_pass_per_query_and_one_more(case):
    victim, _ = attacked(case, 1, queries=20, restarts=2)
    assert (victim.forwards[~victim.broken] == 42).all() and not victim.backwards.any()
    assert (~victim.broken).any() and (victim.forwards <= 42).all()


def test_more_queries_and_more_features_break_more(case):
    counts = [int(attacked(case, eps, queries=q)[0].broken.sum()) for eps, q in ((2, 50), (5, 50), (5, 1000), (20, 1000))]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_radius_below_one_feature_leaves_the_images_as_they_are(case):
    victim, found = attacked(case, 0, queries=20)
    assert torch.equal(found, case[1]) and (victim.forwards == 1).all()


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"restarts": 0}, {"share": 0.0}, {"share": 1.1}])
def test_arguments_that_attack_nothing_are_refused(case, wrong):
    with pytest.raises(ConfigError):
        attacked(case, 3, **wrong)
