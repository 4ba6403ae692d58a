import math

import pytest
import torch
from scipy.optimize import minimize

from robench.ops.norms import Ball, distance, steepest, tolerance
from robench.ops.random import Draws
from robench.spec import ThreatModel

CASES = [
    *("linf(8/255)", "linf(1)", "linf(inf)", "linf(0)"),
    *("l2(0.5)", "l2(1e-5)", "l2(inf)", "l1(2)", "l1(1e-4)", "l1(0)", "l0(3)"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(text, seed=0, dtype=torch.float32, spread=1.0):
    """Centres with many pixels at exactly 0 and 1, and points far and near around them."""
    gen = generator(seed)
    x = (torch.rand(24, 1, 6, 6, generator=gen, dtype=dtype) * 1.6 - 0.3).clamp(0, 1)
    scale = torch.logspace(-6, 1, 24, dtype=dtype)[:, None, None, None] * spread
    return Ball(x, ThreatModel.parse(text)), x + scale * torch.randn(x.shape, generator=gen, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", CASES)
def test_projected_points_meet_eps_and_box_exactly_and_stay_where_they_are(text, dtype):
    for seed in range(5):
        ball, points = setting(text, seed, dtype)
        found = ball.project(points)
        slack = 0.0 if dtype == torch.float32 else 1e-14
        assert found.dtype == dtype
        assert (distance(ball.x, found, ball.threat.norm) <= ball.threat.eps + slack).all()
        assert ((found >= 0) & (found <= 1)).all()
        assert ball.contains(found).all()
        assert (ball.project(found) - found).abs().max() <= slack


@pytest.mark.parametrize("text", CASES)
def test_points_inside_are_untouched(text):
    ball, points = setting(text)
    boxed = ((points >= 0) & (points <= 1)).flatten(1).all(1)
    inside = boxed & (distance(ball.x, points, ball.threat.norm) <= ball.threat.eps)
    near = torch.where(inside[:, None, None, None], points, ball.x)
    assert torch.equal(ball.project(near), near)


@pytest.mark.parametrize("text", ["linf(0.1)", "l2(0.5)", "l1(1)"])
def test_outside_points_land_on_the_sphere_nearer_than_a_thousand_random_points_of_the_ball(text):
    norm, eps = ThreatModel.parse(text).norm, ThreatModel.parse(text).eps
    x = torch.full((6, 8), 0.5)
    points = x + 0.3 * torch.randn(6, 8, generator=generator(3)).sign() * torch.rand(6, 8, generator=generator(4)).add(0.4)
    ball = Ball(x, ThreatModel.parse(text))
    found = ball.project(points)
    assert torch.allclose(distance(x, found, norm), torch.full((6,), eps, dtype=torch.float64), rtol=1e-6)
    own = (found - points).norm(dim=1)
    for seed in range(1000):
        other = ball.random(Draws(seed, torch.arange(6)), "rival")
        assert ball.contains(other).all()
        assert (own <= (other - points).norm(dim=1) + 1e-6).all()


def test_l1_projection_equals_a_general_solver():
    x = torch.full((4, 5), 0.5, dtype=torch.float64)
    points = x + 0.4 * torch.randn(4, 5, generator=generator(1), dtype=torch.float64).clamp(-1, 1)
    found = Ball(x, ThreatModel.parse("l1(0.3)")).project(points)
    for row in range(4):
        delta = (points[row] - x[row]).numpy()
        # |d| as p - q with p, q >= 0 makes the problem smooth
        start = [0.0] * 10
        best = minimize(
            lambda v, delta=delta: float(((v[:5] - v[5:] - delta) ** 2).sum()),
            start,
            bounds=[(0, None)] * 10,
            constraints={"type": "ineq", "fun": lambda v: 0.3 - v.sum()},
            tol=1e-12,
        )
        assert torch.allclose(found[row] - x[row], torch.from_numpy(best.x[:5] - best.x[5:]), atol=2e-5)


def test_l0_projection_keeps_the_largest_changes():
    x = torch.full((1, 5), 0.5)
    points = torch.tensor([[0.1, 0.55, 0.9, 0.4, 0.5]])
    found = Ball(x, ThreatModel.parse("l0(2)")).project(points)
    assert torch.equal(found, torch.tensor([[0.1, 0.5, 0.9, 0.5, 0.5]]))


@pytest.mark.parametrize("side", [8, 32, 512])
@pytest.mark.parametrize("text", ["linf(0.03)", "linf(inf)", "l2(0.25)", "l2(3.0)", "l2(inf)"])
def test_the_search_s_projection_is_the_exact_one_but_for_rounding(text, side):
    gen = generator(3)
    count = 24 if side < 512 else 3
    x, far = torch.rand(count, 3, side, side, generator=gen), torch.randn(count, 3, side, side, generator=gen)
    far[0] *= 1e-4
    ball = Ball(x, ThreatModel.parse(text))
    exact, found = ball.project(x + far), ball.confine(x + far)
    assert (found - exact).abs().max() <= 6e-6
    assert ball.contains(found).all()
    reach = distance(x, found, ball.threat.norm)
    assert (reach <= ball.threat.eps * (1 + 2e-7)).all()


def test_l2_projection_in_closed_form():
    x = torch.full((1, 2), 0.5)
    found = Ball(x, ThreatModel.parse("l2(0.1)")).project(torch.tensor([[0.8, 0.9]]))
    assert torch.allclose(found, torch.tensor([[0.56, 0.58]]), atol=1e-7)


@pytest.mark.parametrize(("norm", "value"), [("linf", 4.0), ("l2", 5.0), ("l1", 7.0), ("l0", 2.0)])
def test_distances_of_a_three_four_five_triangle(norm, value):
    assert distance(torch.zeros(1, 1, 1, 3), torch.tensor([3.0, -4, 0]).view(1, 1, 1, 3), norm).item() == value


def test_contains_follows_the_judges_tolerance():
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    ball = Ball(x, ThreatModel.parse("linf(0.1)"))
    assert tolerance(0.1) == 1e-6
    assert tolerance(10) == pytest.approx(1e-5)
    assert ball.contains(x + 0.1 + 0.9e-6).item()
    assert not ball.contains(x + 0.1 + 1.1e-6).item()
    for bad in (math.nan, math.inf, -math.inf, -1e-9, 1 + 1e-9):
        assert not Ball(x, ThreatModel.parse("linf(inf)")).contains(torch.full_like(x, bad)).item()


def test_a_part_of_a_ball_is_the_ball_of_the_part():
    for text in CASES:
        ball, points = setting(text)
        rows = torch.tensor([5, 2, 23])
        ball.project(points)
        assert torch.equal(ball[rows].project(points[rows]), ball.project(points)[rows])


@pytest.mark.parametrize("text", CASES)
def test_random_points_lie_in_the_ball_and_do_not_depend_on_company(text):
    ball, _ = setting(text)
    draws = Draws(3, torch.arange(100, 124))
    points = ball.random(draws, "s")
    assert ball.contains(points).all()
    rows = torch.tensor([7, 20])
    assert torch.equal(ball[rows].random(draws[rows], "s"), points[rows])


def test_random_linf_points_are_uniform():
    ball = Ball(torch.full((1, 20000), 0.5), ThreatModel.parse("linf(0.1)"))
    offsets = (ball.random(Draws(0, torch.zeros(1, dtype=torch.int64)), "u") - 0.5).flatten()
    assert abs(offsets.mean().item()) < 5 * 0.1 / math.sqrt(3 * 20000)
    assert abs(offsets.var().item() / (0.01 / 3) - 1) < 0.05


def test_steepest_is_the_unit_ball_vertex_and_zero_where_the_gradient_is():
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-30, 0.0]])
    assert torch.equal(steepest(gradient, "linf"), torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 0.0]]))
    assert torch.allclose(steepest(gradient, "l2")[:2], torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    assert steepest(gradient, "l2").isfinite().all()
