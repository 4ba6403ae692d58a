"""The agreement between the classes of data and of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robench.data.classes import MOST_CLASSES, agree, agreed, in_classes, mapping_line, natural, require_logits
from robench.data.names import parse_data
from robench.errors import ConfigError, ModelError
from robench.spec import DatasetSpec

PETS = ("cat", "dog", "horse")


def spec(classes: tuple[str, ...] = PETS, **more: object) -> DatasetSpec:
    return DatasetSpec("folder:pets", classes, (3, 8, 8), ("test",), sha256="0" * 64, **more)  # type: ignore[arg-type]


def test_integers_are_counted_and_names_sorted() -> None:
    numbers = [str(i) for i in range(12)]
    assert natural(sorted(numbers))[0] == tuple(numbers)
    assert natural(sorted(numbers), "text")[0] == tuple(sorted(numbers))
    assert natural(["10", "9", "b"])[0] == ("10", "9", "b")
    assert natural(["dog", "Emu", "cat"])[0] == ("Emu", "cat", "dog")
    with pytest.raises(ConfigError, match="integers, got 'b'"):
        natural(["1", "b"], "number")
    with pytest.raises(ConfigError, match="did you mean 'number'"):
        natural(["1"], "numbers")


LISTS = {
    "lines.txt": "zebra\nhorse\n\ndog\ncat\n",
    "list.json": json.dumps(["zebra", "horse", "dog", "cat"]),
    "imagenet.json": json.dumps({"3": ["n3", "cat"], "0": ["n0", "zebra"], "1": ["n1", "horse"], "2": ["n2", "dog"]}),
    "class_to_idx.json": json.dumps({"cat": 3, "dog": 2, "horse": 1, "zebra": 0}),
    "config.json": json.dumps({"id2label": {"0": "zebra", "1": "Horse", "2": "dog", "3": "cat"}, "other": 1}),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_class_list_gives_the_models_indices(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LISTS[name], encoding="utf-8")
    found = agree(PETS, classes=str(path))
    assert found.index == (3, 2, 1)
    assert found.classes[1:] == ("horse", "dog", "cat") and len(found.classes) == 4
    assert not found.open_classes


@pytest.mark.parametrize(
    "text", ["cat,7\ndog,0\nhorse,1\n", '{"cat": 7, "dog": 0, "horse": 1}', '[["cat", 7], ["dog", 0], ["horse", 1]]']
)
def test_a_class_map_gives_the_models_indices(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map"
    path.write_text(text)
    found = agree(PETS, class_map=str(path))
    assert found.index == (7, 0, 1) and found.open_classes
    assert found.classes[7] == "cat" and found.classes[3] == "output 3" and len(found.classes) == 8


def test_names_may_be_the_indices() -> None:
    assert agree(["0", "2", "11"], class_map="numbers").index == (0, 2, 11)
    with pytest.raises(ConfigError, match="integers, got 'cat, dog, horse'"):
        agree(PETS, class_map="numbers")


def test_names_agree_without_case_and_blanks() -> None:
    assert agree(["golden_retriever"], classes=["tench", "Golden Retriever"]).index == (1,)
    assert agree(["cafe\u0301"], classes=["x", "caf\u00e9"]).index == (1,)
    assert agree(["cat"], classes=["Cat", "cat"]).index == (1,)


def test_several_classes_may_share_an_output_by_a_map_only() -> None:
    found = agree(PETS, class_map={"cat": 1, "dog": 1, "horse": 0})
    assert found.index == (1, 1, 0) and found.classes == ("horse", "cat or dog")
    with pytest.raises(ConfigError, match="different in the class list"):
        agree(["a b", "a_b"], classes=["A B", "c"])


BAD = {
    "missing": ({"classes": ["cat", "dog"]}, "none for horse"),
    "suggested": ({"classes": ["cat", "dog", "horsey"]}, "did you mean 'horsey'"),
    "twice": ({"classes": ["cat", "dog", "horse", "cat"]}, "at indices 0, 3"),
    "no map": ({"class_map": {"cat": 0, "dog": 1}}, "none for horse"),
    "negative": ({"class_map": {"cat": -1, "dog": 1, "horse": 2}}, "an integer in 0..262143, got '-1'"),
    "huge": ({"class_map": {"cat": 2**62, "dog": 1, "horse": 2}}, f"an integer in 0..{MOST_CLASSES - 1}"),
    "no number": ({"class_map": {"cat": "x", "dog": 1, "horse": 2}}, "an integer"),
    "bool": ({"class_map": {"cat": True, "dog": 1, "horse": 2}}, "an integer"),
    "contradiction": ({"class_map": [("cat", 0), ("cat", 1)]}, "there once"),
    "both": ({"class_map": "numbers", "classes": ["a"]}, "given once"),
    "none": ({}, "given once"),
    "no file": ({"classes": "no such file"}, "readable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_classes_that_do_not_agree_are_refused(kind: str) -> None:
    given, text = BAD[kind]
    with pytest.raises(ConfigError, match=text):
        agree(PETS, **given)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "JSON"),
        ("[1, 2]", "a name, or several"),
        ("[]", "names in the order"),
        ('{"0": "cat", "2": "dog"}', "each once"),
        ("[[], []]", "a name, or several"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_files_that_are_no_class_list_are_refused(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=error):
        agree(PETS, classes=str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="readable"):
        agree(PETS, classes=str(path))


def test_the_agreement_is_part_of_the_identity() -> None:
    own = spec()
    lists = [agree(PETS, classes=list(names)) for names in (PETS, PETS[::-1], (*PETS, "zebra"))]
    maps = [agree(PETS, class_map=dict(zip(PETS, range(3), strict=True)))]
    hashes = {own.sha256, *(agreed(own, found).sha256 for found in lists + maps)}
    assert len(hashes) == 5


def test_outputs_must_be_the_classes() -> None:
    told = {"model": "net", "source": "folder:pets"}
    require_logits(spec(order="folder names"), 3, **told)
    for logits in (2, 4, 1000):
        with pytest.raises(ModelError, match=rf"must be 3 per image.*got {logits}; say which output .* --classes FILE"):
            require_logits(spec(order="folder names"), logits, **told)
    mapped = agreed(spec(), agree(PETS, class_map={"cat": 281, "dog": 207, "horse": 339}))
    require_logits(mapped, 1000, **told)
    with pytest.raises(ModelError, match="must be 340 per image, one for each class of folder:pets, or more, got 10"):
        require_logits(mapped, 10, **told)
    listed = agreed(spec(), agree(PETS, classes=[*PETS, "zebra"]))
    require_logits(listed, 4, **told)
    with pytest.raises(ModelError, match="must be 4 per image"):
        require_logits(listed, 1000, **told)


def test_the_mapping_is_one_line() -> None:
    line = mapping_line(spec(order="folder names in alphabetical order"))
    assert line == "classes: 0 = cat, 1 = dog, 2 = horse (folder names in alphabetical order)"
    assert mapping_line(spec()) == ""
    many = mapping_line(spec(tuple(f"name {i}" for i in range(1000)), order="x"))
    assert len(many) < 250 and "9 = name 9, ..., 999 = name 999" in many
    mapped = agreed(spec(), agree(PETS, classes=["zebra", *PETS, "emu"]))
    assert mapping_line(mapped) == "classes: 1 = cat, 2 = dog, 3 = horse (class list; 3 of the model's 5)"
    assert "\n" not in mapping_line(spec(("a\nb", "c\x1b[0m"), order="x"))


def test_references_carry_the_agreement() -> None:
    assert in_classes("digits") == "digits"
    assert in_classes("folder:x (1)(size=3)", "names.txt") == "folder:x (1)(classes='names.txt', size=3)"
    text = in_classes("digits", None, {"b": 1, "a": 0})
    assert parse_data(text).kwargs == {"class_map": (("a", 0), ("b", 1))}
