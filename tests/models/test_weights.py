"""Seeded initialisation and the hash of weights."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from robench.models import TABLE, fresh, initialise, weights_sha256


def slow_hash(model: nn.Module) -> str:
    text = b""
    state = model.state_dict()
    for name in sorted(state):
        text += f"{name}|{state[name].dtype}|{tuple(state[name].shape)}|".encode() + state[name].numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


def test_hash_agrees_with_its_slow_twin_and_sees_every_bit() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = weights_sha256(model)
    assert before == slow_hash(model)
    model[1].num_batches_tracked += 1
    assert weights_sha256(model) != before


def test_hash_does_not_depend_on_memory_order() -> None:
    model = nn.Conv2d(3, 4, 3)
    before = weights_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize("name", [n for n in TABLE if n not in ("wrn", "resnet18")])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = weights_sha256(fresh(name, seed=3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert weights_sha256(fresh(name, seed=3)) == first != weights_sha256(fresh(name, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_spread_follows_fan_in_and_norm_scales_stay() -> None:
    model = initialise(nn.Sequential(nn.Conv2d(8, 256, 3), nn.BatchNorm2d(256), nn.Linear(256, 500)), 0)
    assert model[0].weight.std().item() == pytest.approx((2 / 72) ** 0.5, rel=0.02)
    assert model[2].weight.std().item() == pytest.approx((1 / 256) ** 0.5, rel=0.02)
    assert not model[0].bias.any() and not model[2].bias.any()
    assert torch.equal(model[1].weight, torch.ones(256))
