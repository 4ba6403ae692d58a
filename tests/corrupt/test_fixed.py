"""Sums in whole numbers: exact, and what is cut off below a level."""

from __future__ import annotations

import numpy as np
import torch

from robench.corrupt.fixed import PIXEL_BITS, at_least, separable, weights
from robench.corrupt.words import around_zero
from robench.ops.random import Draws


def test_what_is_at_least_the_level_stays() -> None:
    level = 0.68
    x = torch.tensor([np.nextafter(level, 0), level, np.nextafter(level, 1), 2.0, -1.0, 0.0], dtype=torch.float64)
    assert at_least(x, level).tolist() == [0.0, level, np.nextafter(level, 1), 2.0, 0.0, 0.0]


def test_rows_and_columns_go_through_their_matrices() -> None:
    rng = np.random.default_rng(0)
    rows, cols = (matrix / matrix.sum(1, keepdims=True) for matrix in (rng.uniform(size=(6, 6)), rng.uniform(size=(9, 9))))
    x = torch.from_numpy(rng.uniform(-2, 2, (5, 2, 6, 9)))
    cpu = torch.device("cpu")
    found = separable(x, weights(rows, device=cpu), weights(cols, device=cpu))
    np.testing.assert_allclose(found.numpy(), rows @ x.numpy() @ cols.T, atol=2.0**-PIXEL_BITS * 3)
    assert torch.equal(found * 2**PIXEL_BITS, (found * 2**PIXEL_BITS).round())
    single = torch.cat([separable(part, weights(rows, device=cpu), weights(cols, device=cpu)) for part in x.split(1)])
    assert torch.equal(single, found)
    grey = (x.abs().float() * 100).round() / 255
    assert torch.equal(
        separable(grey, torch.eye(6).double(), torch.eye(9).double()), (grey.double() * 2**22).round() / 2**22
    )


def test_draws_around_zero_are_the_middles_of_equal_parts() -> None:
    draws = Draws(0, torch.arange(50))
    found = around_zero(draws, "a", (7, 3))
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), (draws.shorts("a", (7, 3)).double() + 0.5) / 2**15 - 1)
    assert -1 < found.min() < -0.98 and 0.98 < found.max() < 1
