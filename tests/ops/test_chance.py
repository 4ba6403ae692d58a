"""Global generators under counters."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from robench.ops.chance import seeded


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def test_the_same_counters_give_the_same_draws_whatever_came_before():
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise), np.random.seed(noise), random.seed(noise)
        with seeded(5, "test", step=3, draw=1):
            found.append(drawn())
    assert found[0] == found[1]


def test_every_counter_matters():
    found = set()
    for seed, stage, step, draw in [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]:
        with seeded(seed, stage, step=step, draw=draw):
            found |= set(drawn())
    assert len(found) == 15


def test_the_generators_come_back_even_after_an_error():
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    want = drawn()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    with pytest.raises(ValueError, match="inside"), seeded(0, "test"):
        drawn()
        raise ValueError("inside")
    assert drawn() == want


def test_draws_are_uniform_over_counters():
    found = []
    for step in range(400):
        with seeded(0, "uniform", step=step):
            found.append(drawn())
    means = np.mean(found, axis=0)
    assert np.abs(means - 0.5).max() < 4 * (1 / 12 / 400) ** 0.5
    assert np.abs(np.corrcoef(np.array(found)[:-1, 0], np.array(found)[1:, 0])[0, 1]) < 0.2
