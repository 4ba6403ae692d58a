import math

import torch

from robench.ops.losses import cross_entropy, margin, negative_margin


def test_cross_entropy_in_closed_form_per_sample():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    found = cross_entropy(logits, torch.tensor([1, 0]))
    assert torch.allclose(found, torch.tensor([-math.log(0.75), math.log(2)]))


def test_margin_equals_a_slow_twin():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    slow = [row[k] - max(v for j, v in enumerate(row) if j != k) for row, k in zip(logits.tolist(), y.tolist(), strict=True)]
    assert torch.allclose(margin(logits, y), torch.tensor(slow))
    assert torch.equal(negative_margin(logits, y), -margin(logits, y))


def test_all_negative_logits_do_not_hide_behind_a_zero_mask():
    assert margin(torch.tensor([[-5.0, -2.0]]), torch.tensor([1])).item() == 3.0


def test_a_tie_is_a_margin_of_zero_and_two_classes_work():
    assert margin(torch.tensor([[1.0, 1.0]]), torch.tensor([0])).item() == 0.0
    assert margin(torch.tensor([[2.0, -1.0]]), torch.tensor([1])).item() == -3.0


def test_the_margin_has_a_gradient_into_label_and_rival_only():
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    margin(logits, torch.tensor([0])).sum().backward()
    assert torch.equal(logits.grad, torch.tensor([[1.0, 0.0, -1.0]]))
