"""The Poisson sampler against scipy's inverse distribution function."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from robench.corrupt.poisson import poisson_inverse
from robench.ops.random import Draws


@pytest.mark.parametrize("rate", [0.003, 0.4, 1.0, 7.3, 48.0, 250.0, 500.0, 3000.0])
def test_counts_equal_scipys_inverse(rate: float) -> None:
    u = np.concatenate([[2.0**-33, 1e-6, 1 - 2.0**-33], np.linspace(0.0005, 0.9995, 4001)])
    counts = poisson_inverse(torch.full((len(u),), rate, dtype=torch.float64), torch.from_numpy(u))
    np.testing.assert_array_equal(counts.numpy(), scipy.stats.poisson.ppf(u, rate))


def test_mean_and_variance_are_the_rate() -> None:
    u = (Draws(3, torch.arange(200)).bits("u", (1000,)).double() + 0.5) * 2.0**-32
    for rate in (0.5, 12.0):
        counts = poisson_inverse(torch.full_like(u, rate), u)
        assert counts.mean().item() == pytest.approx(rate, rel=0.01)
        assert counts.var().item() == pytest.approx(rate, rel=0.02)


def test_golden_counts_and_zero_rate() -> None:
    u = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9]])
    rate = torch.tensor([[3.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    assert poisson_inverse(rate, u).tolist() == [[1, 3, 5], [0, 0, 0]]


def test_the_start_of_the_walk_does_not_matter() -> None:
    from robench.corrupt.poisson import _walk

    rate = torch.full((5,), 20.0, dtype=torch.float64)
    u = torch.tensor([0.01, 0.3, 0.5, 0.7, 0.99], dtype=torch.float64)
    for start in (0.0, 90.0):
        k = _walk(torch.full_like(u, start), rate, u, up=True)
        assert torch.equal(_walk(k, rate, u, up=False), poisson_inverse(rate, u))
