"""Folders of images, written by hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data import Dataset
from robench.data._folder import folder
from robench.errors import ConfigError, DataError


def picture(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for seed, name in enumerate(["emu/1.png", "cat/b.png", "cat/a.png", "cat/deep/c.png"]):
        write(tmp_path / name, picture(seed))
    return tmp_path


def bytes_of(data: Dataset) -> np.ndarray:
    return (data.images() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_pixels_come_back_in_sorted_order(flat: Path) -> None:
    (flat / "cat" / "notes.txt").write_text("no image")
    (flat / "cat" / ".hidden.png").write_text("no image")
    data = folder(str(flat))
    assert data.spec.classes == ("cat", "emu")
    assert data.labels.tolist() == [0, 0, 0, 1]
    assert data.ids.tolist() == [0, 1, 2, 3]
    assert data.spec.shape == (3, 6, 5)
    assert np.array_equal(bytes_of(data), np.stack([picture(s) for s in (2, 1, 3, 0)]))
    assert torch.equal(data.images(torch.tensor([3, 1])), data.images()[[3, 1]])
    assert data.spec.splits == ("test",)
    assert data.spec.licence


def test_images_are_opened_when_asked_for(flat: Path) -> None:
    data = pickle.loads(pickle.dumps(folder(str(flat))))
    (flat / "emu" / "1.png").unlink()
    assert data.images(torch.tensor([0, 1, 2])).shape == (3, 3, 6, 5)
    with pytest.raises(DataError, match=r"1\.png' must be a readable image|1\.png must be a readable image"):
        data.images(torch.tensor([3]))


def test_splits_share_their_classes(tmp_path: Path) -> None:
    for seed, name in enumerate(["train/cat/1.png", "train/dog/1.png", "train/emu/1.png", "test/emu/1.png"]):
        write(tmp_path / name, picture(seed))
    test = folder(str(tmp_path))
    assert test.spec.classes == ("cat", "dog", "emu")
    assert test.labels.tolist() == [2]
    assert folder(str(tmp_path), split="train").labels.tolist() == [0, 1, 2]
    assert test.spec.splits == ("train", "test")
    with pytest.raises(ConfigError, match="split must be one of train, test"):
        folder(str(tmp_path), split="validation")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train/1.png", "car/1.png"):
        write(tmp_path / name, picture(0))
    assert folder(str(tmp_path)).spec.classes == ("car", "train")
    with pytest.raises(ConfigError, match="split must be one of test"):
        folder(str(tmp_path), split="train")


def test_sizes_must_agree_or_be_chosen(flat: Path) -> None:
    write(flat / "emu" / "2.png", picture(9, 8, 10))
    with pytest.raises(DataError, match=r"all 6x5 as the first, got '8x10 in .*2\.png'; pass size=5"):
        folder(str(flat))
    assert folder(str(flat), size=4).images().shape == (5, 3, 4, 4)


def test_resizing_by_two_averages_and_crop_cuts_the_centre(tmp_path: Path) -> None:
    rows = np.repeat(np.repeat(np.array([[10, 90, 30, 200]], dtype=np.uint8), 4, axis=0), 2, axis=1)
    write(tmp_path / "a" / "1.png", np.stack([rows] * 3, axis=-1))
    cropped = bytes_of(folder(str(tmp_path), size=4, fit="crop"))[0, :, :, 0]
    assert np.array_equal(cropped, rows[:, 2:6])
    stretched = bytes_of(folder(str(tmp_path), size=4))[0, :, :, 0]
    assert stretched.shape == (4, 4)
    assert np.array_equal(stretched[0], stretched[3])
    # Each column is mostly the value of its own pair, drawn towards its neighbours by the triangle filter.
    assert list(np.argsort(stretched[0])) == [0, 2, 1, 3]


def test_grey_has_one_channel(tmp_path: Path) -> None:
    grey = picture(4)[..., 0]
    write(tmp_path / "a" / "1.png", grey)
    one, three = folder(str(tmp_path), channels=1), folder(str(tmp_path))
    assert one.spec.shape == (1, 6, 5)
    assert np.array_equal(bytes_of(one)[0, ..., 0], grey)
    assert torch.equal(three.images(), one.images().expand(-1, 3, -1, -1))


def test_hash_follows_names_and_bytes(flat: Path) -> None:
    first = folder(str(flat)).spec.sha256
    assert first == folder(str(flat)).spec.sha256
    (flat / "cat" / "a.png").rename(flat / "cat" / "aa.png")
    renamed = folder(str(flat)).spec.sha256
    write(flat / "cat" / "aa.png", picture(77))
    assert len({first, renamed, folder(str(flat)).spec.sha256}) == 3


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_damaged_images_are_named(flat: Path, content: bytes | None) -> None:
    path = flat / "cat" / "b.png"
    path.write_bytes(path.read_bytes()[:20] if content is None else content)
    with pytest.raises(DataError, match=r"b\.png must be a readable image"):
        folder(str(flat))


def test_image_cut_in_its_pixels_is_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.png"
    write(path, picture(0, 64, 64))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"1\.png must be a readable image"):
        folder(str(tmp_path)).images()


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(DataError, match="must be an 8-bit image, got 'mode I;16'"):
        folder(str(tmp_path))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one folder per class"):
        folder(str(tmp_path))
    with pytest.raises(DataError, match="an existing folder"):
        folder(str(tmp_path / "none"))


@pytest.mark.parametrize("options", [{"channels": 4}, {"fit": "pad"}, {"size": 0}])
def test_impossible_options(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} must be"):
        folder(str(tmp_path), **options)
