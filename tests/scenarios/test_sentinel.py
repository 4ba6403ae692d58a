"""The sentinel against models built to deceive it, each on a trained digits network, and against the honest one."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from robench import evaluation
from robench.data._digits import digits
from robench.scenarios import sentinel as sentinels
from robench.zoo import load

FEW, MANY = 16, 64
"""Samples where a few show it, and where a verdict needs as many."""
pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return load("digits-standard").eval()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    data = digits(split="test")
    return data.images()[:128], data.labels[:128]


class Wrapped(nn.Module):
    """A model that answers as ``net`` does, in its own way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Detached(Wrapped):
    """The true logits without their gradient, and a faint one of something else: every pass has a gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        decoy = 1e-6 * x.flatten(1)[:, :10]
        return self.net(x).detach() + decoy


class HalfDetached(Wrapped):
    """Every second pixel's gradient is hidden."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = (torch.arange(x.shape[-1]) % 2).to(x)
        return self.net(x * mask + (x * (1 - mask)).detach())


class Crowd(Wrapped):
    """Adds something that only the set of images in the batch decides, whatever their order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + 10 * x.mean() * torch.arange(10)


class Doubled(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.net(x).softmax(1)


class Holes(Wrapped):
    """NaN as soon as the image is not exactly what it was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = x * 1024
        moved = (levels - levels.round()).abs().flatten(1).amax(1, keepdim=True) > 1e-3
        return torch.where(moved, torch.nan, self.net(x))


ATTACKS = ["noise(draws=2)", "pgd(steps=5)"]


def reasons(model: nn.Module, images, count: int = FEW, attacks=ATTACKS) -> tuple[str, ...]:
    x, y = images
    return evaluation.evaluate(model, x[:count], y[:count], threat="linf(0.05)", attacks=attacks).validity.reasons


def test_the_honest_network_raises_no_flag(net, images):
    assert reasons(net, images, MANY) == ()


@pytest.mark.parametrize("model", [Detached, HalfDetached])
def test_gradients_that_hide_the_truth_are_contradicted_by_finite_differences(net, images, model):
    found = " ".join(reasons(model(net), images))
    assert "finite differences" in found or "slopes along random directions" in found


@pytest.mark.parametrize("count", [1, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_dependence_on_the_batch_is_seen_at_every_size(net, images, count):
    assert "the output depends on the other images of the batch" in reasons(Crowd(net), images, count)
    assert "the output depends on the other images of the batch" not in reasons(net, images, count)


def test_scaled_probabilities_are_told_from_logits(net, images):
    assert "the model returns probabilities, not logits" in reasons(Doubled(net), images)


def test_outputs_that_are_not_finite_on_the_way_make_a_sample_unknown(net, images):
    x, y = images
    found = evaluation.evaluate(Holes(net), x[:FEW], y[:FEW], threat="linf(0.05)", attacks=ATTACKS)
    rows = found.rows[found.rows["score_clean"] > 0]
    assert len(rows) and (rows["nonfinite_outputs"] > 0).all() and (rows["status"] == "failed").all()
    assert found.robust_accuracy.value == 0
    assert any("non-finite outputs" in reason for reason in found.validity.reasons)


def test_gradient_attacks_alone_do_not_vouch_for_themselves(net, images):
    assert "no attack without gradients was run (at least noise)" in reasons(net, images, attacks=["pgd(steps=5)"])


@pytest.mark.slow
def test_nothing_else_is_said_of_gradient_attacks_alone(net, images):
    found = reasons(net, images, MANY, attacks=["pgd(steps=5)"])
    assert found == ("no attack without gradients was run (at least noise)",)


def test_a_lost_sentinel_row_is_noticed(net, images):
    x, y = images
    found = evaluation.evaluate(net, x[:16], y[:16], threat="linf(0.05)", attacks=ATTACKS)
    sentinel = pd.DataFrame({"sample": [0], "status": ["failed"]})
    assert evaluation.verdict(found.rows, sentinel).reasons[:2] == (
        "sentinel failed on 1 of 1 samples",
        "no sentinel looked at 15 of 16 correct samples",
    )


def watch(model: nn.Module, images, count: int, batch_size: int) -> pd.DataFrame:
    x, y = (part[:count] for part in images)
    told = {"threat": "linf(0.05)", "attacks": ["noise"], "seed": 0, "device": None, "batch_size": batch_size}
    with evaluation._opened(model, x, y, **told) as objects:
        return evaluation._watch(objects, "linf(0.05)")


@pytest.mark.parametrize(
    ("watched", "count", "part"), [(6, 8, 3), pytest.param(sentinels.WATCHED, 80, 33, marks=pytest.mark.slow)]
)
def test_short_ascents_meet_the_same_samples_in_every_batch(net, images, monkeypatch, watched, count, part):
    monkeypatch.setattr(sentinels, "WATCHED", watched)
    whole, parts = (watch(net, images, count, size) for size in (256, part))
    assert whole["broken_margin"].notna().sum() == sentinels.WATCHED
    names = ["broken_margin", "broken_ce", "broken_2x", "broken_4x", "silent"]
    pd.testing.assert_frame_equal(whole[["sample", *names]], parts[["sample", *names]])
    counts = whole[names].sum()
    assert counts["silent"] == 0 and 0 < counts["broken_margin"] < counts["broken_2x"] <= counts["broken_4x"]
    assert (whole["rising"].notna() == whole["broken_margin"].eq(0)).all()


class Looked(Wrapped):
    """Other logits as soon as a gradient is wanted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).flip(1) if torch.is_grad_enabled() else self.net(x)


def test_an_answer_that_a_gradient_changes_is_seen(net, images):
    assert watch(Looked(net), images, 8, 8)["gradient_dependent"].all()
    assert not watch(net, images, 8, 8)["gradient_dependent"].any()


def test_hidden_is_the_share_of_the_gradient_on_pixels_that_claim_none(images):
    """A linear model with half of its squared weights on detached pixels."""
    weights = torch.ones(2, 1024)
    weights[1] = -1

    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            seen = torch.arange(1024) % 2 == 0
            return torch.where(seen, flat, flat.detach()) @ weights.T

    x = torch.full((FEW, 1, 32, 32), 0.5)
    found = watch(Half(), (x, torch.zeros(FEW, dtype=torch.int64)), FEW, FEW)
    assert 0.3 < found["hidden"].mean() < 0.6


def test_outputs_that_saturate_lose_the_gradients_of_some_classes_and_log_softmax_does_not(images):
    """A linear model with gaps of equal slope, behind a tanh that leaves one class its slope, and behind log-softmax."""
    weights = torch.zeros(3, 1024)
    weights[0, 0], weights[1, 1], weights[2, 2] = 1.0, 1.0, 1.0
    bias = torch.tensor([12.0, 0.0, -12.0])

    class Outer(nn.Module):
        def __init__(self, last) -> None:
            super().__init__()
            self.last = last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x.flatten(1) @ weights.T + bias)

    x, y = torch.full((FEW, 1, 32, 32), 0.5), torch.zeros(FEW, dtype=torch.int64)
    even = {name: watch(Outer(f), (x, y), FEW, FEW)["evenness"] for name, f in (
        ("plain", lambda z: z), ("log", lambda z: z.log_softmax(1)), ("tanh", lambda z: 50 * torch.tanh(z)),
    )}  # fmt: skip
    assert even["plain"].min() > 0.999 and even["log"].min() > 0.99
    assert even["tanh"].max() < 1e-6


def test_a_floor_under_the_lowest_probability_is_no_saturation():
    """As votes over noise have it: the log of a mean probability, at least 1e-12."""
    weights = torch.zeros(4, 1024)
    weights[range(4), range(4)] = 1.0
    bias = torch.tensor([4.0, 2.0, 0.0, -40.0])

    class Vote(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1) @ weights.T + bias).softmax(1).clamp_min(1e-12).log()

    x, y = torch.full((FEW, 1, 32, 32), 0.5), torch.zeros(FEW, dtype=torch.int64)
    assert watch(Vote(), (x, y), FEW, FEW)["evenness"].min() > 0.9
