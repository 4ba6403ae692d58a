"""Pruning and simulated quantisation on toy nets."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as theirs

from robench.compress import TABLE
from robench.compress._identity import identity
from robench.compress._int8 import Quantised, int8
from robench.compress._prune import prune
from robench.errors import ConfigError, ModelError
from robench.ops.random import Draws
from robench.registry import Table


def fresh(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 3),
        )  # fmt: skip


@pytest.fixture(scope="module")
def toy():
    draws = Draws(0, torch.arange(256))
    y = draws.integers("y", (1,), 3)[:, 0]
    x = 0.5 * draws.uniform("noise", (1, 8, 8))
    for i in range(256):
        x[i, :, :, 2 * int(y[i]) + 1] += 0.4
    net = fresh()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), x, y


def state(net):
    return copy.deepcopy(net.state_dict())


def same(before, net):
    return all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def gradient(net, x, y):
    z = x.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(net(z), y, reduction="sum"), z)[0].flatten(1)


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_prune_is_torchs_global_one_with_the_exact_share(toy, amount):
    net = toy[0]
    before, pruned, twin = state(net), prune(net, amount=amount), copy.deepcopy(net)
    layers = [m for m in twin if isinstance(m, nn.Conv2d | nn.Linear)]
    theirs.global_unstructured([(m, "weight") for m in layers], theirs.L1Unstructured, amount=amount)
    ours = [m for m in pruned if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, layers, strict=True))
    total = sum(m.weight.numel() for m in ours)
    assert sum(int((m.weight == 0).sum()) for m in ours) == round(amount * total)
    assert same(before, net) and list(pruned.state_dict()) == list(before)


def test_prune_counts_a_tied_weight_once_and_plain_parametrisations():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert int((prune(tied, amount=0.25)[1].weight == 0).sum()) == 4
    spectral = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))).eval()
    assert int((prune(spectral)[0].weight == 0).sum()) == 8


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_weights_lie_on_a_grid_per_channel(toy, bits):
    net, x, _ = toy
    top = 2 ** (bits - 1) - 1
    before, twin = state(net), int8(net, calibration=x[:64], bits=bits)
    layers = [m for m in twin.modules() if isinstance(m, Quantised)]
    assert len(layers) == 3 and same(before, net)
    for wrapped, original in zip(layers, [net[0], net[3], net[6]], strict=True):
        weight, source = wrapped.layer.weight.detach().flatten(1), original.weight.detach().flatten(1)
        step = source.abs().amax(1, keepdim=True) / top
        levels = weight / step
        assert (levels - levels.round()).abs().max() < 1e-3 and levels.abs().max() < top + 1e-3
        assert ((weight - source).abs() <= step / 2 + 1e-6).all()


def test_int8_inputs_lie_on_at_most_256_levels_that_hold_zero(toy):
    net, x, _ = toy
    twin = int8(net, calibration=x)
    seen = []
    twin[3].layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    twin(x)
    levels = seen[0].unique()
    assert 16 < len(levels) <= 256 and 0 in levels
    assert float(twin[0].scale) == pytest.approx(float(x.max()) / 255, rel=0.02) and int(twin[0].zero) == 0


def test_int8_agrees_with_the_float_model_and_passes_a_gradient(toy):
    net, x, y = toy
    twin = int8(net, calibration=x[:64])
    assert (twin(x).argmax(1) == net(x).argmax(1)).float().mean() > 0.98
    ours, float_one = gradient(twin, x, y), gradient(net, x, y)
    assert (ours.norm(dim=1) > 0).all()
    unit = [g / g.norm(dim=1, keepdim=True) for g in (ours.double(), float_one.double())]  # gradients go down to 1e-10
    assert (unit[0] * unit[1]).sum(1).mean() > 0.9
    assert torch.equal(int8(net, calibration=x[:64])(x), twin(x))


def test_int8_of_odd_models():
    x = Draws(0, torch.arange(3)).uniform("x", (1, 2, 2))
    assert isinstance(int8(nn.Conv2d(1, 2, 1), calibration=x), Quantised)
    layer = nn.Linear(4, 4)
    shared = int8(nn.Sequential(nn.Flatten(), layer, layer), calibration=x)
    assert shared[1] is shared[2]
    double = int8(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double(), calibration=x.double())
    assert double(x.double()).dtype == torch.float64
    dark = int8(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), calibration=torch.zeros(1, 1, 2, 2))
    assert dark(x).isfinite().all()


def test_identity_is_an_equal_copy(toy):
    net, x, _ = toy
    copied = identity(net)
    assert copied is not net and torch.equal(copied(x), net(x))


def test_refusals(toy):
    net, x, _ = toy
    for amount in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="amount must be in"):
            prune(net, amount=amount)
    with pytest.raises(ConfigError, match="bits must be"):
        int8(net, calibration=x, bits=9)
    with pytest.raises(ConfigError, match="calibration must be"):
        int8(net, calibration=x[:0])
    with pytest.raises(ModelError, match="finite"):
        int8(net, calibration=x * float("nan"))
    for call in (lambda: prune(nn.Flatten()), lambda: int8(nn.Flatten(), calibration=x)):
        with pytest.raises(ModelError, match="Conv2d or Linear"):
            call()


def test_facts_say_what_is_simulated():
    table = Table("compressions", TABLE)
    simulated = {name for name in table if table[name].facts["simulated"]}
    assert simulated == {"int8", "int8_weights", "int4_weights"}
    assert {name for name in table if table[name].facts.get("trainable")} == {
        "float", "prune", "prune_2_4", "prune_channels", "finetune", "distill", "prune_gradually",
    }  # fmt: skip
    assert table["int8"].facts["needs"] == "calibration"
    assert dict(table["int8"].parameters) == {"bits": 8}
