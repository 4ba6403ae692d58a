"""Square attack against pyautoattack query by query on the same draws, and what each part must be."""

import math

import pytest
import torch
from torch import nn

from robench.attacks import _square
from robench.attacks._square import square
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.06, "l2": 0.8, "l1": 3.0}
SHAPE = (2, 7, 7)


class Seen(nn.Module):
    """A model that remembers what it was asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.points = inner, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.inner(x)


def tiny(classes: int = 4, shape=SHAPE) -> nn.Module:
    torch.manual_seed(5)
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, classes)).eval()


def images(count: int, shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(8)
    return (torch.rand(count, *shape, generator=generator) * 1.4 - 0.2).clamp(0, 1).to(dtype)


def run(net, x, *, threat, ids=None, seed=0, y=None, width=64, access="score", **params):
    y = net(x).argmax(1) if y is None else y
    threat = ThreatModel.parse(threat)
    victim = Victim(net, x, y, threat=threat, width=width, access=access)
    seeds = Draws(seed, torch.arange(len(x)) if ids is None else ids)
    return victim, square(victim, x, y, threat=threat, seeds=seeds, **params)


class Dealt:
    """Stands in for ``torch.rand``: deals one sample's draws of ours in AutoAttack's order."""

    def __init__(self, draws: Draws, norm: str, shape, queries: int) -> None:
        channels, height, width = shape
        side = max(1, height // 5)
        first = (channels, width) if norm == "linf" else ((height // side) * (width // side), 1 + channels)
        numbers = (2 if norm == "linf" else 5) + channels
        blocks = -(-queries // 64)
        later = [draws.uniform("square", (64, numbers), step=k).flatten() for k in range(blocks)]
        self.values = torch.cat([draws.uniform("square.start", first).flatten(), *later]).double()
        self.at = 0

    def __call__(self, *shape):
        shape = torch.Size(shape[0]) if isinstance(shape[0], list | torch.Size) else torch.Size(shape)
        part = self.values[self.at : self.at + shape.numel()]
        self.at += shape.numel()
        return part.view(shape)


@pytest.fixture
def double(monkeypatch):
    """pyautoattack in float64: parts of it cast to float32 otherwise."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [SHAPE, (1, 10, 10)])
@pytest.mark.parametrize("norm", NORMS)
def test_it_asks_for_the_points_of_autoattack_in_float64(norm, shape, double, monkeypatch):
    attack_class = pytest.importorskip("pyautoattack.square").SquareAttack
    # after many queries a window of l2 or l1 may hold rounding residues alone, which the rule's 1e-12 blows up
    net, queries, full, short = Seen(tiny(shape=shape)), 66 if norm == "linf" else 25, 0, 0
    for i, x in enumerate(images(20, shape, torch.float64).split(1)):
        y = net.inner(x).argmax(1)
        attack = attack_class(net, norm=NORMS[norm], n_queries=queries, eps=EPS[norm], resc_schedule=False)
        attack.init_hyperparam(x)
        net.points.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", Dealt(Draws(0, torch.tensor([i])), norm, shape, queries))
            _, result = attack.attack_single_run(x, y)
        expected = torch.cat(net.points)
        net.points.clear()
        threat = f"{norm}({EPS[norm]})"
        victim, found = run(net, x, threat=threat, ids=torch.tensor([i]), y=y, width=1, queries=queries)
        asked = torch.cat(net.points)
        assert torch.allclose(asked, expected, atol=1e-9, rtol=0), (i, (asked - expected).abs().max())
        assert torch.allclose(found, result, atol=1e-9, rtol=0)
        full, short = full + (len(asked) == queries + 1), short + bool(victim.broken)
    assert full >= 5
    assert short >= 2


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_the_sides_are_those_of_autoattack(norm, rescale):
    attack_class = pytest.importorskip("pyautoattack.square").SquareAttack
    for queries, size in ((5000, (32, 32)), (10000, (28, 28)), (300, (8, 9))):
        attack = attack_class(None, norm=NORMS[norm], n_queries=queries, resc_schedule=rescale)
        for query in range(0, queries, 1 if queries == 300 else 10):
            side = round(math.sqrt(attack.p_selection(query) * size[0] * size[1]))
            side = max(side, 1) if norm == "linf" else max(side, 3) + (max(side, 3) % 2 == 0)
            found = _square._side(query, queries, 0.8, size, norm, rescale=rescale)
            assert found == min(side, *size)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_bumps_are_those_of_autoattack(norm, monkeypatch):
    attack = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm=NORMS[norm])
    attack.device = "cpu"
    for side in (1, 2, 3, 5, 8, 21):
        for luck in (0.4, 0.6):
            monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([luck]))  # noqa: B023
            bump = _square._pattern(side, norm)
            assert torch.allclose((bump.T if luck > 0.5 else bump).float(), attack.eta(side), atol=1e-6)
        power = 2 if norm == "l2" else 1
        assert abs(float(_square._pattern(side, norm).abs().pow(power).sum()) - 1) < 1e-12


def test_one_query_of_linf_changes_one_square_to_the_balls_edge():
    x, eps = images(30), 0.05
    luck = Draws(0, torch.arange(30)).uniform("square", (4,)).double()
    ball = Victim(tiny(), x, torch.zeros(30), threat=ThreatModel.parse("linf(0.05)")).ball
    asked = _square._stripe(x, x, luck, 3, ball)
    for i in range(30):
        top, left = int(luck[i, 0] * 4), int(luck[i, 1] * 4)
        for c in range(2):
            sign = 1 if luck[i, 2 + c] >= 0.5 else -1
            expected = x[i, c].clone()
            square_of = expected[top : top + 3, left : left + 3]
            expected[top : top + 3, left : left + 3] = (square_of + sign * eps).clamp(0, 1)
            assert torch.allclose(asked[i, c], expected, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_every_point_is_in_the_ball_and_uses_it(norm):
    net, x, eps = Seen(tiny()), images(12)[1:], EPS[norm] / 10
    victim, found = run(net, x, threat=f"{norm}({eps})", queries=40, width=11)
    assert not victim.broken.any()
    far = torch.stack([distance(x, points, norm) for points in net.points[1:]])
    assert far.shape == (41, 11)
    assert (far <= eps + 1e-7).all()
    assert (far > 0.5 * eps).all()
    assert victim.ball.contains(found).all()


def test_the_margin_never_rises_and_more_queries_break_more():
    net, x = tiny(), images(40)
    margins, broken = [], []
    for queries in (1, 20, 200):
        victim, found = run(net, x, threat="linf(0.06)", queries=queries)
        y = net(x).argmax(1)
        logits = net(found).detach()
        own = logits.gather(1, y[:, None])[:, 0]
        margins.append((own - logits.scatter(1, y[:, None], -torch.inf).amax(1)).where(~victim.broken, torch.tensor(0.0)))
        broken.append(victim.broken)
        assert torch.equal(victim.broken, logits.argmax(1) != y)
    assert (margins[1] <= margins[0] + 1e-6)[~broken[0]].all()
    assert (margins[2] <= margins[1] + 1e-6)[~broken[1]].all()
    assert broken[0].sum() < broken[2].sum() < 40
    assert (broken[2] | ~broken[1]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_its_company(norm):
    net, x = tiny(), images(13)
    threat = f"{norm}({EPS[norm]})"
    told = {"queries": 66, "restarts": 2} if norm == "linf" else {"queries": 20, "restarts": 1}
    whole = run(net, x, threat=threat, **told)
    assert 0 < whole[0].broken.sum() < 13
    for size in (1, 5):
        for a in range(0, 13, size):
            ids = torch.arange(13)[a : a + size]
            victim, found = run(net, x[a : a + size], threat=threat, ids=ids, **told)
            assert torch.equal(found, whole[1][a : a + size])
            assert torch.equal(victim.forwards, whole[0].forwards[a : a + size])


def test_samples_draw_apart_and_restarts_draw_anew():
    net, one = Seen(tiny()), images(1)
    x = one.expand(2, *SHAPE).clone()
    run(net, x, threat="linf(0.001)", queries=3, restarts=2, width=2)
    points = torch.stack(net.points[1:])
    assert points.shape[:2] == (8, 2)
    assert (points[:, 0] != points[:, 1]).flatten(1).any(1).all()
    assert not torch.equal(points[0], points[4])
    assert not torch.equal(points[1], points[5])


def test_passes_are_counted_exactly_and_broken_samples_leave():
    net, x = tiny(), images(40)
    victim, _ = run(net, x, threat="linf(0.06)", queries=30, restarts=2)
    assert (victim.backwards == 0).all()
    assert (victim.forwards[~victim.broken] == 2 * 31).all()
    assert 0 < victim.broken.sum() < 40
    assert (victim.forwards[victim.broken] < 2 * 31).any()
    again = run(net, x, threat="linf(0.06)", queries=62)[0]
    one = run(net, x, threat="linf(0.06)", queries=30)[0]
    early = one.broken & (one.forwards <= 30)
    assert torch.equal(again.forwards[early], one.forwards[early])


def test_a_margin_that_is_not_a_number_is_no_improvement():
    class Odd(nn.Module):
        def forward(self, x):
            score = x.flatten(1).sum(1)
            return torch.stack([score * torch.nan, score], 1)

    x = images(3)
    victim, found = run(Odd(), x, threat="linf(0.1)", queries=5, y=torch.ones(3, dtype=torch.int64))
    assert torch.equal(found, x)
    assert not victim.broken.any()


def test_a_model_that_only_sees_one_corner_is_broken_by_it():
    class Corner(nn.Module):
        def forward(self, x):
            score = x[:, 0, 1:3, 1:3].mean((1, 2))
            return torch.stack([0.45 - score, score - 0.45], 1).round(decimals=2)

    x = torch.full((10, *SHAPE), 0.5)
    victim, _ = run(Corner(), x, threat="linf(0.1)", queries=100)
    assert victim.broken.all()


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 4, 12), (3, 14, 9), (1, 1, 1)])
@pytest.mark.parametrize("norm", NORMS)
def test_odd_image_sizes_work(norm, shape):
    net, x = tiny(shape=shape), images(4, shape)
    for eps in (EPS[norm], "inf"):
        victim, found = run(net, x, threat=f"{norm}({eps})", queries=15)
        assert victim.ball.contains(found).all()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"queries": 0}, "queries and restarts must be at least 1, got \\(0, 1\\)"),
        ({"restarts": 0}, "queries and restarts"),
        ({"p_init": 0.0}, "p_init must be in \\(0, 1\\], got 0.0"),
        ({"p_init": 1.5}, "p_init"),
    ],
)
def test_what_cannot_be_used_is_refused(params, text):
    with pytest.raises(ConfigError, match=text):
        run(tiny(), images(2), threat="linf(0.1)", **params)


def test_other_norms_and_samples_that_are_no_images_are_refused():
    with pytest.raises(ConfigError, match="norm must be linf, l2 or l1, got 'l0'"):
        run(tiny(), images(2), threat="l0(3)")
    with pytest.raises(ConfigError, match="must be images"):
        run(tiny(), images(2).flatten(1), threat="linf(0.1)")


@pytest.mark.parametrize("norm", NORMS)
def test_guessing_ahead_changes_no_query_no_answer_and_no_book(norm, monkeypatch):
    x = images(3, dtype=torch.float64)
    told = {"threat": f"{norm}({EPS[norm] / 3})", "queries": 90 if norm == "linf" else 30, "width": 16}
    net = Seen(tiny().double())
    ahead, found = run(net, x, **told)
    batches = len(net.points)
    monkeypatch.setattr(Victim, "separable", False)
    net.points.clear()
    alone, expected = run(net, x, **told)
    assert torch.equal(found, expected)
    assert torch.equal(ahead.best_margin, alone.best_margin)
    assert torch.equal(ahead.forwards, alone.forwards) and (alone.forwards > 1).all()
    assert batches < len(net.points) / 1.5
