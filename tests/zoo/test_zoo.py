"""The embedded zoo: weights as recorded, the order of robustness, the trap, and rebuilding."""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from robench.data._digits import digits
from robench.errors import ConfigError, ModelError
from robench.models import weights_sha256
from robench.zoo import ZOO, build, load
from robench.zoo import building as building
from robench.zoo import entries as entries
from robench.zoo import loading as loading
from robench.zoo.entries import DIGITS

EPS = entries.EPS
SHOWN = 300
"""Images that are attacked."""


@functools.cache
def held_out_images() -> tuple[Tensor, Tensor]:
    data = digits(split="test")
    return data.images(), data.labels


def accuracy(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == held_out_images()[1][: len(x)]).float().mean().item()


def start(x: Tensor, eps: float) -> Tensor:
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + eps * (2 * noise - 1)).clamp(0, 1)


@functools.cache
def pgd(name: str, steps: int, eps: float = EPS) -> Tensor:
    """A small attack of the test's own: signed cross-entropy steps from a uniform start."""
    model = load(name)
    x, y = (part[:SHOWN] for part in held_out_images())
    x_adv = start(x, eps)
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + 2.5 * eps / steps * gradient.sign()
        x_adv = torch.maximum(torch.minimum(moved, x + eps), x - eps).clamp(0, 1)
    return x_adv


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def test_the_zoo_is_small_and_complete() -> None:
    assert DIGITS == (
        "digits-standard", "digits-augmented", "digits-pgd-at", "digits-trades", "digits-vit", "digits-mlp", "digits-trap",
    )  # fmt: skip
    assert tuple(ZOO) == (*DIGITS, "cifar10-standard", "cifar10-pgd-at")
    files = [f for f in entries.WEIGHTS.iterdir() if not f.name.startswith(".")]
    assert {f.name for f in files} == {f"{n}.{s}" for n in ZOO for s in ("json", "safetensors")}
    assert sum(f.stat().st_size for f in files) < 6_000_000 and max(f.stat().st_size for f in files) < 1_500_000


@pytest.mark.parametrize("name", DIGITS)
def test_weights_are_the_recorded_ones_and_reach_the_recorded_accuracy(name: str) -> None:
    model, entry = load(name), ZOO[name]
    assert weights_sha256(model) == entry.sha256 and not model.training
    assert entry.n == 500 and accuracy(model, held_out_images()[0]) == pytest.approx(entry.accuracy, abs=0.0041)
    assert entry.accuracy > 0.95 and entry.train_accuracy > 0.97


@pytest.mark.parametrize("name", ["cifar10-standard", "cifar10-pgd-at"])
def test_nets_on_cifar10_compute_in_float32_from_matrices_of_half_precision(name: str) -> None:
    model, entry = load(name), ZOO[name]
    assert weights_sha256(model) == entry.sha256 and entry.n == 10000 and entry.spec.shape == (3, 32, 32)
    for value in model.state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)
        assert value.dim() < 2 or torch.equal(value, value.half().float())


@pytest.mark.shared
def test_nets_on_cifar10_reach_the_recorded_accuracy(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "cifar10" / "test_jpegs.npz") as stored:
        ends = [*stored["offset"].tolist()]
        images = [stored["data"][a:b].tobytes() for a, b in itertools.pairwise(ends[:401])]
        labels = torch.from_numpy(stored["label"][:400].astype("int64"))
    x = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(i)))) for i in images]).permute(0, 3, 1, 2) / 255
    for name in ("cifar10-standard", "cifar10-pgd-at"):
        with torch.no_grad():
            right = (load(name)(x).argmax(1) == labels).double().mean().item()
        assert right == pytest.approx(ZOO[name].accuracy, abs=0.075)


def test_a_net_is_not_rebuilt_from_other_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cifar10, which the net was trained on"):
        build("cifar10-standard", tmp_path, data="digits")


def test_adversarial_training_leads_at_the_house_s_radius_and_plain_nets_fall() -> None:
    held = {name: accuracy(load(name), pgd(name, 10)) for name in DIGITS if name != "digits-trap"}
    assert min(held["digits-pgd-at"], held["digits-trades"]) > 0.7
    assert max(held[n] for n in ("digits-standard", "digits-augmented", "digits-vit", "digits-mlp")) < 0.25


def test_the_trap_stands_against_its_own_gradient_and_falls_to_transfer() -> None:
    trap = load("digits-trap")
    assert accuracy(trap, pgd("digits-trap", 40)) >= 0.6
    assert accuracy(trap, pgd("digits-standard", 40)) <= 0.2
    assert accuracy(trap, start(held_out_images()[0], EPS)) > 0.9


def test_the_trap_s_gradient_is_zero_everywhere() -> None:
    x = held_out_images()[0][:50].clone().requires_grad_()
    assert not torch.autograd.grad(load("digits-trap")(x).square().sum(), x)[0].any()


def test_unknown_names_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits-trades'"):
        load("digits-trade")
    with pytest.raises(ConfigError):
        build("digits-trade", Path("nowhere"))


def test_weights_that_are_missing_damaged_or_altered_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (entries.WEIGHTS / "digits-mlp.safetensors").read_bytes()
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match="there"):
        load("digits-mlp")
    (tmp_path / "digits-mlp.safetensors").write_bytes(whole[:-40])
    with pytest.raises(ModelError, match="whole weight file"):
        load("digits-mlp")
    (tmp_path / "digits-mlp.safetensors").write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    with pytest.raises(ModelError, match="rebuild"):
        load("digits-mlp")


def test_build_goes_on_where_it_was_stopped_and_writes_what_load_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(entries.ZOO, "digits-mlp", replace(ZOO["digits-mlp"], steps=230))
    whole = build("digits-mlp", tmp_path / "whole")

    def stop(done: int, total: int, loss: float) -> None:
        if done == 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("digits-mlp", tmp_path / "parts", progress=stop)
    seen: list[int] = []
    again = build("digits-mlp", tmp_path / "parts", progress=lambda done, total, loss: seen.append(done))
    assert seen[0] == 101 and again == whole and whole.sha256 != ""
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["digits-mlp.json", "digits-mlp.safetensors"]
    assert json.loads((tmp_path / "parts" / "digits-mlp.json").read_text())["sha256"] == whole.sha256
    monkeypatch.setitem(entries.ZOO, "digits-mlp", whole)
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path / "parts")
    assert weights_sha256(load("digits-mlp")) == whole.sha256


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with building.single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_a_rebuild_reaches_the_recorded_accuracy_within_its_interval(name: str, tmp_path: Path) -> None:
    recorded = ZOO[name]
    built = build(name, tmp_path)
    low, high = wilson(recorded.accuracy, recorded.n)
    assert low <= built.accuracy <= high
    train_low, train_high = wilson(recorded.train_accuracy, 1047)
    assert train_low <= built.train_accuracy <= train_high
