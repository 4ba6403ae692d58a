"""IDX files written by hand, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robench.data import Dataset
from robench.data.idx import fashion_mnist, mnist, read_idx
from robench.errors import ConfigError, DataError

PIXELS = (np.arange(5 * 28 * 28) % 256).astype(np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, stem: str, *, end: str = "", images: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images", images), ("labels", labels)):
        data = idx(array)
        path = folder / f"{stem}-{kind}-idx{array.ndim}-ubyte{end}"
        path.write_bytes(gzip.compress(data) if end else data)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("loader", "below"), [(mnist, ""), (mnist, "MNIST/raw"), (fashion_mnist, "FashionMNIST/raw")])
def test_pixels_and_labels_come_back(tmp_path: Path, loader: Callable[..., Dataset], below: str, end: str) -> None:
    write(tmp_path / below, "t10k", end=end)
    data = loader(root=str(tmp_path))
    assert torch.equal((data.images() * 255).round().to(torch.uint8)[:, 0], torch.from_numpy(PIXELS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.ids.tolist() == [0, 1, 2, 3, 4]
    assert data.spec.shape == (1, 28, 28)
    assert len(data.spec.classes) == 10
    assert data.spec.licence
    assert data.spec.citation


def test_train_reads_the_train_files(tmp_path: Path) -> None:
    write(tmp_path, "train", labels=LABELS[::-1])
    assert mnist(split="train", root=str(tmp_path)).labels.tolist() == [5, 1, 4, 1, 3]
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        mnist(root=str(tmp_path))
    with pytest.raises(ConfigError, match="split must be"):
        mnist(split="validation", root=str(tmp_path))


def test_missing_files_say_what_and_where_from(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fashion_mnist(root=str(tmp_path / "nowhere"))
    text = str(caught.value)
    assert "t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz" in text
    assert "zalandoresearch/fashion-mnist" in text
    assert "root=" in text


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "starting 00 00 08 03"),
    "web page": (b"<!DOCTYPE html><html></html>", "starting 00 00 08 03"),
    "labels instead": (idx(LABELS), "starting 00 00 08 03"),
    "short header": (idx(PIXELS)[:12], "starting 00 00 08 03"),
    "truncated": (idx(PIXELS)[:-1], "whose header announces 5x28x28, must be 3936 bytes, got 3935; it is truncated"),
    "too long": (idx(PIXELS) + b"0", "must be 3936 bytes, got 3937"),
    "other size": (idx(PIXELS[:, :14]), "must be 28x28, got (14, 28)"),
    "fewer images": (idx(PIXELS[:4]), "as many, got (4, 5)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    data, text = DAMAGE[kind]
    write(tmp_path, "t10k")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(DataError) as caught:
        mnist(root=str(tmp_path))
    assert text in str(caught.value)


def test_labels_beyond_nine_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "t10k", labels=LABELS + 6)
    with pytest.raises(DataError, match=r"labels must be in 0\.\.9, got '10 at row 2 \(2 such labels\)'"):
        mnist(root=str(tmp_path))


@pytest.mark.parametrize("damage", [lambda z: z[:-20], lambda z: b"not gzip", lambda z: z[:30] + b"\xff" * 40 + z[70:]])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(idx(PIXELS))))
    with pytest.raises(DataError, match=r"a\.gz must be a readable file"):
        read_idx(path, 3)
