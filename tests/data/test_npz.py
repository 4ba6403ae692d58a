"""Archives of a user's own arrays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robench.data._npz import npz
from robench.data.classes import in_classes, require_logits
from robench.errors import ConfigError, DataError, ModelError
from robench.workshop import read_split

BYTES = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)
Y = np.array([2, 0, 1, 2])


def save(tmp_path: Path, **arrays: Any) -> str:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return str(path)


def test_nhwc_bytes(tmp_path: Path) -> None:
    data = npz(save(tmp_path, x=BYTES, y=Y))
    assert data.spec.shape == (3, 6, 5)
    assert np.array_equal(data.images().numpy(), (BYTES / 255).astype(np.float32).transpose(0, 3, 1, 2))
    assert data.labels.tolist() == Y.tolist()
    assert data.spec.classes == ("0", "1", "2")
    assert data.spec.splits == ("test",)
    assert data.spec.licence
    assert data.spec.citation


def test_all_layouts_give_the_same_images_and_hash(tmp_path: Path) -> None:
    grey = BYTES[..., :1]
    made = [npz(save(tmp_path, x=x, y=Y)) for x in (grey, grey.transpose(0, 3, 1, 2), grey[..., 0])]
    assert len({data.spec.sha256 for data in made}) == 1
    assert all(data.spec.shape == (1, 6, 5) for data in made)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats(tmp_path: Path, dtype: str) -> None:
    x = (BYTES / 1024).astype(dtype)
    assert np.array_equal(npz(save(tmp_path, x=x, y=Y)).images().numpy(), x.astype("f4").transpose(0, 3, 1, 2))


def test_ambiguous_layout_must_be_said(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.arange(4 * 27, dtype=np.uint8).reshape(4, 3, 3, 3), y=Y)
    with pytest.raises(DataError, match="layout of images must be clear from their shape"):
        npz(path)
    first, last = npz(path, layout="NCHW").images(), npz(path, layout="NHWC").images()
    assert np.array_equal(first.numpy(), last.numpy().transpose(0, 2, 3, 1))
    with pytest.raises(ConfigError, match="layout must be one of"):
        npz(path, layout="CHWN")
    with pytest.raises(DataError, match="laid out as NHW"):
        npz(path, layout="NHW")


def test_splits_share_their_classes(tmp_path: Path) -> None:
    path = save(tmp_path, x_train=BYTES, y_train=Y + 3, test_x=BYTES[:2], test_y=Y[:2, None])
    assert len(npz(path, split="train")) == 4
    test = npz(path)
    assert len(test) == 2
    assert test.spec.classes == ("0", "1", "2", "3", "4", "5")
    assert set(test.spec.splits) == {"train", "test"}
    with pytest.raises(DataError, match="x_extra, y_extra"):
        npz(path, split="extra")


def test_class_names_and_numbers(tmp_path: Path) -> None:
    assert npz(save(tmp_path, x=BYTES, y=Y), num_classes=7).spec.classes == tuple("0123456")
    named = save(tmp_path, x=BYTES, y=Y, classes=np.array(["cat", "dog", "emu"]))
    assert npz(named).spec.classes == ("cat", "dog", "emu")
    with pytest.raises(DataError, match="num_classes must be 3"):
        npz(named, num_classes=4)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "above one": ({"x": BYTES / 128, "y": Y}, "outside by"),
    "0..255 floats": ({"x": BYTES.astype("f4"), "y": Y}, "divide by 255"),
    "nan": ({"x": np.where(BYTES == 7, np.nan, 0.5), "y": Y}, "NaN or infinity in 2 images"),
    "int32": ({"x": BYTES.astype("i4"), "y": Y}, "uint8, or float in [0, 1], got 'int32'"),
    "flat": ({"x": BYTES.reshape(4, -1), "y": Y}, "clear from their shape"),
    "no images": ({"x": BYTES[:0], "y": Y[:0]}, "at least one"),
    "lengths": ({"x": BYTES[:3], "y": Y}, "as many, got (3, 4)"),
    "float labels": ({"x": BYTES, "y": Y / 4}, "labels must be integers"),
    "nan labels": ({"x": BYTES, "y": np.array([0, 1, np.nan, 2])}, "labels must be integers"),
    "one-based": ({"x": BYTES, "y": Y + 1}, "counted from 0, got 'exactly 1..3'; say npz:"),
    "one-based with names": ({"x": BYTES, "y": Y + 1, "classes": np.array(["a", "b", "c"])}, "(first_label=1) if"),
    "huge": ({"x": BYTES, "y": Y + 2**62}, "labels must be in 0..262143"),
    "huge unsigned": ({"x": BYTES, "y": np.array([2**64 - 1, 0, 1, 2], dtype=np.uint64)}, "labels must be in 0..262143"),
    "very negative": ({"x": BYTES, "y": Y - 2**62}, "labels must be in"),
    "twice": ({"x": BYTES, "y": Y, "classes": np.array(["a", "b", "a"])}, "'a' twice"),
    "names in rows": ({"x": BYTES, "y": Y, "classes": np.array([["a"], ["b"], ["c"]])}, "one row of"),
    "two validation sets": ({"x_val": BYTES, "y_val": Y, "x_valid": BYTES, "y_valid": Y}, "x_val and x_valid"),
    "one-hot": ({"x": BYTES, "y": np.eye(3, dtype=int)[Y]}, "labels must be integers of shape (N,)"),
    "negative": ({"x": BYTES, "y": Y - 1}, "at least 0, got '-1 at row 1"),
    "beyond names": ({"x": BYTES, "y": Y, "classes": np.array(["a", "b"])}, "2 at row 0"),
    "objects": ({"x": BYTES, "y": np.array([0, 1, "a", None], dtype=object)}, "without pickled objects"),
    "other names": ({"images": BYTES, "labels": Y}, "an archive with images, labels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_archives_are_refused(tmp_path: Path, kind: str) -> None:
    arrays, text = BAD[kind]
    with pytest.raises(DataError) as caught:
        npz(save(tmp_path, **arrays))
    assert text in str(caught.value)


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an existing file"):
        npz(str(tmp_path / "none.npz"))
    whole = Path(save(tmp_path, x=BYTES, y=Y)).read_bytes()
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, BYTES)
    contents = {"text": b"hello", "empty": b"", "cut": whole[:-30], "single": single.read_bytes()}
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="npz file without pickled objects"):
            npz(str(path))


def test_labels_may_count_from_one_and_be_whole_floats(tmp_path: Path) -> None:
    path = save(tmp_path, x=BYTES, y=Y + 1)
    assert npz(path, first_label=1).labels.tolist() == Y.tolist()
    assert npz(path, first_label=1).spec.classes == ("0", "1", "2")
    assert npz(path, num_classes=4).labels.tolist() == (Y + 1).tolist()
    named = save(tmp_path, x=BYTES, y=(Y + 1).astype("f4"), classes=np.array([b"a", b"b", b"c"]))
    assert npz(named, first_label=1).spec.classes == ("a", "b", "c")
    with_background = save(tmp_path, x=BYTES, y=Y + 1, classes=np.array(["none", "a", "b", "c"]))
    assert npz(with_background).labels.tolist() == (Y + 1).tolist()


def test_splits_are_named_as_people_write_them(tmp_path: Path) -> None:
    path = save(tmp_path, x_Train=BYTES, y_Train=Y, x_val=BYTES[:2], y_val=Y[:2], eval_x=BYTES, eval_y=Y)
    assert set(npz(path).spec.splits) == {"train", "validation", "test"}
    assert len(npz(path, split="validation")) == 2


def test_names_of_classes_are_part_of_the_hash(tmp_path: Path) -> None:
    one = npz(save(tmp_path, x=BYTES, y=Y, classes=np.array(["a", "b", "c"]))).spec.sha256
    assert one != npz(save(tmp_path, x=BYTES, y=Y, classes=np.array(["b", "a", "c"]))).spec.sha256


def test_enormous_headers_are_refused_without_memory(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "own.npz"
    header = repr({"descr": "<f8", "fortran_order": False, "shape": (2**47,)}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("y", b"no array")
    with pytest.raises(DataError, match="npz file without pickled objects"):
        npz(str(path))


@pytest.mark.parametrize(
    ("labels", "args", "logits", "images"),
    [
        ((1, 2, 3, 1), "", None, (0, 1, 2, 0)),
        ((1, 2, 3, 1), "layout='NHWC'", None, (0, 1, 2, 0)),
        ((1, 3, 4, 1), "", 4, (0, 2, 3, 0)),
        ((1, 3, 4, 1), "", 10, (1, 3, 4, 1)),
        ((1, 3, 4, 1), "first_label=1", 10, (0, 2, 3, 0)),
        ((1, 2, 3, 1), "layout='NHWC', first_label=1", 10, (0, 1, 2, 0)),
    ],
)
def test_every_remedy_that_is_a_reference_works_and_keeps_the_arguments(
    tmp_path: Path, labels: tuple[int, ...], args: str, logits: int | None, images: tuple[int, ...]
) -> None:
    """The text after ``say`` is given as it stands; the first is tried, which fits these labels."""
    source = f"npz:{save(tmp_path, x=BYTES, y=np.array(labels))}({args})".removesuffix("()")
    with pytest.raises((DataError, ModelError)) as refused:
        require_logits(read_split(source, "test").spec, logits or 3, model="net", source=source)
    assert refused.value.exit_code == 2
    way = re.search(r"say (npz:\S+?\(.*?\))", str(refused.value))
    assert way and all(arg in way[1] for arg in args.split(", "))
    data = read_split(way[1], "test")
    require_logits(data.spec, logits or 3, model="net", source=way[1])
    assert data.labels.tolist() == list(images)


def test_a_class_map_names_only_the_labels_that_there_are(tmp_path: Path) -> None:
    source = f"npz:{save(tmp_path, x=BYTES, y=np.array((1, 3, 4, 1)))}"
    assert read_split(source, "test").spec.used == (1, 3, 4)
    mapped = read_split(in_classes(source, None, {"1": 0, "3": 1, "4": 2}), "test")
    require_logits(mapped.spec, 3, model="net", source=source)
    assert mapped.labels.tolist() == [0, 1, 2, 0] and mapped.spec.classes == ("1", "3", "4")
    with pytest.raises(ConfigError, match="none for 4"):
        read_split(in_classes(source, None, {"1": 0, "3": 1, "0": 2}), "test")
