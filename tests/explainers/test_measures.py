"""Explainers and their measures against closed forms, Captum and planted failures."""

import math
import warnings
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from robench import catalog
from robench.data._digits import digits
from robench.devices import exact_arithmetic
from robench.errors import ConfigError, NoGradientError
from robench.explainers import TABLE, measures
from robench.explainers._batches import blurred
from robench.explainers._control import random_map
from robench.explainers._gradient import integrated_gradients, saliency
from robench.explainers._occlusion import occlusion
from robench.inference import untouched
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.runner import run_cell
from robench.spec import Artifact, Cell, Context, Ref
from robench.zoo import load

SIDE = 16


class Flat(nn.Module):
    """Linear logits of an image with known weights (K, C, H, W)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def images(n=6, channels=1, side=SIDE):
    return Draws(3, torch.arange(n)).uniform("x", (channels, side, side))


def flat(channels=1, side=SIDE):
    return Flat(Draws(5, torch.arange(3)).normal("w", (channels, side, side)))


@pytest.fixture(scope="module")
def toy():
    """A net trained to name the fine texture of a small square, which blurring wipes out, with held-out images."""
    n = 384
    draws = Draws(0, torch.arange(n))
    y, place = draws.integers("y", (1,), 3)[:, 0], draws.integers("place", (2,), SIDE - 6)
    x = 0.4 + 0.2 * draws.uniform("noise", (1, SIDE, SIDE))
    line = torch.tensor([0.0, 1.0]).repeat(3)
    textures = [line[:, None].expand(6, 6), line.expand(6, 6), (line[:, None] - line).abs()]
    for i, (top, left) in enumerate(place.tolist()):
        x[i, 0, top : top + 6, left : left + 6] = textures[int(y[i])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    optimiser = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[:320]), y[:320]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net.eval(), x[320:], y[320:]


def test_gradient_explainers_of_a_linear_model_are_its_weights():
    net, x, target = flat(2), images(channels=2), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = net.weight.detach()[target]
    assert torch.allclose(saliency(net, x, target, draws=None), weight.abs().sum(1), atol=1e-6)
    for kind, start in (("black", torch.zeros_like(x)), ("blur", blurred(x))):
        maps = integrated_gradients(net, x, target, draws=None, steps=3, baseline=kind)
        assert torch.allclose(maps, (weight * (x - start)).sum(1), atol=1e-5)


def test_occlusion_matches_a_loop_over_windows():
    net, x, target = flat(2), images(2, 2), torch.tensor([1, 2])
    total, count, base = torch.zeros(2, SIDE, SIDE), torch.zeros(SIDE, SIDE), blurred(x)
    clean = net(x).gather(1, target[:, None])[:, 0]
    for top in range(0, SIDE - 7, 4):
        for left in range(0, SIDE - 7, 4):
            covered, area = x.clone(), (slice(top, top + 8), slice(left, left + 8))
            covered[:, :, *area] = base[:, :, *area]
            total[:, *area] += (clean - net(covered).gather(1, target[:, None])[:, 0])[:, None, None].detach()
            count[area] += 1
    assert torch.allclose(occlusion(net, x, target, draws=None), total / count, atol=1e-4)


def test_integrated_gradients_are_complete_on_a_trained_net(toy):
    net, x, _ = toy
    target = net(x).argmax(1)
    maps = integrated_gradients(net, x, target, draws=None, steps=64)
    drop = (net(x) - net(blurred(x))).gather(1, target[:, None])[:, 0].detach()
    assert ((maps.sum((1, 2)) - drop).abs() / drop.abs().clamp_min(1)).max() < 0.05


@pytest.mark.parametrize("name", sorted(TABLE))
def test_maps_have_the_contract_and_do_not_depend_on_company(name, toy):
    from robench.registry import Table

    net, x, _ = toy
    explain, target, draws = Table("explainers", TABLE)[name].load(), net(x).argmax(1), Draws(1, torch.arange(len(x)))
    whole = explain(net, x, target, draws=draws)
    assert whole.shape == (len(x), SIDE, SIDE) and whole.dtype == torch.float32 and not whole.requires_grad
    part = explain(net, x[5:8], target[5:8], draws=draws[5:8])
    assert torch.allclose(part, whole[5:8], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_insertion_and_deletion_match_a_slow_twin(toy):
    net, x, y = toy
    x, y, maps = x[:3, :, :14, :], y[:3], torch.randn(3, 14, SIDE, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.ZeroPad2d((0, 0, 0, 2)), net)
    found = measures.insertion_deletion(net, x, y, maps, steps=5, patch=4)
    for i in range(3):
        areas = [(slice(t, t + 4), slice(s, s + 4)) for t in range(0, 14, 4) for s in range(0, SIDE, 4)]
        areas.sort(key=lambda a: -float(maps[i][a].mean()))
        for curve, (first, second) in zip(found, ((blurred(x)[i], x[i]), (x[i], blurred(x)[i])), strict=True):
            points = []
            for k in range(6):
                image = first.clone()
                for area in areas[: math.floor(k * len(areas) / 5 + 0.5)]:
                    image[:, *area] = second[:, *area]
                points.append(net(image[None]).double().softmax(1)[0, y[i]].item())
            assert curve[i].item() == pytest.approx((sum(points) - (points[0] + points[-1]) / 2) / 5, abs=1e-6)


def test_infidelity_is_captums_normalised_one_over_the_mean_squared_reaction(toy):
    from captum.metrics import infidelity

    net, x, y = toy
    x, y, draws = x[:5], y[:5], Draws(7, torch.arange(5))
    maps = integrated_gradients(net, x, y, draws=None)
    steps = [0.1 * draws.normal("infidelity", (1, SIDE, SIDE), step=s) for s in range(16)]
    noise, many = torch.stack(steps, 1).flatten(0, 1), x.repeat_interleave(16, 0)
    reaction = (net(many) - net(many - noise)).gather(1, y.repeat_interleave(16)[:, None])
    theirs = infidelity(net, lambda z: (noise, z - noise), x, maps[:, None], target=y, n_perturb_samples=16, normalize=True)
    ours = measures.infidelity(net, x, y, maps, draws=draws)
    assert torch.allclose(ours.float(), theirs / reaction.view(5, 16).pow(2).mean(1).detach(), atol=1e-3)


def test_infidelity_ends():
    net, x, target = flat(3), images(4, 3), torch.tensor([0, 1, 2, 0])
    draws = Draws(0, torch.arange(4))
    exact = net.weight.detach()[target].sum(1)
    assert measures.infidelity(net, x, target, 5 * exact, draws=draws).max() < 1e-6
    assert torch.equal(measures.infidelity(net, x, target, 0 * exact, draws=draws), torch.ones(4, dtype=torch.float64))
    still = Flat(torch.zeros(3, 3, SIDE, SIDE))
    assert torch.equal(measures.infidelity(still, x, target, exact, draws=draws), torch.ones(4, dtype=torch.float64))


def test_max_sensitivity_is_captums_on_the_same_neighbours(toy):
    from captum.metrics import sensitivity_max

    net, x, y = toy
    x, y, draws = x[:5], y[:5], Draws(2, torch.arange(5))
    steps = [0.02 * (2 * draws.uniform("sensitivity", (1, SIDE, SIDE), step=s) - 1) for s in range(4)]
    noise = torch.stack(steps, 1).flatten(0, 1)

    def captums(inputs):
        z = inputs[0] if isinstance(inputs, tuple) else inputs
        return (saliency(net, z, y.repeat_interleave(len(z) // 5), draws=None)[:, None],)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sensitivity_max(captums, x, perturb_func=lambda z: z + noise, n_perturb_samples=4)
    ours = measures.max_sensitivity(partial(saliency, net, target=y, draws=None), x, draws=draws)
    assert torch.allclose(ours.float(), theirs.float(), atol=1e-4) and ours.min() > 0


def test_rows_and_the_planted_failure(toy):
    net, x, y = toy
    names = ["saliency", "integrated_gradients(steps=8)", "occlusion", "random_map"]
    rows = measures.explain_rows(net, x, y, torch.arange(len(x)) + 100, explainers=names, seed=4)
    assert len(rows) == 4 * len(x) and [r["sample"] for r in rows[: len(x)]] == list(range(100, 100 + len(x)))
    assert list(rows[0]) == [
        "sample", "label", "explainer", "insertion", "deletion", "gap", "gap_random", "infidelity", "max_sensitivity",
        "degenerate",
    ]  # fmt: skip
    gap = {n: sum(r["gap"] - r["gap_random"] for r in rows if r["explainer"] == n) / len(x) for n in names}
    assert abs(gap["random_map"]) < 0.06
    assert all(gap[name] > 0.15 for name in names[:3]), gap
    assert not any(r["degenerate"] for r in rows)
    part = measures.explain_rows(net, x[9:10], y[9:10], torch.tensor([109]), explainers=["saliency"], seed=4)
    numbers = [k for k, v in part[0].items() if isinstance(v, float)]
    assert [part[0][k] for k in numbers] == pytest.approx([rows[9][k] for k in numbers], rel=1e-4, abs=1e-5)


def test_degenerate_maps_are_scored_as_the_control_and_kept():
    x, y = images(4), torch.zeros(4, dtype=torch.int64)
    still = Flat(torch.zeros(3, 1, SIDE, SIDE))
    for row in measures.explain_rows(still, x, y, torch.arange(4), explainers=["saliency"], seed=0):
        assert row["degenerate"] and row["gap"] == row["gap_random"]
        assert row["infidelity"] == 1 and row["max_sensitivity"] == measures.UNRELATED
    maps = torch.ones(3, 2, 2)
    maps[1, 0, 0], maps[2, 0, 0] = math.nan, 2
    assert measures.degenerate(maps).tolist() == [True, True, False]


def test_blur_is_a_gaussian_convolution_with_repeated_edges():
    x = images(2, 3, 32)
    places = torch.arange(32)
    offsets = torch.arange(-9, 10)
    shares = torch.exp(-(offsets.double() ** 2) / (2 * 3.0**2))
    mix = torch.zeros(32, 32, dtype=torch.float64)
    for offset, share in zip(offsets, shares / shares.sum(), strict=True):
        mix[places, (places + offset).clamp(0, 31)] += share
    assert torch.allclose(blurred(x).double(), mix @ x.double() @ mix.T, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 257])
def test_row_sums_are_the_exact_sums_up_to_rounding(size):
    values = Draws(0, torch.arange(5)).normal("v", (size,))
    for total, row in zip(row_sums(values).tolist(), values.tolist(), strict=True):
        assert total == pytest.approx(math.fsum(row), rel=1e-12, abs=1e-12)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("digits-standard", "digits-vit")]


@pytest.mark.parametrize("name", ["digits-mlp", *SLOW])
def test_rows_are_the_same_to_the_bit_in_any_company(name):
    test, net = digits(split="test"), load(name)
    options = {"explainers": ["saliency", "integrated_gradients", "occlusion", "random_map"], "seed": 0}

    def rows(parts):
        parts = [test.take(p) for p in parts]
        found = [row for p in parts for row in measures.explain_rows(net, p.images(), p.labels, p.ids, **options)]
        return sorted(found, key=lambda row: (row["explainer"], row["sample"]))

    with untouched(net), exact_arithmetic(1):
        together = rows([torch.arange(9)])
        assert len(together) == 4 * 9
        for parts in (torch.arange(9).split(4), [torch.arange(i, 9, 2) for i in range(2)], [torch.arange(9).flip(0)]):
            assert rows(parts) == together
        assert rows([torch.tensor([3])]) == [row for row in together if row["sample"] == int(test.ids[3])]


@pytest.mark.parametrize(("batch_size", "shards"), [(7, 1), (64, 1), (7, 3)])
def test_a_cells_rows_are_the_same_at_any_batch_size_and_sharding(tmp_path, batch_size, shards):
    model = Artifact("model", Ref.of("zoo", name="digits-mlp"))
    data = Artifact("data", catalog.BUILDERS.resolve(Ref.of("images", source="digits", limit=20)))

    def rows(batch_size, count):
        context = Context(str(tmp_path), batch_size=batch_size)
        ref = catalog.SCENARIOS.resolve("explanation(explainers=('saliency', 'occlusion'))")
        cells = [Cell(ref, "2", model, data, shard=(i, count)) for i in range(count)]
        frame = pd.concat([run_cell(cell, context) for cell in cells])
        return frame.sort_values(["explainer", "sample"], ignore_index=True)

    one = rows(256, 1)
    assert len(one) == 2 * 20
    pd.testing.assert_frame_equal(rows(batch_size, shards), one, check_exact=True)


def test_refusals(toy):
    net, x, y = toy
    with pytest.raises(NoGradientError, match="input gradient must be"):
        saliency(nn.Sequential(Detach(), net), x, y, draws=None)
    occlusion(nn.Sequential(Detach(), net), x[:2], y[:2], draws=None)
    for call in (
        partial(random_map, net, x, y, draws=None), partial(integrated_gradients, net, x, y, draws=None, steps=0),
        partial(occlusion, net, x, y, draws=None, window=2), partial(occlusion, net, x, y, draws=None, baseline="grey"),
        partial(measures.explain_rows, net, x, y, y, explainers=["salience"], seed=0),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="must be"):
            call()


class Detach(nn.Module):
    """Cuts the graph, as an integer kernel does."""

    def forward(self, x):
        return x.detach()
