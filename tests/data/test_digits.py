"""The split and the enlargement of scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robench.data._digits import digits
from robench.errors import ConfigError

SPLITS = {"train": 1047, "validation": 250, "test": 500}


def enlarge(image: np.ndarray) -> np.ndarray:
    """Bilinear 8 to 32, pixel by pixel: centres at (i + 1/2) / 4 - 1/2, the border repeated."""
    out = np.zeros((32, 32))
    for i in range(32):
        for j in range(32):
            u, v = max((i + 0.5) / 4 - 0.5, 0), max((j + 0.5) / 4 - 0.5, 0)
            a, b = int(u), int(v)
            c, d = min(a + 1, 7), min(b + 1, 7)
            top = (1 - (v - b)) * image[a, b] + (v - b) * image[a, d]
            bottom = (1 - (v - b)) * image[c, b] + (v - b) * image[c, d]
            out[i, j] = (1 - (u - a)) * top + (u - a) * bottom
    return out / 16


def test_splits_part_the_source() -> None:
    parts = {split: digits(split=split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == SPLITS
    assert torch.equal(torch.cat([p.ids for p in parts.values()]).sort().values, torch.arange(1797))
    target = torch.as_tensor(load_digits().target)
    for part in parts.values():
        assert torch.equal(part.labels, target[part.ids])
        share = target.bincount() * len(part) / 1797
        assert float((part.labels.bincount() - share).abs().max()) <= 1


def test_enlargement_equals_its_twin_exactly() -> None:
    data = digits()
    rows = torch.tensor([0, 17, 499])
    source = load_digits().images
    expected = np.stack([enlarge(source[i]) for i in data.ids[rows].tolist()])[:, None]
    x = data.images(rows)
    assert x.shape == (3, 1, 32, 32)
    assert np.array_equal(x.numpy().astype(np.float64), expected)


def test_content_is_fixed() -> None:
    data = digits()
    assert data.spec.sha256 == "b91a55de6b635f248ab21cdb4a0dec73a426d8475ef6261fa22674b667ea0171"
    assert data.ids[:5].tolist() == [7, 8, 12, 17, 21]
    assert data.spec.shape == (1, 32, 32)
    assert data.spec.licence
    assert "Alpaydin" in data.spec.citation


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="split must be one of train, validation, test"):
        digits(split="val")
