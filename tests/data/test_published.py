"""Published -C folders: matched by id or by file, and refused where they belong to other images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data._folder import folder
from robench.data.dataset import Dataset, from_arrays
from robench.data.listing import listed
from robench.data.published import published_c, severities
from robench.errors import ConfigError, DataError
from robench.spec import DatasetSpec

N = 12


def clean(n: int = N, side: int = 8) -> Dataset:
    images = (torch.arange(n * 3 * side * side) % 251).to(torch.uint8).reshape(n, 3, side, side)
    return from_arrays(DatasetSpec("c", ("a", "b", "c"), (3, side, side), ("test",)), images, torch.arange(n) % 3)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A folder as CIFAR-10-C's: image i at severity s is filled with 20 s + i."""
    values = (20 * np.arange(1, 6)[:, None] + np.arange(N)[None, :]).ravel().astype(np.uint8)
    np.save(tmp_path / "fog.npy", np.broadcast_to(values[:, None, None, None], (5 * N, 8, 8, 3)))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(N) % 3, 5).astype(np.uint8))
    return tmp_path


def grey(data: Dataset) -> list[int]:
    return data.images()[:, 0, 0, 0].mul(255).round().long().tolist()


def test_arrays_are_matched_by_the_ids_of_the_clean_images(arrays: Path) -> None:
    part = clean().take(torch.tensor([7, 2, 11]))
    levels = severities(part, str(arrays), "fog")
    assert [grey(level) for level in levels] == [[20 * s + 7, 20 * s + 2, 20 * s + 11] for s in range(1, 6)]
    assert all(torch.equal(level.labels, part.labels) and torch.equal(level.ids, part.ids) for level in levels)
    assert grey(levels[2].take(torch.tensor([2]))) == [71]


def test_labels_may_be_given_once(arrays: Path) -> None:
    np.save(arrays / "labels.npy", np.arange(N) % 3)
    assert grey(severities(clean(), str(arrays), "fog")[4])[:2] == [100, 101]


def test_one_severity_is_a_data_set_of_its_own(arrays: Path) -> None:
    data = published_c(root=str(arrays), corruption="fog", severity=3)
    assert data.spec.name == f"published({arrays.name}) fog 3" and data.spec.classes == ("0", "1", "2")
    assert grey(data) == [60 + i for i in range(N)] and data.spec.shape == (3, 8, 8)
    for severity in (0, 6, True):
        with pytest.raises(ConfigError, match="severity must be 1, 2, 3, 4 or 5"):
            published_c(root=str(arrays), corruption="fog", severity=severity)


def test_other_images_are_refused(arrays: Path) -> None:
    turned = from_arrays(clean().spec, torch.zeros(N, 3, 8, 8, dtype=torch.uint8), (torch.arange(N) + 1) % 3)
    with pytest.raises(DataError, match=r"labels.npy of .* must be those of c, got .12 others"):
        severities(turned, str(arrays), "fog")
    with pytest.raises(DataError, match=r"must be in 0\.\.11, got .0\.\.12"):
        severities(clean(13), str(arrays), "fog")
    with pytest.raises(DataError, match=r"the images of fog.npy must be of shape \(3, 9, 9\)"):
        severities(clean(side=9), str(arrays), "fog")


def test_damaged_arrays_are_refused(arrays: Path) -> None:
    np.save(arrays / "snow.npy", np.zeros((5 * N, 8, 8, 3), np.float32))
    with pytest.raises(DataError, match=r"snow.npy must be uint8 \(5 N, H, W, C\), got .float32"):
        severities(clean(), str(arrays), "snow")
    np.save(arrays / "labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match=r"labels\.npy must be 60 integers"):
        severities(clean(), str(arrays), "fog")
    (arrays / "fog.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match="must be a readable array"):
        severities(clean(), str(arrays), "fog")
    with pytest.raises(
        DataError, match=r"the published corruptions must be a folder with frost.npy and labels.npy, or frost/"
    ):
        listed(str(arrays), "frost")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Clean images and their versions, as ImageNet's validation set and ImageNet-C are laid out."""
    for s in range(6):
        for c in range(2):
            for i in range(3):
                home = tmp_path / ("clean" if s == 0 else f"C/fog/{s}") / f"n{c}"
                home.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * s + 3 * c + i,) * 3).save(home / f"val_{i}.png")
    return tmp_path


def test_files_are_matched_by_class_and_name(folders: Path) -> None:
    data = folder(str(folders / "clean")).take(torch.tensor([4, 0]))
    levels = severities(data, str(folders / "C"), "fog")
    assert [grey(level) for level in levels] == [[20 * s + 4, 20 * s] for s in range(1, 6)]
    assert grey(severities(folder(str(folders / "clean")), str(folders / "C"), "fog")[0]) == [20 + i for i in range(6)]
    alone = published_c(root=str(folders / "C"), corruption="fog", severity=2)
    assert grey(alone) == [40 + i for i in range(6)] and alone.spec.splits == ("test",)


def test_missing_files_sizes_and_clean_images_of_another_kind_are_refused(folders: Path) -> None:
    data = folder(str(folders / "clean"))
    with pytest.raises(DataError, match="the clean images beside published folders must be a folder data set, got 'c'"):
        severities(clean(), str(folders / "C"), "fog")
    with pytest.raises(DataError, match="pass size=8 with the clean images"):
        severities(folder(str(folders / "clean"), size=4), str(folders / "C"), "fog")
    (folders / "C/fog/3/n1/val_2.png").unlink()
    with pytest.raises(DataError, match="the corrupted version of each image must be there, got 'no "):
        severities(data, str(folders / "C"), "fog")


def test_identity_follows_the_files(arrays: Path, folders: Path) -> None:
    before = listed(str(folders / "C"), "fog")
    listed.cache_clear()
    (folders / "C/fog/1/n0/val_9.png").write_bytes(b"x")
    assert listed(str(folders / "C"), "fog") != before
    first = listed(str(arrays), "fog")
    listed.cache_clear()
    np.save(arrays / "labels.npy", np.zeros(5 * N, np.uint8))
    assert listed(str(arrays), "fog") != first
