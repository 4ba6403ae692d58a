"""Scenarios: one row per sample, models left alone, memory that runs out, failures that never count as robust."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robench.builders.predictions import forward_pass
from robench.data.dataset import Dataset
from robench.errors import ModelError
from robench.scenarios.clean import clean as clean_rows
from robench.scenarios.evasion import attack_hold, evasion
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.scenarios.sentinel import sentinel
from robench.spec import Artifact, Cell, Context, DatasetSpec, Ref, ThreatModel
from robench.workshop import Model

N, K = 23, 3


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.sin(torch.arange(K * 16.0)).reshape(K, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


X = 0.5 + 0.4 * torch.sin(torch.arange(N * 16.0) * 1.7 + torch.arange(N * 16.0) // 16).reshape(N, 1, 4, 4)
Y = Linear()(X).argmax(1)
Y[5] = (Y[5] + 1) % K


def objects(net: nn.Module, *, batch_size: int = 256, shard: tuple[int, int] = (0, 1)) -> Objects:
    spec = DatasetSpec("memory", ("a", "b", "c"), (1, 4, 4), ("test",))
    data = Dataset(spec, torch.arange(N) + 100, Y, X.__getitem__)
    nothing = Artifact("model", Ref("memory"))
    cell = Cell(Ref("x"), "1", nothing, nothing, shard=shard)
    return Objects(cell, Context("", batch_size=batch_size), Model(net, {}), data)


class Predicted(Objects):
    """Objects whose further artifacts are the predictions of their own model."""

    def extra(self, position: int):
        return forward_pass(self.net, self.data, self.context)


def clean(given: Objects) -> list[dict]:
    return clean_rows(Predicted(given.cell, given.context, given.model, given.data))


def test_clean_rows_of_shards_together_are_the_whole():
    parts = [row for index in range(3) for row in clean(objects(Linear(), shard=(index, 3)))]
    assert sorted(parts, key=lambda r: r["sample"]) == clean(objects(Linear()))


def test_clean_rows_agree_with_a_slow_twin():
    rows = clean(objects(Linear()))
    assert [r["sample"] for r in rows] == list(range(100, 100 + N))
    logits = Linear()(X).double()
    for row, values, label in zip(rows, logits.tolist(), Y.tolist(), strict=True):
        total = sum(math.exp(v) for v in values)
        shares = [math.exp(v) / total for v in values]
        assert row["pred"] == values.index(max(values)) and row["score"] == float(row["pred"] == label)
        assert row["confidence"] == pytest.approx(max(shares), rel=1e-5)
        assert row["nll"] == pytest.approx(-math.log(shares[label]), rel=1e-4, abs=1e-6)
        assert row["brier"] == pytest.approx(sum((s - (k == label)) ** 2 for k, s in enumerate(shares)), rel=1e-4)
        others = max(v for k, v in enumerate(values) if k != label)
        assert row["margin"] == pytest.approx(values[label] - others, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 7, 500])
def test_rows_do_not_depend_on_how_many_are_held(size):
    def rows(batch_size):
        found = evasion(objects(Linear(), batch_size=batch_size), attack="pgd(steps=5)", threat="linf(0.05)")
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found]

    assert rows(size) == rows(256)


def test_shards_together_are_the_whole():
    def rows(shard):
        found = evasion(objects(Linear(), shard=shard), attack="pgd(steps=5)", threat="linf(0.05)")
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found]

    parts = [row for index in range(3) for row in rows((index, 3))]
    assert sorted(parts, key=lambda r: r["sample"]) == rows((0, 1))


def test_clean_mistakes_are_broken_at_distance_zero_without_a_query():
    rows = evasion(objects(Linear()), attack="pgd(steps=5)", threat="linf(0.05)")
    (wrong,) = (r for r in rows if r["score_clean"] == 0)
    assert wrong["sample"] == 105
    assert (wrong["score_adv"], wrong["distance"], wrong["forwards"], wrong["status"]) == (0, 0, 0, "ok")


class Greedy(Linear):
    """Runs out of memory on more than ``most`` distinct images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.calls = most, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x.flatten(1).unique(dim=0)) > self.most:
            self.calls += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_out_of_memory_halves_the_hold_and_changes_no_row():
    greedy = Greedy(6)
    assert clean(objects(greedy)) == clean(objects(Linear()))
    assert greedy.calls == 3
    keep = [{k: v for k, v in r.items() if k != "seconds"} for r in evasion(objects(Linear()), attack="fgsm")]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in evasion(objects(Greedy(8)), attack="fgsm")] == keep


def test_one_sample_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        clean(objects(Greedy(0)))


def test_other_errors_are_not_taken_for_memory():
    def broken(hold):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        walk(objects(Linear()).holds(), broken)


class Hidden(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach())


def test_no_gradient_fails_every_correct_sample_and_the_sentinel():
    rows = evasion(objects(Hidden()), attack="pgd(steps=3)", threat="linf(0.05)")
    assert [r["status"] for r in rows] == ["ok" if r["sample"] == 105 else "failed" for r in rows]
    assert all("NoGradientError" in r["error"] for r in rows if r["status"] == "failed")
    assert {r["status"] for r in sentinel(objects(Hidden()))} == {"failed"}


def test_sentinel_of_a_sound_model_finds_nothing():
    rows = sentinel(objects(Linear()), threat="linf(0.05)")
    assert [r["sample"] for r in rows] == list(range(100, 100 + N))
    for row in rows:
        assert row["status"] == "ok" and row["unbounded_broken"]
        assert not any(row[k] for k in ("zero_gradient", "nonfinite_gradient", "probabilities", "random", "batch_dependent"))


@pytest.mark.parametrize(
    ("flag", "net"),
    [
        ("probabilities", nn.Sequential(Linear(), nn.Softmax(1))),
        ("random", type("Noisy", (Linear,), {"forward": lambda s, x: Linear.forward(s, x) + torch.randn(len(x), K)})()),
        ("batch_dependent", type("Mixed", (Linear,), {"forward": lambda s, x: Linear.forward(s, x) + x[:1].sum()})()),
        ("zero_gradient", type("Steps", (Linear,), {"forward": lambda s, x: Linear.forward(s, x.round() + 0 * x)})()),
    ],
    ids=["probabilities", "random", "batch_dependent", "zero_gradient"],
)
def test_sentinel_finds_what_was_planted(flag, net):
    state = torch.get_rng_state()
    rows = sentinel(objects(net), threat="linf(0.05)")
    torch.set_rng_state(state)
    assert sum(bool(r[flag]) for r in rows) > N / 2


@pytest.mark.parametrize("scenario", [clean, evasion, sentinel])
def test_a_model_that_moves_is_an_error(scenario):
    class Moving(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight += 1e-3
            return super().forward(x)

    with pytest.raises(ModelError, match="same after as before"):
        scenario(objects(Moving()))


@pytest.mark.parametrize("scenario", [clean, evasion, sentinel])
def test_modes_and_flags_come_back(scenario):
    net = nn.Sequential(Linear(), nn.Dropout(0.5)).train()
    scenario(objects(net))
    assert net.training and net[1].training and net[0].weight.requires_grad and net[0].weight.grad is None


def test_attack_hold_gives_images_that_reproduce_its_rows():
    hold = Hold(X, Y, torch.arange(N), 64)
    x_adv, rows = attack_hold(Linear(), hold, attack="pgd(steps=5)", threat=ThreatModel.parse("linf(0.05)"), seed=0)
    again = Linear()(x_adv).argmax(1) == Y
    assert [r["score_adv"] == 1 for r in rows] == again.tolist()
    assert (x_adv - X).abs().max() <= 0.05 + 1e-6


def test_columns_spread_constants_and_keep_order():
    rows = columns(a=torch.tensor([1, 2]), b="x", c=[True, False])
    assert rows == [{"a": 1, "b": "x", "c": True}, {"a": 2, "b": "x", "c": False}]


def test_seed_of_the_cell_reaches_the_attack():
    one = objects(Linear())
    other = replace(one, cell=replace(one.cell, seed=1))
    noise = [[r["margin_adv"] for r in evasion(o, attack="noise(draws=1)", threat="linf(0.05)")] for o in (one, other)]
    assert noise[0] != noise[1]
