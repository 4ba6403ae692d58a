"""A verdict does not hang on the seed: of 1000 images at most two change between any two seeds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robench
from robench.catalog import DATA
from robench.zoo import load

SEEDS = (0, 1, 2)
CHANGED = 2 / 1000


def verdicts(net: nn.Module, x: Tensor, y: Tensor, threat: str) -> list[Tensor]:
    """Whether each image stays robust, bool (N,), per seed."""
    return [robench.attack(net, x, y, threat=threat, protocol="robench-standard", seed=seed).robust for seed in SEEDS]


def changes(found: list[Tensor]) -> dict[tuple[int, int], int]:
    """Images whose verdicts differ, per pair of seeds."""
    return {(a, b): int((found[a] != found[b]).sum()) for a, b in combinations(range(len(found)), 2)}


def hold(cases: list[tuple[str, nn.Module, Tensor, Tensor, str]], least: int) -> None:
    pooled: list[list[Tensor]] = []
    for name, net, x, y, threat in cases:
        pooled.append(verdicts(net, x, y, threat))
        rates = [round(100 * float(v.double().mean()), 1) for v in pooled[-1]]
        print(f"{name} {threat}: n={len(y)}, robust {rates} %, changed {changes(pooled[-1])}", flush=True)
    found = [torch.cat(parts) for parts in zip(*pooled, strict=True)]
    print(f"pooled: n={len(found[0])}, changed {changes(found)}")
    assert len(found[0]) >= least
    assert max(changes(found).values()) <= CHANGED * len(found[0])


@pytest.mark.slow
def test_three_seeds_agree_on_two_adversarially_trained_nets() -> None:
    data = DATA["digits"].load()(split="test")
    x, y = data.images()[:500], data.labels[:500]
    hold([(name, load(name), x, y, "linf(0.1)") for name in ("digits-pgd-at", "digits-trades")], 1000)


@pytest.mark.slow
@pytest.mark.shared
def test_three_seeds_agree_on_a_published_net(shared_data, published) -> None:
    held = np.load(shared_data / "mnist" / "mnist.npz")
    x = torch.from_numpy(held["test_x"][:500]).float()[:, None] / 255
    y = torch.from_numpy(held["test_y"][:500]).long()
    hold([("kw_mnist_0.1", published("kw_mnist_0.1"), x, y, "linf(0.1)")], 500)
