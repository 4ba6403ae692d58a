"""The transfer attack: today's default beside PGD, and momentum, diversity and smoothing beside torch's own operations."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from robench.attacks._pgd import pgd
from robench.attacks._transfer import Relentless, shrinkings, smoothed, transfer
from robench.errors import AttackError, ConfigError
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

LINF = ThreatModel.parse("linf(0.1)")
KINDS = [{"mi": 1.0}, {"di": 0.5}, {"ti": 3}, {"mi": 1.0, "di": 0.7, "ti": 5}]


@pytest.mark.parametrize("norm", ["linf(0.1)", "l2(1)"])
def test_the_default_is_the_lowest_margin_of_pgd_on_the_surrogate(net, other_net, held_out, norm):
    x, y, ids = (part[:40] for part in held_out)
    threat = ThreatModel.parse(norm)
    model = Relentless(other_net, x, y, threat=threat)
    pgd(model, x, y, threat=threat, seeds=Draws(0, ids), steps=20, loss="margin")
    victim = Victim(net, x, y, threat=threat, access="transfer")
    found = transfer(victim, x, y, threat=threat, seeds=Draws(0, ids), surrogate=other_net)
    assert torch.equal(found, model.result())
    assert (victim.forwards == 1).all() and not victim.backwards.any()
    assert victim.broken.sum() > 5


def test_the_smoothing_is_a_convolution_with_the_papers_window():
    gradient = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for width in (1, 3, 7, 15):
        at = torch.linspace(-3, 3, width, dtype=torch.float64) if width > 1 else torch.zeros(1, dtype=torch.float64)
        line = torch.exp(-(at**2) / 2)
        window = torch.outer(line, line)
        window = (window / window.sum()).expand(2, 1, width, width)
        expected = functional.conv2d(gradient, window, padding=width // 2, groups=2)
        assert torch.allclose(smoothed(gradient, width), expected, atol=1e-14)


def test_the_shrinking_is_a_bilinear_resize_with_zeros_around_it():
    x = torch.rand(200, 3, 20, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = shrinkings(Draws(0, torch.arange(200)), x, chance=0.5, step=3)
    found, sizes = rows @ x @ columns.mT, set()
    for image, one in zip(x, found, strict=True):
        matches = []
        for high, wide in {(h, w) for h in range(18, 21) for w in range(28, 33)}:
            small = functional.interpolate(image[None], size=(high, wide), mode="bilinear")[0]
            for top, left in itertools.product(range(21 - high), range(33 - wide)):
                framed = functional.pad(small, (left, 32 - wide - left, top, 20 - high - top))
                if torch.allclose(framed, one, atol=1e-12):
                    matches.append((high, wide))
        assert len(matches) == 1
        sizes.add(matches[0])
    alone = (found == x).flatten(1).all(1).double().mean()
    assert 0.4 < alone < 0.75 and len(sizes) >= 4
    assert (shrinkings(Draws(0, torch.arange(9)), x[:9], chance=0.0, step=0)[0] == torch.eye(20)).all()


def test_momentum_follows_its_one_sample_twin(other_net, held_out):
    net = other_net.double()
    x, y, ids = held_out[0][:6].double(), held_out[1][:6], held_out[2][:6]
    seen = []

    class Silent(nn.Module):
        def forward(self, images):
            seen.append(images[:6])
            return 10.0 * functional.one_hot(padded_labels(len(images)), 10).double()

    def padded_labels(count):
        return torch.cat([y, y[-1:].expand(count - 6)]) if count > 6 else y[:count]

    transfer(Silent(), x, y, threat=LINF, seeds=Draws(0, ids), surrogate=net, steps=5, mi=1.0)
    for i in range(6):
        point, memory = x[i : i + 1], torch.zeros_like(x[:1])
        for _ in range(5):
            leaf = point.clone().requires_grad_(True)
            logits = net(leaf)[0]
            others = torch.cat([logits[: y[i]], logits[y[i] + 1 :]]).max()
            gradient = torch.autograd.grad(others - logits[y[i]], leaf)[0]
            memory = memory + gradient / gradient.abs().sum()
            point = torch.minimum(torch.maximum(point + 0.02 * memory.sign(), x[i] - 0.1), x[i] + 0.1).clamp(0, 1)
        assert torch.allclose(seen[-1][i], point[0], atol=1e-12, rtol=0)
    other_net.float()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("norm", ["linf(0.1)", "l2(1)"])
def test_company_order_and_batch_size_change_no_byte(net, other_net, held_out, kind, norm):
    x, y, ids = (part[:16] for part in held_out)
    threat = ThreatModel.parse(norm)

    def run(rows):
        given = {"threat": threat, "seeds": Draws(0, ids[rows]), "surrogate": other_net, "steps": 6}
        return transfer(net, x[rows], y[rows], **given, **kind)

    whole = run(torch.arange(16))
    assert (distance(x, whole, threat.norm) > 0.5 * threat.eps).all()
    assert (distance(x, whole, threat.norm) <= threat.eps + 1e-6).all()
    assert torch.equal(run(torch.arange(15, -1, -1)).flip(0), whole)
    assert torch.equal(torch.cat([run(rows) for rows in torch.arange(16).split(5)]), whole)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_breaks_the_surrogate_also_breaks_the_target(net, other_net, held_out, kind):
    x, y, ids = (part[:100] for part in held_out)
    victim, random = (Victim(net, x, y, threat=LINF, access="transfer") for _ in range(2))
    transfer(victim, x, y, threat=LINF, seeds=Draws(0, ids), surrogate=other_net, **kind)
    random.misclassified(random.ball.random(Draws(0, ids), "noise"), torch.arange(100))
    assert victim.broken.sum() >= random.broken.sum() + 20


def test_a_surrogate_of_another_class_count_is_refused(net, held_out):
    x, y, ids = (part[:4] for part in held_out)
    few = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    for kind in ({}, {"mi": 1.0}):
        with pytest.raises(ConfigError, match=r"the surrogate's outputs per image must be those of the model, \(10,\), got"):
            transfer(net, x, y, threat=LINF, seeds=Draws(0, ids), surrogate=few, **kind)
    with pytest.raises(AttackError, match="the surrogate must be a model"):
        transfer(net, x, y, threat=LINF, seeds=Draws(0, ids))


@pytest.mark.parametrize(
    ("kind", "text"),
    [({"mi": -1.0}, "mi and di"), ({"di": 1.5}, "mi and di"), ({"ti": 4}, "ti must be"), ({"ti": -1}, "ti must be"),
     ({"mi": 1.0, "steps": 0}, "steps must be at least 1, got 0")],
)  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(net, other_net, held_out, kind, text):
    x, y, ids = (part[:2] for part in held_out)
    with pytest.raises(ConfigError, match=text):
        transfer(net, x, y, threat=LINF, seeds=Draws(0, ids), surrogate=other_net, **kind)
