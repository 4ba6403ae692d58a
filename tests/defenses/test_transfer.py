"""Linear probe, fine-tuning and LP-FT: what moves, what stays, and how far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from robench.data import Dataset
from robench.data.dataset import from_arrays
from robench.defenses.training import train
from robench.defenses.transfer import MODES, Frozen, adapt, new_head
from robench.errors import ConfigError, ModelError
from robench.models import fresh, weights_sha256
from robench.spec import DatasetSpec


def task(count: int, n: int = 60, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % count
    x = (0.3 * torch.rand(n, 1, 8, 8, generator=generator) + 0.6 * labels[:, None, None, None] / count).clamp(0, 1)
    return from_arrays(DatasetSpec("toy", tuple("abcdefgh"[:count]), (1, 8, 8), ("train",)), x, labels)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    net = fresh("resnet18(num_classes=2, width=2)", seed=0)
    train(net, task(2), steps=20, seed=0, batch_size=16)
    return net


def body(net: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if not k.startswith("9.") and "num_batches" not in k}


SETTINGS = {"num_classes": 3, "steps": 8, "seed": 1, "batch_size": 8}


@pytest.mark.parametrize("mode", MODES)
def test_the_source_stays_and_the_copy_has_as_many_logits_as_asked(source: nn.Module, mode: str) -> None:
    before, state = weights_sha256(source), torch.get_rng_state()
    net, report = adapt(source, task(3), mode=mode, **SETTINGS)
    assert weights_sha256(source) == before and torch.equal(torch.get_rng_state(), state)
    assert net(task(3).images()).shape == (60, 3) and not net.training
    assert (report.steps, report.n, report.seed) == (8, 60, 1) and report.weights_sha256 == weights_sha256(net)
    again, _ = adapt(source, task(3), mode=mode, **SETTINGS)
    assert weights_sha256(again) == report.weights_sha256
    other, _ = adapt(source, task(3), mode=mode, **{**SETTINGS, "seed": 2})
    assert weights_sha256(other) != report.weights_sha256


def test_a_probe_moves_only_the_head_and_no_statistics(source: nn.Module) -> None:
    net, _ = adapt(source, task(3), mode="linear_probe", **SETTINGS)
    assert all(torch.equal(v, body(source)[k]) for k, v in body(net).items())
    tuned, _ = adapt(source, task(3), mode="fine_tune", **SETTINGS)
    assert sum(not torch.equal(v, body(source)[k]) for k, v in body(tuned).items()) == len(body(tuned))
    assert all(p.requires_grad for p in net.parameters())


def test_the_ways_end_in_different_weights(source: nn.Module) -> None:
    hashes = {adapt(source, task(3), mode=m, **SETTINGS)[1].weights_sha256 for m in MODES}
    assert len(hashes) == 3


def test_lp_ft_is_a_probe_and_then_fine_tuning_at_a_tenth(source: nn.Module) -> None:
    net, _ = adapt(source, task(3), mode="lp_ft", lr=0.01, **SETTINGS)
    probe, _ = adapt(source, task(3), mode="linear_probe", lr=0.01, **{**SETTINGS, "steps": 4})
    train(probe, task(3), steps=4, seed=1, batch_size=8, lr=0.001)
    assert weights_sha256(net) == weights_sha256(probe)


@pytest.mark.slow
def test_a_long_probe_reaches_the_accuracy_of_logistic_regression(source: nn.Module) -> None:
    data = task(3, n=90)
    net, report = adapt(source, data, mode="linear_probe", num_classes=3, steps=400, seed=0, batch_size=90, lr=0.05)
    kept: list[Tensor] = []
    hook = net.get_submodule("9").register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    with torch.no_grad():
        net(data.images())
    hook.remove()
    features = kept[0]
    exact = LogisticRegression(C=1e4, max_iter=5000).fit(features, data.labels).score(features, data.labels)
    assert report.train_accuracy >= exact - 0.05


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [3, 7])
def test_a_killed_transfer_goes_on_to_the_same_bits(source: nn.Module, tmp_path: Path, at: int) -> None:
    whole, _ = adapt(source, task(3), mode="lp_ft", **SETTINGS)
    calls = 0

    def stop(done: int, total: int, loss: float) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Stop

    kept = {"checkpoint": tmp_path / "c.pt", "every": 2}
    with pytest.raises(Stop):
        adapt(source, task(3), mode="lp_ft", progress=stop, **kept, **SETTINGS)
    resumed, _ = adapt(source, task(3), mode="lp_ft", **kept, **SETTINGS)
    assert weights_sha256(resumed) == weights_sha256(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_bad_input_is_told(source: nn.Module) -> None:
    with pytest.raises(ConfigError, match="did you mean 'fine_tune'"):
        adapt(source, task(3), mode="finetune", **SETTINGS)
    with pytest.raises(ConfigError, match="at least 2"):
        adapt(source, task(3), mode="lp_ft", **{**SETTINGS, "steps": 1})
    with pytest.raises(ModelError, match="linear layer"):
        new_head(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()), 3, seed=0)


def test_the_head_learns_in_train_mode_and_the_rest_does_not() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2))
    frozen = Frozen(net, net[3]).train()
    assert [part.training for part in net] == [False, False, False, True] and frozen.training
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {"net.3.weight", "net.3.bias"}
