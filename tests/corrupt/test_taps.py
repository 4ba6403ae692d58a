"""Weighted sums of pixels against matrix products and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from robench.corrupt import taps as module
from robench.corrupt._blur import defocus_blur, disk
from robench.corrupt.taps import mixed, taps, trailed
from robench.ops.random import Draws


def _images(n: int, channels: int, height: int, width: int) -> Tensor:
    return Draws(3, torch.arange(n)).uniform("images", (channels, height, width))


def test_mixing_is_a_matrix_product() -> None:
    x = _images(3, 2, 5, 7)
    matrix = sparse.random(35, 35, density=0.3, format="csr", random_state=0)
    places, parts = taps(matrix)
    wanted = x.double().flatten(2).numpy() @ matrix.toarray().T
    found = mixed(x, [(places, parts)])
    np.testing.assert_allclose(found.flatten(2).numpy(), wanted, atol=1e-6)
    assert found.shape == x.shape and found.is_contiguous()
    cut = mixed(x, zip(places.split(12), parts.split(12), strict=True))
    assert torch.equal(cut, found)


def test_mixing_is_the_same_in_any_company() -> None:
    x = _images(40, 1, 5, 7)
    portions = [taps(sparse.random(35, 35, density=0.5, format="csr", random_state=1))]
    found = mixed(x, portions)
    for count in (*range(1, 20), 31, 33):
        assert torch.equal(mixed(x[3 : 3 + count], portions), found[3 : 3 + count]), count


@pytest.mark.parametrize("portion", [1, 2**19])
@pytest.mark.parametrize("reach", [3, 40])
def test_trails_add_shifted_images_with_repeated_edges(reach: int, portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", portion)
    x, rng = _images(4, 3, 6, 9), np.random.default_rng(1)
    down, right = (rng.integers(-reach, reach + 1, (4, 5)) for _ in range(2))
    parts = rng.uniform(size=5)
    wanted = np.zeros(x.shape)
    for n in range(4):
        for d, r, part in zip(down[n], right[n], parts, strict=True):
            rows, cols = (np.arange(6) + d).clip(0, 5), (np.arange(9) + r).clip(0, 8)
            wanted[n] += part * x[n].double().numpy()[:, rows[:, None], cols]
    found = trailed(x, down, right, parts)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    assert torch.equal(trailed(x[2:3], down[2:3], right[2:3], parts), found[2:3])


def test_no_images_have_no_trails() -> None:
    none = np.zeros((0, 5), np.int64)
    assert trailed(torch.zeros(0, 3, 6, 9), none, none, np.ones(5)).shape == (0, 3, 6, 9)


def test_defocus_in_portions_of_rows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, draws = _images(2, 1, 20, 24), Draws(0, torch.arange(2))
    whole = defocus_blur(x, (4.0, 0.5), draws=draws)
    monkeypatch.setattr("robench.corrupt._blur.PORTION", 24 * int((disk(4.0, 0.5) > 0).sum()) * 3)
    assert torch.equal(defocus_blur(x, (4.0, 0.5), draws=draws), whole)
