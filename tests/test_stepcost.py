"""The cost of a gradient step: no tool stops early, every tool's passes are counted, and ratios are over the floor."""

from __future__ import annotations

import torch

from robench import stepcost


def test_the_floor_is_the_gradient_of_the_summed_loss():
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    x, y = torch.tensor([[0.2, 0.4], [0.9, 0.1]]), torch.tensor([0, 1])
    share = torch.softmax(x @ weight, 1) - torch.eye(2)[y]
    found = stepcost.floor(torch.nn.Sequential(Times(weight)), x, y)
    assert torch.allclose(found, share @ weight.T)


class Times(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight


def test_every_step_is_taken_on_a_full_batch():
    tools = ("robench-pgd", "robench-climb", "robench-apgd")
    table = stepcost.measure("small_cnn(width=4)", (1, 32, 32), 4, norm="l2", tools=tools, repeats=1).set_index("tool")
    assert table["gradients"].to_dict() == {"robench-pgd": 40, "robench-climb": 41, "robench-apgd": 40}
    assert (table["forwards"] == 41).all()
    assert (table[["lowest", "median", "ms"]] > 0).all(axis=None)


def test_a_call_on_a_plain_module_is_measured_with_its_trial_on_images_of_either_layout(monkeypatch):
    seen = []
    monkeypatch.setattr(stepcost, "floor", lambda model, x, y: seen.append(x.is_contiguous()))
    for channels_last in (False, True):
        told = {"tools": ("robench.attacks.pgd",), "repeats": 1, "channels_last": channels_last}
        table = stepcost.measure("small_cnn(width=4, in_channels=3)", (3, 32, 32), 64, **told)
        assert table["gradients"][0] == 40 and table["forwards"][0] > 41
    halves = [all(seen[k : k + 20]) for k in range(0, len(seen), 20)]
    assert halves == [True, False] * (len(halves) // 2) and len(halves) == 8  # before and after each tool, both layouts


def test_the_floor_is_that_of_the_faster_layout(monkeypatch):
    took = iter([4.0, 3.0, 2.0, 6.0])
    monkeypatch.setattr(stepcost, "_seconds", lambda work: next(took))
    x = torch.rand(2, 3, 4, 4)
    assert [stepcost._floors(torch.nn.Identity(), x, torch.zeros(2)) for _ in range(2)] == [3 / 20, 2 / 20]


def test_only_installed_peers_are_run():
    names = stepcost.installed(["robench-pgd", "torchattacks"])
    assert names[0] == "robench-pgd" and set(names) <= {"robench-pgd", "torchattacks"}
