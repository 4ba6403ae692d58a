"""Pruning of single weights, of two in four, and of whole channels."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as theirs

from robench.compress._prune import prune
from robench.compress._semi_structured import prune_2_4, two_of_four
from robench.compress._structured import prune_channels
from robench.compress.notes import noted
from robench.efficiency import macs
from robench.errors import ConfigError, ModelError
from robench.models import Normalised, fresh

X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2),
            nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 20), nn.BatchNorm1d(20), nn.GELU(), nn.Linear(20, 5),
        )  # fmt: skip
        made(X)
    return made.eval()


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def zeros(model):
    return [int((m.weight == 0).sum()) for m in layers(model)]


@pytest.mark.parametrize("amount", [0.0, 0.35, 0.9, 1.0])
def test_layerwise_pruning_is_torchs_of_every_layer(amount):
    pruned, twin = prune(net(), amount=amount, scope="layer"), net()
    for layer in layers(twin):
        theirs.l1_unstructured(layer, "weight", amount=amount)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(pruned), layers(twin), strict=True))
    assert zeros(pruned) == [round(amount * m.weight.numel()) for m in layers(pruned)]


def test_random_pruning_takes_the_same_share_without_looking_at_the_weights():
    for scope in ("global", "layer"):
        one = prune(net(), amount=0.4, criterion="random", scope=scope)
        total = sum(m.weight.numel() for m in layers(one))
        assert sum(zeros(one)) == pytest.approx(0.4 * total, abs=2)
        again, other = (prune(net(), amount=0.4, criterion="random", scope=scope, seed=s) for s in (0, 1))
        assert torch.equal(one(X), again(X)) and not torch.equal(one(X), other(X))
        smallest = prune(net(), amount=0.4, scope=scope)
        left = [
            float(torch.cat([m.weight.detach().flatten() for m in layers(n)]).abs().sum()) for n in (net(), one, smallest)
        ]
        assert left[1] == pytest.approx(0.6 * left[0], rel=0.1) and left[2] > 1.2 * left[1]


def test_pruning_refuses_unknown_words():
    for change in ({"scope": "model"}, {"criterion": "norm"}):
        with pytest.raises(ConfigError, match="must be one of"):
            prune(net(), **change)


def slow_2_4(weight):
    """Two of four by a loop."""
    kept = torch.zeros_like(weight, dtype=torch.bool)
    moved = weight.movedim(1, -1).reshape(-1, weight.shape[1])
    marks = kept.movedim(1, -1).reshape(-1, weight.shape[1]).clone()
    for i, row in enumerate(moved.tolist()):
        for start in range(0, len(row), 4):
            best = sorted(range(start, start + 4), key=lambda j: (-abs(row[j]), j))[:2]
            marks[i, best] = True
    return marks.reshape(weight.movedim(1, -1).shape).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 3, 3), (2, 12, 1, 2)])
def test_two_of_four_is_the_loop_and_breaks_ties_by_place(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    assert torch.equal(two_of_four(weight), slow_2_4(weight))
    assert two_of_four(torch.ones(1, 4)).tolist() == [[True, True, False, False]]


def test_two_of_four_is_torchs_sparsifier_on_linear_layers():
    from torch.ao.pruning import WeightNormSparsifier

    twin = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    ours = prune_2_4(twin)
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(twin, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    assert torch.equal(ours[0].weight, twin[0].weight) and torch.equal(ours[2].weight, twin[2].weight)
    assert noted(ours) == ()


def test_layers_that_do_not_divide_are_left_and_named():
    model = net()
    before = copy.deepcopy(model.state_dict())
    pruned = prune_2_4(model)
    assert zeros(pruned) == [0, 8 * 12 * 9 // 2, 108 * 20 // 2, 50]
    assert noted(pruned) == ("2:4 left 1 of 4 layers dense (input dimension no multiple of 4): 0",)
    assert noted(copy.deepcopy(pruned)) == noted(pruned) and noted(model) == ()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    with pytest.raises(ModelError, match="input dimensions of 4k"):
        prune_2_4(nn.Linear(3, 8))


def silenced(model, amount):
    """The model with the channels that would go made silent: of weight 0 and shift 0."""
    model = copy.deepcopy(model)
    chain = [(model[0], model[1], model[4]), (model[4], None, model[7]), (model[7], model[8], model[10])]
    for producer, norm, _ in chain:
        gone = producer.weight.detach().flatten(1).norm(dim=1).argsort()[: round(amount * len(producer.weight))]
        with torch.no_grad():
            for p in (producer.weight, producer.bias, *([norm.weight, norm.bias] if norm else [])):
                p[gone] = 0.0
    return model


def test_taking_out_silent_channels_leaves_the_outputs():
    quiet = silenced(net(), 0.5)
    smaller = prune_channels(quiet, amount=0.5)
    assert [tuple(m.weight.shape) for m in layers(smaller)] == [(4, 3, 3, 3), (6, 4, 3, 3), (10, 54), (5, 10)]
    torch.testing.assert_close(smaller(X), quiet(X), rtol=1e-5, atol=1e-6)
    assert smaller[1].num_features == 4 and smaller[4].in_channels == 4 and smaller[7].in_features == 54


def test_taking_out_channels_has_the_size_that_torch_pruning_has():
    library = pytest.importorskip("torch_pruning")
    twin = net()
    importance = library.importance.MagnitudeImportance(p=2, group_reduction="first")
    pruner = library.pruner.MagnitudePruner(twin, X[:1], importance=importance, pruning_ratio=0.5, ignored_layers=[twin[10]])
    pruner.step()
    ours = prune_channels(net(), amount=0.5)
    assert [m.weight.shape for m in layers(ours)] == [m.weight.shape for m in layers(twin)]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in twin.parameters())
    assert macs(ours, X[:1]) == macs(twin, X[:1])
    first = net()[0].weight.flatten(1).norm(dim=1).argsort(descending=True)[:4].sort().values
    assert torch.equal(ours[0].weight, net()[0].weight[first])
    assert torch.equal(twin[0].weight, ours[0].weight)


@pytest.mark.parametrize(
    ("arch", "share"),
    [
        ("small_cnn(in_channels=3, size=16)", 0.5),
        ("resnet18(in_channels=3, width=4)", 0.6),
        ("mlp(in_channels=3, size=16)", 0.6),
        ("vit(in_channels=3, size=16)", 0.95),
        ("wrn(in_channels=3, depth=10, width=1)", 0.7),
    ],
)
def test_every_architecture_gets_smaller(arch, share):
    model = Normalised(fresh(arch, seed=0), mean=(0.5,), std=(0.2,)).eval()
    before = copy.deepcopy(model.state_dict())
    smaller = prune_channels(model, amount=0.5)
    assert smaller(X).shape == model(X).shape
    assert macs(smaller, X[:1]) < share * macs(model, X[:1])
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    torch.testing.assert_close(prune_channels(model, amount=0.0)(X), model(X))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        y = self.a(x)
        return self.head((y + self.b(y.relu())).mean((2, 3)))


class Switch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_channels_that_are_added_or_shared_stay():
    with pytest.raises(ModelError, match="channels between two layers only"):
        prune_channels(Branch())
    layer = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(ModelError, match="channels between two layers only"):
        prune_channels(nn.Sequential(layer, nn.ReLU(), layer))
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6))
    with pytest.raises(ModelError, match="channels between two layers only"):
        prune_channels(grouped)
    with pytest.raises(ModelError, match="traceable by torch"):
        prune_channels(Switch())
    for amount in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="amount must be in"):
            prune_channels(net(), amount=amount)


def test_at_least_one_channel_stays():
    assert [len(m.weight) for m in layers(prune_channels(net(), amount=0.999))] == [1, 1, 1, 5]
