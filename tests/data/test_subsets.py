from __future__ import annotations

import pytest

from robench.data.subsets import positions, read_groups, read_reference
from robench.errors import DataError


def test_classes_are_matched_by_name():
    assert positions(("dog", "cat"), ("cat", "bird", "dog"), of="s") == [2, 0]
    with pytest.raises(DataError, match=r"the classes of the shift s must be classes of the data set, got 'brid'.*bird"):
        positions(("cat", "brid"), ("cat", "bird"), of="s")
    with pytest.raises(DataError, match="two or more"):
        positions(("cat",), ("cat", "bird"), of="s")


def test_groups_and_reference_models_are_read(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("\ufeffgroup,sample,more\nday,3,x\n night ,4,y\n", encoding="utf-8")
    assert read_groups(path) == {3: "day", 4: "night"}
    path.write_text("clean,shifted\n0.9,0.5\n", encoding="utf-8")
    assert read_reference(path) == [(0.9, 0.5)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sample,color\n1,a\n", "the columns of .* must be sample,group"),
        ("sample,group\nx,a\n", "sample in line 2 of .* must be an integer id"),
        ("sample,group\n1,a\n1,b\n", "line 3 of .* must be a sample named once"),
        ("sample,group\n1,\n", "line 2 of .* must be a sample named once, with a group"),
        ("sample,group\n1\n", "line 2 of .* must be a sample named once, with a group"),
        ("", "the columns of"),
    ],
)
def test_bad_groups_are_refused(text, told, tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read_groups(path)


def test_bad_references_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "reference.csv"
    path.write_text("clean,shifted\nhigh,0.5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 of .* must be two numbers"):
        read_reference(path)
    with pytest.raises(DataError, match="a readable CSV file"):
        read_groups(tmp_path / "none.csv")
