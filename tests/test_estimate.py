"""The time estimate grows with the work and needs no run directory."""

from __future__ import annotations

import pytest

from robench import estimate
from robench.api import plan_run
from robench.spec import Context
from robench.suite import parse_suite

BASE = "name: s\nlimit: {limit}\nmodels: [digits-mlp]\nthreats: [linf(0.1)]\nattacks: ['pgd(steps={steps})']\n"


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """A fixed speed and attacks that leave a fixed share, so that counts alone are compared."""
    monkeypatch.setattr(estimate, "_seconds_per_forward", lambda *a: 1e-3)
    monkeypatch.setattr(estimate, "_share_left", lambda *a: estimate.LEFT)


def seconds(steps: int = 40, limit: int = 50, more: str = "", workers: int = 1) -> float:
    plan, _ = plan_run(parse_suite(BASE.format(steps=steps, limit=limit) + more))
    return estimate.estimate_seconds(plan, device="cpu", workers=workers)[0] - estimate.START


def test_more_steps_images_and_cells_take_longer():
    assert seconds(steps=1600) > 1.5 * seconds(steps=800)
    assert seconds(steps=800, limit=200) > 3 * seconds(steps=800, limit=50)
    training = "scarcity: {recipes: [standard], fractions: [1.0], steps: 100}\n"
    assert seconds(more=training) > seconds() + 100 * 64 * 1e-3


def test_a_training_costs_its_own_architecture_s_time_and_the_steps_of_its_search():
    plain, searched = (
        seconds(more=f"scarcity: {{recipes: ['{recipe}'], fractions: [1.0], steps: 100}}\n") - seconds()
        for recipe in ("standard", "pgd_at(steps=4)")
    )
    assert searched - plain == pytest.approx(100 * 64 * 12 * 1e-3)


def test_workers_share_the_work():
    assert seconds(workers=2) == pytest.approx(seconds(workers=1) / 2)


def test_number_of_workers_comes_back():
    plan, _ = plan_run(parse_suite(BASE.format(steps=1, limit=10)))
    assert estimate.estimate_seconds(plan, device="cpu", workers=3)[1] == 3
    assert estimate.estimate_seconds(plan, device="cpu", workers=None)[1] >= 1


def test_real_speed_is_measured_and_positive(monkeypatch):
    monkeypatch.undo()
    plan, _ = plan_run(parse_suite(BASE.format(steps=5, limit=20)))
    total, _ = estimate.estimate_seconds(plan, device="cpu", workers=1)
    assert estimate.START < total < 600


@pytest.mark.parametrize("name", ["smoke", "quick", "standard", "full", "scarcity"])
def test_packaged_suites_can_be_estimated(name):
    plan, paths = plan_run(name)
    assert estimate.estimate_seconds(plan, device="cpu", workers=2, sources=paths)[0] > estimate.START


def test_a_sentinel_and_a_protocol_cost_what_rows_of_full_held():
    """The sentinel 115 passes' worth per sample at n = 300 as measured, and 46 since for its looks along ascents; protocols
    as measured on the zoo, by what they leave."""
    plan, _ = plan_run(parse_suite(BASE.format(steps=1, limit=300).replace("pgd(steps=1)", "robench-standard")))
    cells = {c.scenario.name: c for c in plan.cells}
    found = {"sentinel": estimate._forwards(cells["sentinel"], plan) / 300}
    assert found["sentinel"] == pytest.approx(161, rel=0.15)
    for left, passes in ((0.56, 463), (0.56, 517), (0.12, 161), (0.22, 225), (0.0, 12)):
        assert passes / 2 < estimate._forwards(cells["evasion"], plan, left=left) / 300 < 2 * passes
    more, _ = plan_run(parse_suite(BASE.format(steps=1, limit=1000)))
    grown = next(estimate._forwards(c, more) for c in more.cells if c.scenario.name == "sentinel")
    assert grown < 2 * 300 * found["sentinel"]


def test_what_attacks_leave_is_tried_on_the_model(monkeypatch):
    monkeypatch.undo()
    text = BASE.format(steps=5, limit=40).replace("linf(0.1)", "linf(0.02), linf(0.3), l1(4)")
    plan, _ = plan_run(parse_suite(text.replace("'pgd(steps=5)'", "'pgd(steps=5)', 'apgd(steps=5)'")))
    cells = {str(c.scenario.kwargs["threat"]): c for c in plan.cells if c.scenario.name == "evasion"}
    context = Context("", "cpu")
    left = {threat: estimate._share_left(c.model, c, context) for threat, c in cells.items()}
    assert 1 >= left["linf(0.02)"] > 0.7 > left["linf(0.3)"] >= 0 and left["l1(4)"] == estimate.LEFT
    later, _ = plan_run(parse_suite(BASE.format(steps=5, limit=40)), models=["trained(steps=5)"])
    assert estimate._share_left(later.cells[-1].model, cells["linf(0.02)"], context) == estimate.LEFT
