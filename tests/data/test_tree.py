"""Folders as people, phones, NAS and browsers make them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robench.data._folder import folder
from robench.errors import ConfigError, DataError
from robench.workshop import read_split


def draw(path: Path, shade: int = 0, **options: object) -> Path:
    """A grey picture of 4 x 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), shade, dtype=np.uint8)).save(path, **options)
    return path


def tree(root: Path, *names: str) -> str:
    for i, name in enumerate(names):
        draw(root / name, i)
    return str(root)


def test_numbers_are_counted_and_a_missing_class_shifts_nothing(tmp_path: Path) -> None:
    path = tree(tmp_path, *(f"train/{i}/a.png" for i in range(12)), *(f"test/{i}/a.png" for i in range(12) if i != 3))
    test = folder(path)
    assert test.spec.classes == tuple(str(i) for i in range(12))
    assert test.labels.tolist() == [i for i in range(12) if i != 3]
    assert any("1 classes without an image in test (3)" in note for note in test.spec.notes)
    assert folder(path, order="text").spec.classes == tuple(sorted(test.spec.classes))
    assert folder(path, order="text").spec.sha256 != test.spec.sha256


@pytest.mark.parametrize("names", [("Train", "Val", "Test"), ("training", "valid", "testing"), ("TRAIN", "dev", "eval")])
def test_splits_are_known_as_people_write_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tree(tmp_path, *(f"{split}/{name}/a.png" for split in names for name in ("cat", "dog")))
    for split in ("train", "validation", "test"):
        data = folder(path, split=split)
        assert data.spec.splits == ("train", "validation", "test") and data.spec.classes == ("cat", "dog")


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, "test/cat/a.png", "val/cat/a.png", "valid/cat/b.png")
    with pytest.raises(ConfigError, match="one folder, got 'val and valid'"):
        folder(path)


def test_an_unclear_layout_must_be_said(tmp_path: Path) -> None:
    path = tree(tmp_path, "train/steam/a.png", "bus/a.png", "car/a.png")
    with pytest.raises(DataError, match="got 'train beside bus, car'; say layout='classes'"):
        folder(path)
    assert folder(path, layout="classes").spec.classes == ("bus", "car", "train")


def test_a_folder_without_test_says_what_to_name(tmp_path: Path) -> None:
    path = tree(tmp_path, "train/cat/a.png", "val/cat/a.png")
    with pytest.raises(
        ConfigError, match=r"a folder with train, val\"?'?; name the folder to evaluate on, e\.g\. folder:.*val"
    ):
        folder(path)


def test_system_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    names = ["cat/a.png", "dog/a.png", "__MACOSX/cat/a.png", "@eaDir/x/a.png", "cat/@eaDir/SYNOPHOTO_THUMB_M.png"]
    names += ["dog/.ipynb_checkpoints/a-checkpoint.png", ".hidden/a.png", "cat/._a.png", "cat/SYNOPHOTO_FILM.png"]
    path = tree(tmp_path, *names)
    for name in ("cat/.DS_Store", "Thumbs.db", "dog/a.png:Zone.Identifier", "cat/notes.txt", "readme.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    data = folder(path)
    assert data.spec.classes == ("cat", "dog") and data.labels.tolist() == [0, 1]
    read, empty = data.spec.notes
    told = "10 of the system (.hidden, @eaDir, ...), 2 no image file (cat/notes.txt, readme.md)"
    assert read == f"read 2 of 14 files of folder:{path}; left out: {told}"
    assert empty == "1 folders without an image are no classes (empty)"


def test_every_format_is_read_or_counted(tmp_path: Path) -> None:
    for i, suffix in enumerate(
        (".jfif", ".jpe", ".JPG", ".avif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".png")
    ):
        kind = {"format": "JPEG"} if suffix in (".jfif", ".jpe") else {}
        draw(tmp_path / "a" / f"{i}{suffix}", 10 * i, **kind)
    (tmp_path / "a" / "x.heic").write_bytes(b"x")
    data = folder(str(tmp_path))
    assert len(data) == 12
    assert "read 12 of 13 files" in data.spec.notes[0] and "1 of a format that is not decoded (x.heic)" in data.spec.notes[
        0
    ].replace("a/", "")
    assert abs(data.images()[:, 0, 0, 0] * 255 - 10 * np.array([0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])).max() < 4


def test_damaged_images_are_refused_or_counted(tmp_path: Path) -> None:
    path = tree(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    big.save(tmp_path / "a" / "cut.jpg")
    whole = (tmp_path / "a" / "cut.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"cut\.jpg must be a readable image.*\(and 1 more such images\).*damaged='skip'"):
        folder(path)
    data = folder(path, damaged="skip")
    assert len(data) == 3
    assert data.spec.notes[0].endswith("left out: 2 damaged (a/cut.jpg, b/text.png)")


def test_exif_orientation_is_applied_unless_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :3] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    turned, stored = folder(str(tmp_path)), folder(str(tmp_path), exif="ignore")
    assert turned.spec.shape == (3, 6, 4) and stored.spec.shape == (3, 4, 6)
    assert np.array_equal(turned.images()[0].permute(1, 2, 0).numpy() * 255, np.rot90(pixels, -1))
    assert turned.spec.sha256 != stored.spec.sha256
    assert "1 of these images are turned upright by their EXIF orientation (a/1.png)" in turned.spec.notes
    assert "1 of these images keep their stored orientation against EXIF (a/1.png)" in stored.spec.notes


def test_both_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    path = tree(tmp_path, f"train/{forms[0]}/a.png", "train/dog/a.png", f"test/{forms[1]}/a.png", f"test/{forms[0]}/b.png")
    assert folder(path).spec.classes == (forms[0], "dog")
    assert folder(path).labels.tolist() == [0, 0]


def test_one_class_in_two_spellings_is_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, "train/Cat/a.png", "train/dog/a.png", "test/cat/a.png", "test/dog/a.png")
    with pytest.raises(DataError, match="spelled alike in all splits, got 'Cat in train, cat in test'"):
        folder(path)
    both = tree(tmp_path / "letters", "A/1.png", "a/1.png")
    assert folder(both).spec.classes == ("A", "a")


def test_links_are_followed_safely_and_counted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = tree(home, "cat/a.png", "dog/a.png")
    tree(tmp_path / "elsewhere", "b.png", "c.png")
    (home / "horse").symlink_to(tmp_path / "elsewhere")
    (home / "cat" / "loop").symlink_to(home / "cat")
    (home / "cat" / "again.png").symlink_to(home / "cat" / "a.png")
    (home / "dog" / "broken.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(home / "dog" / "pipe.png")
    data = folder(path)
    assert data.spec.classes == ("cat", "dog", "horse") and data.labels.tolist() == [0, 1, 2, 2]
    notes = " ".join(data.spec.notes)
    for part in ("read 4 of 8 files", "1 link back to a folder above (cat/loop)", "1 broken link (dog/broken.png)"):
        assert part in notes
    assert "1 link to a file read already (cat/again.png)" in notes or "1 link to a file read already (cat/a.png)" in notes
    assert "1 no regular file (dog/pipe.png)" in notes and "1 links out of the folder were followed (horse)" in notes


def test_one_file_under_two_classes_is_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, "cat/a.png", "dog/a.png")
    (tmp_path / "dog" / "b.png").symlink_to(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match="each of one class"):
        folder(path)


def test_a_class_list_and_map_reach_the_labels(tmp_path: Path) -> None:
    path = tree(tmp_path / "photos (1)", "cat/a.png", "dog/a.png")
    names = tmp_path / "names.txt"
    names.write_text("dog\nhorse\ncat\n")
    own = read_split(f"folder:{path}", "test")
    listed = read_split(f"folder:{path}(classes={str(names)!r})", "test")
    assert listed.labels.tolist() == [2, 0] and listed.spec.classes == ("dog", "horse", "cat")
    mapped = read_split(f"folder(path={path!r}, class_map=(('cat', 281), ('dog', 207)))", "test")
    assert mapped.labels.tolist() == [281, 207] and mapped.spec.open_classes
    names.write_text("dog\ncat\n")
    changed = read_split(f"folder:{path}(classes={str(names)!r})", "test")
    assert len({data.spec.sha256 for data in (own, listed, mapped, changed)}) == 4


def test_unknown_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    for text in ("digits(x=1)", f"folder:{tree(tmp_path, 'a/1.png')}(sise=3)"):
        with pytest.raises(ConfigError, match="an argument of"):
            read_split(text, "test")


@pytest.mark.parametrize(
    "folders", [("train_set", "test_set"), ("train2017", "val2017"), ("Training images", "eval-images", "x")]
)
def test_folders_that_look_like_splits_are_no_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    place = tree(tmp_path, *(f"{name}/{pet}/1.png" for name in folders for pet in ("cat", "dog")))
    with pytest.raises(DataError, match=r"rename .* to 't.*layout='classes'"):
        read_split(f"folder:{place}", "test")
    assert set(read_split(f"folder:{place}(layout='classes')", "test").spec.classes) == set(folders)


def test_a_class_may_be_called_after_a_split(tmp_path: Path) -> None:
    place = tree(tmp_path, "test tube/1.png", "train station/1.png", "cat/1.png")
    assert read_split(f"folder:{place}", "test").spec.classes == ("cat", "test tube", "train station")
    place = tree(tmp_path / "nested", "test tube/old/1.png", "cat/1.png", "dog/1.png")
    assert read_split(f"folder:{place}", "test").spec.classes == ("cat", "dog", "test tube")
