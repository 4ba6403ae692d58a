"""CIFAR archives in both layouts, written by hand; pickles that try to run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robench.data._pickles import read_pickle
from robench.data.cifar import cifar10, cifar100
from robench.errors import ConfigError, DataError

N = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 3072), dtype=np.uint8)
LABELS = [3, 9, 0, 3]


def binary(labels: list[int], pixels: np.ndarray = PIXELS, *, coarse: bool = False) -> bytes:
    return b"".join((b"\x13" if coarse else b"") + bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True))


def pickled(protocol: int = 2, **entries: Any) -> bytes:
    """A batch as Python 3 writes it, keys as bytes like the official ones."""
    return pickle.dumps({k.encode(): v for k, v in entries.items()}, protocol=protocol)


def python2_batch(labels: list[int], pixels: np.ndarray) -> bytes:
    """The opcodes that Python 2 and numpy 1 wrote into the official files: str, not bytes, and numpy.core."""
    raw = pixels.tobytes()
    rows, columns = pixels.shape
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + b"M" + rows.to_bytes(2, "little") + b"M" + columns.to_bytes(2, "little") + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([y]) for y in labels) + b"e",
            b"u.",
        ]
    )


def check(data: Any, labels: list[int], pixels: np.ndarray = PIXELS) -> None:
    expected = pixels.reshape(-1, 3, 32, 32)
    assert np.array_equal((data.images() * 255).round().to(torch.uint8).numpy(), expected)
    assert data.labels.tolist() == labels
    assert data.ids.tolist() == list(range(len(labels)))
    assert data.spec.shape == (3, 32, 32)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_binary_layout(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / "test_batch.bin").write_bytes(binary(LABELS))
    data = cifar10(root=str(tmp_path))
    check(data, LABELS)
    assert data.spec.classes[3] == "cat"
    assert "Krizhevsky" in data.spec.citation
    assert data.spec.licence


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int, order: Any) -> None:
    (tmp_path / "test_batch").write_bytes(pickled(protocol, data=np.array(PIXELS, order=order), labels=LABELS))
    check(cifar10(root=str(tmp_path)), LABELS)


def test_pickle_of_python_2_in_the_official_folder(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    path.write_bytes(python2_batch(LABELS, PIXELS))
    check(cifar10(root=str(tmp_path)), LABELS)
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="bytes")[b"data"], PIXELS)


def test_both_layouts_have_the_same_hash(tmp_path: Path) -> None:
    for name, content in (("a/test_batch.bin", binary(LABELS)), ("b/test_batch", pickled(data=PIXELS, labels=LABELS))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    assert cifar10(root=str(tmp_path / "a")).spec.sha256 == cifar10(root=str(tmp_path / "b")).spec.sha256


def test_training_batches_are_joined_in_order(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(binary([i], PIXELS[i : i + 1]))
    check(cifar10(split="train", root=str(tmp_path)), [1, 2, 3], PIXELS[1:])
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"without a gap, got 'no data_batch_2\.bin'"):
        cifar10(split="train", root=str(tmp_path))


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    fine = [0, 99, 42, 7]
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(binary(fine, coarse=True))
    data = cifar100(root=str(tmp_path))
    check(data, fine)
    assert [data.spec.classes[y] for y in fine] == ["apple", "worm", "leopard", "beetle"]
    assert len(set(data.spec.classes)) == 100
    assert list(data.spec.classes) == sorted(data.spec.classes)


def test_cifar100_pickled(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(pickled(data=PIXELS, fine_labels=LABELS, coarse_labels=[0] * N))
    check(cifar100(split="train", root=str(tmp_path)), LABELS)


def test_missing_files_say_what_and_where_from(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10(root=str(tmp_path))
    assert "test_batch.bin or test_batch" in str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in str(caught.value)
    with pytest.raises(ConfigError, match="split must be"):
        cifar10(split="validation", root=str(tmp_path))


@pytest.mark.parametrize("content", [b"", binary(LABELS)[:-1], binary(LABELS, coarse=True)])
def test_binary_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match="positive multiple of 3073 bytes"):
        cifar10(root=str(tmp_path))


def test_binary_label_out_of_range_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(binary([0, 1, 10, 2]))
    with pytest.raises(DataError, match="10 at row 2"):
        cifar10(root=str(tmp_path))


BAD_BATCHES: dict[str, bytes] = {
    "no data": pickled(labels=LABELS),
    "no labels": pickled(data=PIXELS),
    "other dtype": pickled(data=PIXELS.astype(np.int32), labels=LABELS),
    "other width": pickled(data=PIXELS[:, :10], labels=LABELS),
    "fewer labels": pickled(data=PIXELS, labels=LABELS[:2]),
    "labels of text": pickled(data=PIXELS, labels=["a"] * N),
    "a list": pickle.dumps([1, 2], protocol=2),
    "truncated": pickled(data=PIXELS, labels=LABELS)[:-100],
    "empty": b"",
    "web page": b"<!DOCTYPE html>",
    "short array": python2_batch(LABELS, PIXELS).replace(b"M\x04\x00M", b"M\x05\x00M"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_bad_pickles_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "test_batch").write_bytes(BAD_BATCHES[kind])
    with pytest.raises(DataError):
        cifar10(root=str(tmp_path))


class Runs:
    """Pickles as a call of ``os.mkdir``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_cannot_run_code(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "test_batch").write_bytes(pickled(protocol, data=Runs(tmp_path / "made"), labels=LABELS))
    with pytest.raises(DataError, match="it may run code"):
        cifar10(root=str(tmp_path))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(U\x031+1tR.", "builtins.eval"),
        (b"cos\nsystem\n(U\x04truetR.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dot\x93.", "numpy.ndarray.dot"),
        (b"cnumpy\nload\n(U\x01xtR.", "numpy.load"),
        (b"inumpy.testing\nrundocs\n.", "numpy.testing.rundocs"),
        (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
    ],
)
def test_names_outside_the_list_are_named(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(content if content[:1] != b"i" else b"(" + content)
    with pytest.raises(DataError, match="plain arrays, lists and dictionaries") as caught:
        read_pickle(path)
    assert repr(name) in str(caught.value)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickled(data=np.array([1, "a"], dtype=object)))
    with pytest.raises(DataError, match="type of a pickled array must be a number type, got 'O8'"):
        read_pickle(path)


def test_arrays_of_every_number_type_and_byte_order_come_back(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    arrays = [np.arange(6).reshape(2, 3).astype(code) for code in ("u1", "<i2", ">i4", ">f8", "<f4", "?")]
    for array in arrays:
        path.write_bytes(pickled(data=array))
        found = read_pickle(path)["data"]
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
