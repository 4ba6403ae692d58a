"""Nets that are flat near an image: starts at full distance, ascents from outside, and what another kind of search tells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks import _protocols
from robench.attacks._cascade import shrinking, sieve
from robench.attacks._engine import Engine
from robench.attacks._escalation import Flags
from robench.metrics.validity import _unended
from robench.ops.norms import Ball, distance, sphere
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.thresholds import UNENDED
from robench.victim import Victim

G = torch.Generator().manual_seed(4)
INK = (torch.rand(7, 1, 6, 6, generator=G) * 3 - 1).clamp(0, 1)
"""Images most of whose pixels are black or white."""


def test_a_start_in_l2_is_at_full_distance_within_the_box():
    ball = Ball(INK, ThreatModel.parse("l2(1.5)"))
    points = ball.start(Draws(0, torch.arange(7)), "start")
    assert ball.contains(points).all()
    assert torch.allclose(distance(INK, points, "l2"), torch.full((7,), 1.5, dtype=torch.float64), atol=1e-5)


def test_a_ray_goes_straight_until_the_box_cuts_it():
    centre, direction = torch.tensor([[0.5, 0.9, 0.0]]), torch.tensor([[3.0, 4.0, -1.0]])
    free = sphere(centre, direction, 0.1)
    assert torch.allclose(free, centre + 0.1 * torch.tensor([[0.6, 0.8, 0.0]]), atol=1e-6)
    cut = sphere(centre, direction, 0.3)
    assert torch.allclose(cut, torch.tensor([[0.5 + (0.09 - 0.01) ** 0.5, 1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(sphere(centre, direction, 9.0), torch.tensor([[1.0, 1.0, 0.0]]))


def test_a_start_does_not_depend_on_its_company():
    threat, ids = ThreatModel.parse("l2(2)"), torch.arange(7)
    whole = Ball(INK, threat).start(Draws(0, ids), "start")
    for row in range(7):
        alone = Ball(INK[row : row + 1], threat).start(Draws(0, ids[row : row + 1]), "start")
        assert torch.equal(alone, whole[row : row + 1])


class Flat(nn.Module):
    """Without any slope until 0.7 eps along one direction, and wrong from 0.8 eps on (eps is 0.3)."""

    def __init__(self) -> None:
        super().__init__()
        way = torch.randn(16, generator=torch.Generator().manual_seed(1))
        self.register_buffer("way", way / way.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        along = (x.flatten(1) - 0.5) @ self.way
        return torch.stack([torch.full_like(along, 0.03), (along - 0.21).relu()], 1)


def flat(count: int = 24) -> Engine:
    x = torch.full((count, 1, 4, 4), 0.5)
    return Engine(Flat().eval(), x, torch.zeros(count, dtype=torch.int64), torch.arange(count), ThreatModel.parse("l2(0.3)"))


def breaking(victim: Victim, count: int) -> Tensor:
    """What an attack returns that breaks the first ``count`` of its samples."""
    if count:
        victim.margins(victim.x[:count] + 0.27 * victim.model.way.view(1, 4, 4), torch.arange(count), inside=True)
    return victim.result()


def test_ascents_from_a_wider_ball_leave_a_flat_region():
    near, far = flat(), flat()
    for engine, attack in ((near, sieve(40)), (far, shrinking(0, 1, 2, 3))):
        engine.look()
        engine.run("stage", attack)
        assert (distance(engine.x, engine.best, "l2") <= 0.3 + 1e-6).all()
    assert near.broken.sum() <= 6 < 12 <= far.broken.sum()


def test_what_an_ascent_meets_outside_the_ball_does_not_count():
    engine = flat()
    engine.threat = ThreatModel.parse("l2(0.2)")
    engine.look()
    engine.run("stage", shrinking(0, 1))
    assert not engine.broken.any()


@pytest.mark.parametrize("wins", [True, False])
def test_fab_meets_all_survivors_where_it_wins(wins, monkeypatch):
    given = []

    def fake(victim, x, y, *, threat, seeds, **params):
        given.append(len(victim.x))
        if wins and len(given) == 1:
            away = x + 0.27 * victim.model.way.view(1, 4, 4)
            victim.margins(away[:2], torch.arange(2), inside=True)
        return victim.result()

    monkeypatch.setattr(_protocols, "fab_t", fake)
    monkeypatch.setattr(_protocols, "apgd", lambda victim, x, y, **params: victim.result())
    monkeypatch.setattr(_protocols, "shrinking", lambda *turns: lambda victim, draws: None)
    engine = flat(100)
    engine.look()
    _protocols._other_kinds(engine)
    assert given == ([64, 98] if wins else [64])
    assert (_protocols.OTHERS_BROKE in engine.escalated) == wins


def test_a_search_that_still_wins_at_its_end_is_told_and_doubted(monkeypatch):
    def fake(victim, x, y, *, threat, seeds, **params):
        away = x + 0.27 * victim.model.way.view(1, 4, 4)
        victim.margins(away[:3], torch.arange(3), inside=True)
        return victim.result()

    monkeypatch.setattr(_protocols, "fab_t", fake)
    monkeypatch.setattr(_protocols, "apgd", lambda victim, x, y, **params: victim.result())
    monkeypatch.setattr(_protocols, "shrinking", lambda *turns: lambda victim, draws: None)
    engine = flat(100)
    engine.look()
    _protocols._other_kinds(engine)
    assert [stage.name for stage in engine.waterfall][-1] == "fab-t-long"
    told = pd.DataFrame({"escalated": ["", "; ".join(engine.escalated)]})
    reasons = list(_unended(told))
    assert len(reasons) == 1 and reasons[0].startswith(UNENDED)
    assert "3 of 100" in reasons[0]


@pytest.mark.parametrize(("missing", "wins", "queries"), [("", 0, [2000]), ("", 1, [2000, 5000]), ("none", 0, [5000])])
def test_a_search_without_gradients_is_as_long_as_it_pays(missing, wins, queries, monkeypatch):
    """A model without gradients has nothing else: there the long search is run at once."""
    asked = []

    def fake(victim, x, y, *, threat, seeds, **params):
        asked.append(params["queries"])
        return breaking(victim, wins)

    monkeypatch.setattr(_protocols, "square", fake)
    engine = flat()
    engine.look()
    _protocols._without_gradients(engine, Flags(missing=missing, troubles=["a reason"]))
    assert asked == queries


def test_long_runs_in_l1_end_with_the_first_that_gains_nothing(monkeypatch):
    turns, wins = [], [2, 3, 0, 1]

    def fake(victim, x, y, *, threat, seeds, **params):
        turns.append(params["steps"])
        return breaking(victim, wins[len(turns) - 1])

    monkeypatch.setattr(_protocols, "apgd", fake)
    engine = flat()
    engine.look()
    _protocols._long_runs(engine)
    assert turns == [100] * 3


def test_a_stage_of_few_samples_has_narrow_batches():
    seen = []
    engine = flat(11)
    engine.run("narrow", lambda victim, draws: seen.append(victim.width), copies=1)
    engine.run("copies", lambda victim, draws: seen.append(victim.width), copies=3)
    engine.run("whole", lambda victim, draws: seen.append(victim.width))
    engine.hold = 4
    engine.run("held", lambda victim, draws: seen.append(victim.width), copies=1)
    assert seen == [16, 48, 64, 16, 16, 16]


@pytest.mark.slow
@pytest.mark.shared
def test_a_net_trained_in_linf_falls_in_l2_as_far_as_autoattack_shows(shared_data, published):
    """AutoAttack leaves 4 of these 100 images; the cascade of version 4 left 29 and was called sound."""
    held = np.load(shared_data / "mnist" / "mnist.npz")
    x = torch.from_numpy(held["test_x"][:100]).float()[:, None] / 255
    y = torch.from_numpy(held["test_y"][:100]).long()
    found = robench.attack(published("kw_mnist_0.1"), x, y, threat="l2(2.0)", protocol="robench-standard")
    assert int(found.robust.sum()) <= 4 + 1
