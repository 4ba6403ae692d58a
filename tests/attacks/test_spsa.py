"""NES and SPSA: what they estimate on a linear model, what they ask, and one-sample twins."""

import math

import pytest
import torch
from torch import nn

from robench.attacks import noise, pgd
from robench.attacks._spsa import estimated, nes, spsa
from robench.errors import ConfigError
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

LINF = ThreatModel.parse("linf(0.05)")
BOTH = pytest.mark.parametrize("attack", [nes, spsa])


class Unbreakable(nn.Module):
    """Two classes; the logits lean on the input but the label always wins."""

    def forward(self, x):
        value = x.flatten(1).mean(1)
        return torch.stack([10 + value, value * value], 1)


def line():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
        net[1].bias.copy_(torch.tensor([50.0, 0.0]))
    return net


@pytest.mark.parametrize("stage", ["nes", "spsa"])
def test_the_estimate_is_unbiased_on_a_linear_model(stage):
    net, x, y = line(), torch.full((6, 1, 4, 4), 0.5, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    victim, seeds = Victim(net, x, y, threat=LINF), Draws(0, torch.arange(6))

    def draw(rows, step):
        if stage == "nes":
            return seeds[rows].normal("nes", x.shape[1:], step=step).double()
        return seeds[rows].integers("spsa", x.shape[1:], 2, step=step).double() * 2 - 1

    told = {"draw": draw, "draws": range(600), "width": 1e-3, "loss": "margin"}
    found = estimated(victim, x, torch.arange(6), **told).flatten(1)
    truth = (net[1].weight[1] - net[1].weight[0]).detach()
    cosine = torch.cosine_similarity(found, truth[None], dim=1)
    assert (cosine > math.sqrt(600 / 616) - 0.01).all(), cosine
    bias = found.mean(0) - truth
    assert bias.abs().max() < 5 * truth.norm() / math.sqrt(6 * 600)
    assert 0.9 < found.mean(0) @ truth / truth.square().sum() < 1.1
    assert (victim.forwards == 1200).all() and (victim.backwards == 0).all()


@BOTH
@pytest.mark.parametrize(
    ("queries", "pairs", "spent"), [(3, 25, 3), (51, 25, 51), (53, 25, 51), (54, 25, 54), (100, 25, 100), (21, 2, 20)]
)
def test_a_sample_that_stands_is_charged_the_budget_and_never_more(attack, queries, pairs, spent):
    x, y = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    victim = Victim(Unbreakable(), x, y, threat=LINF, access="score")
    attack(victim, x, y, threat=LINF, seeds=Draws(0, torch.arange(3)), queries=queries, pairs=pairs)
    assert victim.forwards.tolist() == [spent] * 3
    assert queries - spent <= 2 and not victim.backwards.any()


@BOTH
def test_the_limit_of_the_threat_holds(attack):
    threat = ThreatModel("linf", 0.05, "0.05", queries=30)
    x, y = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, dtype=torch.int64)
    victim = Victim(Unbreakable(), x, y, threat=threat, access="score")
    attack(victim, x, y, threat=threat, seeds=Draws(0, torch.arange(2)), pairs=3)
    assert victim.forwards.tolist() == [28, 28]


@BOTH
def test_only_images_are_asked(attack, net, held_out):
    x, y, ids = (part[:8] for part in held_out)
    seen: list[tuple[float, float]] = []

    def listening(images):
        seen.append((float(images.amin()), float(images.amax())))
        return net(images)

    attack(listening, x, y, threat=LINF, seeds=Draws(0, ids), queries=60)
    assert len(seen) >= 51 and all(low >= 0 and high <= 1 for low, high in seen)


def twin_nes(net, x, y, draws, eps, steps, pairs):
    point, memory, size = x, torch.zeros_like(x), 2.5 * eps / steps
    for step in range(steps):
        estimate = torch.zeros_like(x)
        for k in range(pairs):
            u = draws.normal("nes", x.shape[1:], step=step * pairs + k).double()
            values = []
            for sign in (1, -1):
                logits = net((point + sign * 1e-3 * u).clamp(0, 1))[0]
                values.append(float(torch.cat([logits[:y], logits[y + 1 :]]).max() - logits[y]))
                if values[-1] >= 0:
                    return (point + sign * 1e-3 * u).clamp(0, 1)
            estimate += u * (values[0] - values[1]) / (2e-3 * pairs)
        memory = 0.9 * memory + 0.1 * estimate
        point = torch.minimum(torch.maximum(point + size * memory.sign(), x - eps), x + eps).clamp(0, 1)
        if net(point)[0].argmax() != y:
            return point
    return None


def test_nes_follows_its_one_sample_twin(net, held_out):
    net = net.double()
    x, y, ids = held_out[0][:20].double(), held_out[1][:20], held_out[2][:20]
    right = net(x).argmax(1) == y
    x, y, seeds = x[right], y[right], Draws(4, ids[right])
    victim = Victim(net, x, y, threat=LINF)
    found = nes(victim, x, y, threat=LINF, seeds=seeds, queries=190, pairs=9)
    with torch.no_grad():
        twins = [twin_nes(net, x[i : i + 1], int(y[i]), seeds[i : i + 1], 0.05, 10, 9) for i in range(len(x))]
    net.float()
    assert victim.broken.tolist() == [t is not None for t in twins] and 0 < victim.broken.sum() < len(x)
    same = [i for i, t in enumerate(twins) if t is not None and (t - x[i : i + 1]).abs().max() < 0.05 + 1e-9]
    assert len(same) > 1  # a point of a pair outside the ball is no success for the victim, which goes on
    for i in same:
        assert torch.allclose(found[i], twins[i][0], atol=1e-9, rtol=0)


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf(0.05)", "l2(0.6)"])
def test_it_beats_random_points_and_breaks_no_more_than_the_gradient_can(net, held_out, attack, norm):
    threat = ThreatModel.parse(norm)
    x, y, ids = (part[:60] for part in held_out)
    white, score, random = (Victim(net, x, y, threat=threat) for _ in range(3))
    pgd(white, x, y, threat=threat, seeds=Draws(0, ids), steps=20, restarts=3, loss="margin")
    attack(score, x, y, threat=threat, seeds=Draws(0, ids), queries=500, pairs=10)
    noise(random, x, y, threat=threat, seeds=Draws(0, ids), draws=500)
    assert score.broken.sum() >= random.broken.sum() + 3
    assert (score.broken & ~white.broken).sum() == 0
    assert score.broken.sum() >= 0.45 * white.broken.sum()


@BOTH
def test_company_order_and_batch_size_change_no_byte(net, held_out, attack):
    x, y, ids = (part[:16] for part in held_out)

    def run(rows):
        return attack(net, x[rows], y[rows], threat=LINF, seeds=Draws(0, ids[rows]), queries=100)

    whole = run(torch.arange(16))
    assert (whole != x).flatten(1).any(1).all()
    assert torch.equal(run(torch.arange(15, -1, -1)).flip(0), whole)
    assert torch.equal(torch.cat([run(rows) for rows in torch.arange(16).split(5)]), whole)


@pytest.mark.parametrize(
    ("attack", "options", "text"),
    [
        (nes, {"queries": 0}, "queries must be at least 3, got 0"),
        (spsa, {"queries": 0}, "queries must be at least 3, got 0"),
        (spsa, {"queries": 2}, "queries must be at least 3, got 2"),
        (nes, {"pairs": 0}, "pairs, width and step size"),
        (nes, {"sigma": 0.0}, "pairs, width and step size"),
        (spsa, {"rate": math.nan}, "pairs, width and step size"),
        (nes, {"momentum": 1.0}, "momentum must be in"),
    ],
)
def test_arguments_that_attack_nothing_are_refused(attack, options, text):
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=text):
        attack(Unbreakable(), x, y, threat=LINF, seeds=Draws(0, torch.arange(1)), **options)
