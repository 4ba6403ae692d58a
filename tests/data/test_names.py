"""References to data sets, and names of splits and system files."""

from __future__ import annotations

from pathlib import Path

import pytest

from robench.data.names import is_system, parse_data, split_of
from robench.errors import ConfigError
from robench.spec import Ref


@pytest.mark.parametrize("name", ["photos (1)", "my, photos", "photos(size=8)", "a=b", "(x)", "photos (1)(size=3)", "é (2)"])
def test_an_existing_path_wins_over_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for prefix in ("folder", "npz"):
        assert parse_data(f"{prefix}:{name}") == Ref(f"{prefix}:{name}")
        assert parse_data(f"{prefix}:{name}(size=32)") == Ref.of(f"{prefix}:{name}", size=32)
        assert parse_data(str(Ref.of(f"{prefix}:{name}", size=32, fit="crop"))) == Ref.of(
            f"{prefix}:{name}", size=32, fit="crop"
        )
        assert parse_data(f"{prefix}(path={name!r}, size=32)") == Ref.of(f"{prefix}:{name}", size=32)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("digits", Ref("digits")),
        ("cifar10(root='a (1)')", Ref.of("cifar10", root="a (1)")),
        ("folder:none(size=32)", Ref.of("folder:none", size=32)),
        ("folder:none (1)", Ref("folder:none (1)")),
        ("folder:none (1)(size=2, fit='a)b(c')", Ref.of("folder:none (1)", size=2, fit="a)b(c")),
        ("folder(path='none')", Ref("folder:none")),
        ("npz:x.npz(classes=('a', 'b'))", Ref.of("npz:x.npz", classes=("a", "b"))),
    ],
)
def test_references_are_read(text: str, ref: Ref) -> None:
    assert parse_data(text) == ref
    assert parse_data(str(ref)) == ref


@pytest.mark.parametrize(
    "text", ["folder:", "folder", "folder(size=3)", "folder(path='')", "folder:x(size=)", "folder:x(size=open)"]
)
def test_bad_references_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_data(text)


def test_splits_are_known_as_people_write_them() -> None:
    known = {"Train": "train", "TRAINING": "train", "val": "validation", "Valid": "validation", "validation": "validation"}
    known |= {"dev": "validation", "Test": "test", "testing": "test", "eval": "test"}
    assert {name: split_of(name) for name in known} == known
    assert [split_of(name) for name in ("trains", "tests", "cat", "")] == [None] * 4


def test_system_files_are_known() -> None:
    names = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", ".DS_Store", "Thumbs.db", "._im.png", "a.jpg:Zone.Identifier"]
    names += ["SYNOPHOTO_THUMB_M.jpg", "desktop.ini", "$RECYCLE.BIN", "#recycle", "lost+found"]
    assert all(is_system(name) for name in names)
    assert not any(is_system(name) for name in ["cat", "a.jpg", "synology.jpg", "macosx", "thumbs.jpg", "a.b"])
