"""Training on what pruning left, and students."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robench.compress._prune import prune
from robench.compress._semi_structured import prune_2_4, two_of_four
from robench.compress._structured import prune_channels
from robench.defenses.training import train
from robench.defenses.tuning import Lesson, cubic, distill, finetune, prune_gradually
from robench.errors import ConfigError, ModelError
from robench.models import fresh

G = torch.Generator().manual_seed(0)
Y = torch.randint(0, 3, (50,), generator=G)
X = (torch.rand(50, 1, 8, 8, generator=G) * 0.4 + 0.3 * Y[:, None, None, None]).clamp(0, 1)


class Source:
    ids, labels = torch.arange(50), Y

    def images(self, rows):
        return X[rows]


def net(seed=0):
    model = fresh("small_cnn(num_classes=3, width=4, size=8)", seed=seed)
    train(model, X, Y, steps=20, seed=0, batch_size=16)
    return model


def lesson(teacher=None, checkpoint=None):
    return Lesson(Source(), teacher or nn.Flatten(), checkpoint)


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_pruned_weights_stay_zero_and_the_others_move():
    pruned = prune(net(), amount=0.8)
    tuned = copy.deepcopy(pruned)
    report = finetune(tuned, lesson=lesson(), steps=30, batch_size=16)
    for before, after in zip(layers(pruned), layers(tuned), strict=True):
        assert torch.equal(before.weight == 0, after.weight == 0)
        kept = before.weight != 0
        assert (before.weight[kept] != after.weight[kept]).any()
    assert report.steps == 30 and report.n == 50 and not tuned.training
    assert not any(p._backward_hooks for p in tuned.parameters())


def test_two_of_four_stays_two_of_four():
    tuned = prune_2_4(net())
    finetune(tuned, lesson=lesson(), steps=10, batch_size=16)
    for layer in layers(tuned)[1:]:
        assert torch.equal(layer.weight != 0, two_of_four(layer.weight) & (layer.weight != 0))
        assert (layer.weight == 0).float().mean() == 0.5


def test_it_is_projected_training_on_the_masked_gradients():
    """AdamW by hand on the weights that are left, of a linear model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight[:, ::2] = 0.0
    twin, plain = copy.deepcopy(model), copy.deepcopy(model)
    finetune(model, lesson=lesson(), steps=5, batch_size=50, lr=0.01)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(twin[1].weight[:, 1::2].detach().clone()),
                nn.Parameter(twin[1].bias.clone()),
            )

        def forward(self, x):
            return nn.functional.linear(x.flatten(1)[:, 1::2], self.weight, self.bias)

    half = Half()
    train(half, X, Y, steps=5, seed=0, batch_size=50, lr=0.01)
    torch.testing.assert_close(model[1].weight[:, 1::2], half.weight, rtol=1e-5, atol=1e-6)
    train(plain, X, Y, steps=5, seed=0, batch_size=50, lr=0.01)
    assert not torch.allclose(plain[1].weight, model[1].weight)


def test_a_dense_network_is_trained_as_ever():
    model, twin = net(), net()
    finetune(model, lesson=lesson(), steps=6, batch_size=16, lr=1e-3, seed=4)
    train(twin, X, Y, steps=6, seed=4, batch_size=16, lr=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole, part = prune(net(), amount=0.7), prune(net(), amount=0.7)
    finetune(whole, lesson=lesson(), steps=60, batch_size=16)
    checkpoint = tmp_path / "c.pt"
    original = torch.optim.AdamW.step
    calls = []

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 53:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune(part, lesson=lesson(checkpoint=checkpoint), steps=60, batch_size=16)
    monkeypatch.undo()
    again = prune(net(), amount=0.7)
    finetune(again, lesson=lesson(checkpoint=checkpoint), steps=60, batch_size=16)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_fewer_channels_can_be_trained_on():
    small = prune_channels(net(), amount=0.5)
    before = train(copy.deepcopy(small), X, Y, steps=0, seed=0).train_accuracy
    assert finetune(small, lesson=lesson(), steps=60, batch_size=16, lr=5e-3).train_accuracy >= before


def test_a_student_comes_nearer_to_its_teacher_than_its_control():
    teacher = net(1).eval()
    gaps = {}
    for alpha in (0.0, 1.0):
        student = fresh("small_cnn(num_classes=3, width=2, size=8)", seed=3)
        report = distill(student, lesson=lesson(teacher), alpha=alpha, steps=80)
        gap = teacher(X).log_softmax(1).exp() * (teacher(X).log_softmax(1) - student(X).log_softmax(1))
        gaps[alpha] = float(gap.sum(1).mean().detach())
        assert report.steps == 80 and not student.training
    assert gaps[1.0] < gaps[0.0]


def test_a_student_without_weight_on_its_teacher_is_trained_as_ever():
    student, twin = (fresh("mlp(num_classes=3, hidden=4, size=8)", seed=3) for _ in range(2))
    distill(student, lesson=lesson(net(1).eval()), alpha=0.0, steps=7, seed=2)
    train(twin, X, Y, steps=7, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), twin.parameters(), strict=True))


def test_gradual_pruning_follows_its_schedule_and_ends_exactly():
    assert [cubic(p) for p in (0.0, 0.5, 1.0, 2.0)] == [0.0, 0.875, 1.0, 1.0]
    model, seen = net(), []
    total = sum(m.weight.numel() for m in layers(model))
    hook = model.register_forward_pre_hook(
        lambda m, x: seen.append(sum(int((layer.weight == 0).sum()) for layer in layers(m))) if m.training else None
    )
    report = prune_gradually(model, lesson=lesson(), amount=0.6, steps=20, batch_size=16)
    hook.remove()
    assert seen == [round(0.6 * total * (1 - (1 - min(step / 15, 1)) ** 3)) for step in range(20)]
    assert sum(int((m.weight == 0).sum()) for m in layers(model)) == round(0.6 * total)
    assert report.steps == 20 and report.train_accuracy == (model(X).argmax(1) == Y).double().mean().item()


def test_gradual_pruning_of_nothing_is_plain_training_and_repeats():
    model, twin = net(), net()
    prune_gradually(model, lesson=lesson(), amount=0.0, steps=5, batch_size=16)
    train(twin, X, Y, steps=5, seed=0, batch_size=16, lr=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    one, other = (net() for _ in range(2))
    for each in (one, other):
        prune_gradually(each, lesson=lesson(), amount=0.5, steps=9, batch_size=16)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ConfigError, match="amount must be in"):
        prune_gradually(net(), lesson=lesson(), amount=1.5)
    with pytest.raises(ModelError, match="Conv2d or Linear"):
        prune_gradually(nn.Flatten(), lesson=lesson())
