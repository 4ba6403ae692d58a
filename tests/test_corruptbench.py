"""The benchmark of the corruptions: both sides do the same work on the same images."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from robench.corrupt.apply import corrupt
from robench.corruptbench import _BYTES, PACKAGE, TABLE, _on_arrays, geometric_mean, measure

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).contiguous().float() / 255


@pytest.mark.parametrize("name", ["contrast", "gaussian_noise", "pixelate"])
def test_arrays_give_what_tensors_give(name: str) -> None:
    found = _on_arrays(PICTURES, name, 4, torch.arange(3))
    wanted = corrupt(IMAGES, name, severity=4, table=TABLE, ids=torch.arange(3)) * 255
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, wanted.permute(0, 2, 3, 1).numpy().round())


def test_a_row_holds_times_of_both_and_their_ratios() -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed")
    (row,) = measure(IMAGES, names=["contrast"], repeats=1).to_dict("records")
    assert row["corruption"] == "contrast" and min(row["robench"], row[_BYTES], row[PACKAGE]) > 0
    assert row["ratio"] == pytest.approx(row[PACKAGE] / row["robench"])
    assert row["ratio, 8-bit arrays"] == pytest.approx(row[PACKAGE] / row[_BYTES])


def test_the_geometric_mean_of_two_is_the_root_of_their_product() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
