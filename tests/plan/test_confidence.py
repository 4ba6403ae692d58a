"""Sections ``ood`` and ``calibration`` of a suite: their cells, what is built once, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from robench.errors import ConfigError, DataError
from robench.ood import TABLE
from robench.plan import Plan, Sources, expand
from robench.plan.ood import named_data, read_as
from robench.sources import other_data
from robench.spec import Artifact, Ref
from robench.suite import parse_suite

MODELS = {n: Artifact("model", Ref.of("zoo", name=n), label=n) for n in ("digits-standard", "digits-pgd-at")}
SPLITS = {"train": "a", "validation": "b", "test": "c"}
SUITE = """
name: t
limit: 50
models: [digits-standard, digits-pgd-at]
threats: [linf(0.1)]
corruption: {names: [gaussian_noise]}
ood: {sources: [glyphs(detail=8), noise], attack: pgd(steps=5)}
calibration: {split: validation, corruptions: [gaussian_noise], attack: pgd(steps=5)}
"""


def plan(text: str = SUITE, *, splits=SPLITS, **more) -> Plan:
    return expand(parse_suite(text), Sources("digits", "digits", splits, MODELS, shape=(1, 32, 32), **more))


def cells(found: Plan, name: str):
    return [c for c in found.cells if c.scenario.name == name]


def test_cells_and_what_is_built_in_closed_form():
    found = plan()
    counts = found.counts()
    assert (counts["ood"], counts["calibration"], counts["build attacked"]) == (4, 2, 2)
    # per model: test, train (clean rows), train (fitted detectors), validation, the corruption, two sources
    built = Counter(a.builder.name for level in found.levels for a in level)
    assert built["predictions"] <= 2 * 7 and built["corrupted"] == 1
    for cell in cells(found, "ood"):
        assert cell.scenario.kwargs["detectors"] == tuple(sorted(TABLE)) and cell.scenario.kwargs["fitted"]
        assert cell.extra[0].inputs[1].builder.kwargs["split"] == "train"
    for cell in cells(found, "calibration"):
        assert cell.scenario.kwargs["sources"] == ("clean", "gaussian_noise(3)", "pgd linf(0.1)")
        assert cell.extra[0].inputs[1].builder.kwargs["split"] == "validation"


def test_without_the_sections_nothing_is_planned():
    found = plan(SUITE.partition("ood:")[0])
    assert not cells(found, "ood") and not cells(found, "calibration")


def test_nothing_is_fitted_on_test_images():
    for split in ("test", "tset"):
        with pytest.raises(ConfigError, match="validation or train"):
            plan(SUITE.replace("split: validation", f"split: {split}"))


def test_a_data_set_without_validation_images_takes_training_images_and_says_so():
    found = plan(splits={"train": "a", "test": "c"})
    (one, _) = cells(found, "calibration")
    assert one.scenario.kwargs["split"] == "train" and one.extra[0].inputs[1].builder.kwargs["split"] == "train"
    assert any("training images are taken" in note for note in found.notes)


def test_a_corruption_that_does_not_apply_is_left_out_and_said():
    found = plan(SUITE.replace("corruptions: [gaussian_noise]", "corruptions: [gaussian_noise, saturate]"))
    assert all("saturate" not in str(c.scenario) for c in cells(found, "calibration"))
    assert any("saturate" in note for note in found.notes)


def test_a_data_set_of_test_images_only_leaves_out_what_is_fitted_and_says_so():
    found = plan(splits={"test": "c"})
    assert not cells(found, "calibration") and any("temperature scaling" in n for n in found.notes)
    assert not any(c.scenario.kwargs["fitted"] for c in cells(found, "ood")) and any("fitted on" in n for n in found.notes)
    assert len(cells(found, "ood")[0].extra) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", noise]", ", nois]", "did you mean 'noise'"),
        ("[glyphs(detail=8)", "[glyphs(detial=8)", "detail"),
        ("ood: {", "ood: {detectors: [mps], ", "did you mean 'msp'"),
        ("ood: {", "ood: {detectors: [knn(n=5)], ", "known: k|'k'"),
        (", noise]", ", noise, noise]", "different"),
        (", noise], attack: pgd(steps=5)", ", noise], attack: robench-standard", "single one"),
        (", noise], attack: pgd(steps=5)", ", noise], attack: transfer(source='digits-standard')", "single one"),
        (", noise], attack: pgd(steps=5)", ", noise], attack: pgd(steps=5), threat: l0(3)", "of norm"),
        ("threats: [linf(0.1)]", "threats: []", "add threats"),
        ("corruptions: [gaussian_noise]", "corruptions: [gaussian_nois]", "gaussian_noise"),
        (", noise], attack", ", birds=folder:/nowhere], attack", "read before planning"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(old, new, message):
    with pytest.raises(ConfigError, match=message):
        plan(SUITE.replace(old, new))


def test_versions_of_detectors_and_sources_are_part_of_their_cells(monkeypatch):
    from robench import catalog

    before = {c.digest for c in cells(plan(), "ood")}
    for table, name in ((catalog.DETECTORS, "knn"), (catalog.OOD_SOURCES, "noise")):
        monkeypatch.setitem(table[name].__dict__, "facts", {**table[name].facts, "version": 99})
        changed = {c.digest for c in cells(plan(), "ood")}
        assert before - changed
        monkeypatch.undo()


def test_a_user_s_data_are_named_and_read_in_the_shape_of_the_images():
    assert named_data("birds=folder:/a b/c") == ("birds", "folder:/a b/c")
    assert named_data("glyphs(detail=8)") == ("glyphs(detail=8)", "")
    assert read_as("folder:/x", (1, 32, 32)) == "folder:/x(channels=1, size=32)"
    assert read_as("folder:/x(size=8)", (1, 32, 32)) == "folder:/x(channels=1, size=8)"
    files = {"folder:/x(channels=1, size=32)": "hash"}
    found = plan(SUITE.replace(", noise], attack", ", 'birds=folder:/x'], attack"), files=files)
    one = next(c for c in cells(found, "ood") if "birds" in c.scenario.kwargs["sources"])
    images = one.extra[-1].inputs[1]
    assert images.version == "hash" and images.builder.kwargs["source"] == "folder:/x(channels=1, size=32)"


@pytest.fixture
def folder(tmp_path):
    def make(*classes: str, size: int = 20):
        for name in classes:
            (tmp_path / name).mkdir()
            for i in range(3):
                pixels = np.full((size, size, 3), 40 * i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        return f"folder:{tmp_path}"

    return make


def test_a_folder_of_other_classes_is_hashed_in_the_shape_of_the_data(folder):
    text = folder("cat", "dog")
    found, notes = other_data("digits", [text])
    ((read, content),) = found.items()
    assert notes == (f"read 6 of 6 files of {text}",)
    assert read == read_as(text, (1, 32, 32)) and len(content) > 60


def test_a_folder_that_shares_a_class_with_the_data_is_refused(folder):
    with pytest.raises(DataError, match=r"none of those of digits, got \['7'\]"):
        other_data("digits", [folder("cat", "7")])


def test_a_folder_of_another_shape_is_refused(folder):
    with pytest.raises(DataError, match="resize"):
        other_data("digits", [folder("cat") + "(size=16)"])


def test_a_folder_on_the_command_line_is_measured_and_an_overlap_ends_the_run(folder, tmp_path):
    from click.testing import CliRunner

    from robench.cli import main

    base = ["run", "--suite", "smoke", "--scenario", "ood", "--model", "digits-mlp", "--dry-run", "-v", "--ood"]
    text = folder("cat", "dog")
    told = CliRunner().invoke(main, [*base, f"pets={text}", "--ood", "noise"])
    assert told.exit_code == 0, told.output
    assert "'pets'" in told.output and "calibration" not in told.output
    refused = CliRunner().invoke(main, [*base, f"mixed={folder('3')}"])
    assert refused.exit_code == 2 and "out of distribution" in refused.output
