"""Real files in the layouts users have, unpacked from the shared data."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robench.data._folder import folder
from robench.data.cifar import cifar10
from robench.data.idx import mnist

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unpacked")


@pytest.fixture
def unpacked(shared_data: Path, once: Path) -> Path:
    """The unpacked files; written by the first test that asks for them."""
    if not any(once.iterdir()):
        command = [sys.executable, str(shared_data / "unpack.py"), str(once), "--train", "20"]
        subprocess.run(command, check=True, capture_output=True)
    return once


@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_mnist_is_exact(unpacked: Path, shared_data: Path, split: str, n: int) -> None:
    data = mnist(split=split, root=str(unpacked / "mnist"))
    with np.load(shared_data / "mnist" / "mnist.npz") as source:
        x, y = source[f"{split}_x"], source[f"{split}_y"]
    assert len(data) == n
    assert np.array_equal(data.labels.numpy(), y)
    rows = torch.arange(0, n, 7)
    assert np.array_equal(data.images(rows)[:, 0].numpy(), x[rows.numpy()].astype(np.float32) / np.float32(255))


def test_cifar10_is_near_the_lossless_images(unpacked: Path, shared_data: Path) -> None:
    test = cifar10(root=str(unpacked))
    assert len(test) == 10_000
    assert test.labels.bincount().tolist() == [1000] * 10
    with np.load(shared_data / "cifar10" / "test_lossless_first100.npz") as source:
        x, y, index = source["x"], source["y"], torch.from_numpy(source["test_index"].astype(np.int64))
    assert np.array_equal(test.labels[index].numpy(), y)
    found = test.images(index).permute(0, 2, 3, 1).numpy()
    # The copies are JPEGs with a mean error of 5.8/255; a wrong channel or axis order gives several times that.
    assert np.abs(found - x / 255).mean() < 8 / 255


def test_cifar10_training_images(unpacked: Path) -> None:
    train = cifar10(split="train", root=str(unpacked / "cifar-10-batches-bin"))
    assert len(train) == 20
    assert train.images().shape == (20, 3, 32, 32)


def test_folder_of_photographs(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "imagenet_sample"
    with (source / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:6]
    for row in rows:
        path = tmp_path / row["wnid"] / Path(row["file"]).name
        path.parent.mkdir()
        shutil.copy(next(source.rglob(path.name)), path)
    data = folder(str(tmp_path))
    assert data.spec.shape == (3, 224, 224)
    assert list(data.spec.classes) == sorted(row["wnid"] for row in rows)
    assert 0.2 < float(data.images().mean()) < 0.8
