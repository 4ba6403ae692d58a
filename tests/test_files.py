"""Files of robench's own: names nobody can prepare, a lock that changes nothing, foreign files untouched."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from robench.errors import StoreError
from robench.files import exclusive, remove_temporary, write_atomically
from robench.store import Store

OWN = ".x.json.0123456789abcdef.robench-tmp"


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("nine byte")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(StoreError, match="a symbolic link"), Store(tmp_path / "run").locked():
        pass
    assert target.read_text() == "nine byte"


@pytest.mark.parametrize("kind", ["file", "fifo", "folder"])
def test_a_lock_changes_nothing_that_was_there(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    if kind == "file":
        path.write_text("kept")
        with exclusive(path, what="it"):
            assert path.read_text() == "kept"
        return
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(StoreError), exclusive(path, what="it"):
        pass


def test_a_second_holder_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive(lock, what="it"), pytest.raises(StoreError, match="one run at a time"), exclusive(lock, what="it"):
        pass
    with exclusive(lock, what="it"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_as_such(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="without locks"), exclusive(tmp_path / ".lock", what="it"):
        pass


@pytest.mark.parametrize("folder", ["cells", "evidence", "failed", "artifacts"])
def test_folders_of_a_run_that_are_links_are_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{folder}.*symbolic link"), Store(tmp_path / "run").locked():
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_directory_may_be_a_link_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with Store(tmp_path / "run").locked():
        assert (tmp_path / "disk" / "cells").is_dir()


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    """Only names of robench's own, only in its own folders, never through links."""
    foreign = [".notes.tmp", ".x.123.tmp", "a.tmp", ".x.json.0123456789abcdef.tmp", "0123456789abcdef.robench-tmp"]
    places = [tmp_path, tmp_path / "cells", tmp_path / "photos", tmp_path / "photos" / "deep"]
    for place in places:
        place.mkdir(exist_ok=True)
        for name in foreign:
            (place / name).write_text("theirs")
    (tmp_path / "photos" / OWN).write_text("not in a folder of the run")
    (tmp_path / "cells" / OWN.replace("x", "link")).symlink_to(tmp_path / "a.tmp")
    (tmp_path / "cells" / OWN).write_text("half")
    Store(tmp_path).clean_temporary()
    assert not (tmp_path / "cells" / OWN).exists()
    assert (tmp_path / "photos" / OWN).exists() and (tmp_path / "cells" / OWN.replace("x", "link")).is_symlink()
    assert all((place / name).read_text() == "theirs" for place in places for name in foreign)


def test_half_written_artifacts_are_removed(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "abc").mkdir(parents=True)
    (tmp_path / "artifacts" / "abc" / OWN).write_text("half")
    Store(tmp_path).clean_temporary()
    assert not list((tmp_path / "artifacts" / "abc").iterdir())


def test_links_at_the_target_are_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "report.html").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "report.html", b"new")
    assert (tmp_path / "precious").read_text() == "kept" and (tmp_path / "report.html").read_bytes() == b"new"
    assert not (tmp_path / "report.html").is_symlink()


def test_temporary_names_cannot_be_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a guessed name is not followed: the file is made anew or not at all."""
    monkeypatch.setattr("robench.files.secrets.token_hex", lambda _: "0123456789abcdef")
    (tmp_path / "precious").write_text("kept")
    (tmp_path / OWN).symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError):
        write_atomically(tmp_path / "x.json", b"new")
    assert (tmp_path / "precious").read_text() == "kept"


def test_every_write_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, other: (names.add(self.name), replace(self, other))[1])
    for _ in range(5):
        write_atomically(tmp_path / "x.json", b"{}")
    assert len(names) == 5
    remove_temporary([tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
