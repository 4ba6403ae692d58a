"""Nothing is trained, fitted or calibrated on a test image, whatever split or id it comes under."""

from __future__ import annotations

import numpy as np
import pytest

import robench
from robench import workshop
from robench.api import load
from robench.builders.apart import apart_from_test
from robench.errors import DataError, ModelError
from robench.metrics.table import tidy
from robench.reports.audit import audit
from robench.reports.page import page
from robench.sources import resolve_sources
from robench.spec import Artifact, Ref
from robench.store import Store
from robench.suite import parse_suite

BASE = Artifact("model", Ref.of("zoo", name="digits-standard"), label="digits-standard")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=100), label="digits")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=30), label="digits")


def leaking(tmp_path, *, shared: int, count: int = 60) -> Artifact:
    """A training split that has some of the test images, under other ids."""
    digits = workshop.read_split("digits", "test")
    rng = np.random.Generator(np.random.Philox(key=3))
    pixels = (digits.images()[:40, 0] * 255).round().byte().numpy()
    other = rng.integers(0, 256, (count, *pixels.shape[1:]), dtype=np.uint8)
    train = np.concatenate([other[: count - shared], pixels[:shared]])
    path = tmp_path / "leak.npz"
    np.savez(path, x_train=train, y_train=np.resize(np.arange(10), count), x_test=pixels, y_test=digits.labels[:40].numpy())
    return Artifact("data", Ref.of("images", source=f"npz:{path}", split="train"), label="leak")


def compressed(images: Artifact) -> Artifact:
    return Artifact("model", Ref.of("compressed", method="int8"), inputs=(BASE, images), label="digits-standard")


def tuned(images: Artifact) -> Artifact:
    ref = Ref.of("tuned", method="finetune(steps=1)")
    return Artifact("model", ref, inputs=(BASE, images), label="digits-standard", stored=True)


def predicted(images: Artifact) -> Artifact:
    """What temperatures and OOD detectors are fitted on."""
    return Artifact("predictions", Ref.of("predictions"), inputs=(BASE, images), stored=True)


def trained(images: Artifact) -> Artifact:
    return Artifact("model", Ref.of("trained", arch="mlp(hidden=4)", steps=1), inputs=(images,), label="net", stored=True)


def half(images: Artifact) -> Artifact:
    return trained(Artifact("data", Ref.of("sampled", fraction=0.5), inputs=(images,)))


@pytest.mark.parametrize("made", [compressed, tuned, predicted, trained, half])
def test_test_images_are_refused_by_content(made, context, tmp_path):
    with pytest.raises(DataError, match="apart from the test images, got '2 of 60 that are also in the test split"):
        workshop.load(made(leaking(tmp_path, shared=2)), context)


def test_compressions_refuse_test_images_by_lineage(context):
    with pytest.raises(DataError, match="apart from the test images, got \"the split 'test'\""):
        workshop.load_model(compressed(TEST), context)
    with pytest.raises(DataError, match="apart from the test images"):
        workshop.build(tuned(TEST), context)
    noisy = Artifact("data", Ref.of("corrupted", corruption="contrast", table="digits-v1"), inputs=(TEST,), stored=True)
    with pytest.raises(DataError, match="the split 'test'"):
        apart_from_test(noisy, context)


def test_an_image_that_a_large_collection_holds_twice_is_left_out(context, tmp_path, caplog):
    found = workshop.load(leaking(tmp_path, shared=1, count=120), context)
    assert len(found) == 119 and 119 not in found.ids.tolist() and "1 images left out" in caplog.text


@pytest.mark.parametrize("seed", range(6))
def test_a_part_of_a_split_is_drawn_from_what_is_apart(context, tmp_path, seed):
    """One of 120 images is a test image: whatever part is drawn, it is whole and not refused by bad luck."""
    leak = leaking(tmp_path, shared=1, count=120).builder
    part = Artifact("data", Ref.of("images", **{**leak.kwargs, "limit": 20, "seed": seed}))
    found = workshop.load(part, context)
    assert len(found) == 20 and 119 not in found.ids.tolist()


def test_other_test_images_make_other_training_images(tmp_path):
    versions = []
    for shared in (0, 1):
        source = leaking(tmp_path, shared=0, count=120).builder.kwargs["source"]
        path = source.partition(":")[2]
        arrays = dict(np.load(path))
        arrays["x_test"] = np.concatenate([arrays["x_test"][shared:], arrays["x_train"][:shared]])
        np.savez(path, **arrays)
        versions.append(resolve_sources(source, ["digits-standard"])[0].splits)
    assert versions[0]["train"] != versions[1]["train"] and versions[0]["test"] != versions[1]["test"]


def test_stored_predictions_of_other_images_are_refused(context, tmp_path):
    artifact = predicted(leaking(tmp_path, shared=0))
    workshop.load(artifact, context)
    workshop.forget()
    leaking(tmp_path, shared=0, count=50)
    with pytest.raises(ModelError, match="on the images of their input, got 'other sample ids'"):
        workshop.load(artifact, context)


def test_a_shifted_set_of_training_images_is_refused(tmp_path):
    pixels = (workshop.read_split("digits", "train").images()[:30, 0] * 255).round().byte().numpy()
    path = tmp_path / "seen.npz"
    np.savez(path, x_test=pixels, y_test=np.resize(np.arange(10), 30))
    with pytest.raises(
        DataError, match="no model was trained on, got '30 of 30 that are also in the train split of digits'"
    ):
        resolve_sources("digits", ["digits-standard"], files=[f"npz:{path}"])


def test_images_that_are_apart_pass(context, tmp_path):
    assert len(apart_from_test(TRAIN, context)) == 100
    assert len(apart_from_test(leaking(tmp_path, shared=0), context)) == 60


def test_the_test_split_itself_is_read_whole(context):
    assert len(workshop.load(TEST, context)) == 30


def test_a_leak_fails_what_is_fitted_and_nothing_else(tmp_path):
    text = (
        "name: leak\nmodels: [digits-standard]\nthreats: [linf(0.1)]\nattacks: [noise(draws=2)]\n"
        "ood: {sources: [noise], detectors: [msp, knn]}\ncalibration: {split: train}\n"
    )
    data = leaking(tmp_path, shared=2).builder.kwargs["source"]
    done = robench.run(parse_suite(text), data=data, out=tmp_path / "run", workers=1)
    told = dict(done.summary.failures)
    assert {"calibration", "ood"} <= {what.split()[0].partition("(")[0] for what in told}, told.keys()
    assert all("apart from the test images" in error for error in told.values())
    frames = Store(done.out).frames()
    assert len(frames["evasion"]) == 40 and (frames["evasion"]["status"] == "ok").all()
    assert "ood" not in frames and "calibration" not in frames
    table = tidy(load(done.out))
    assert set(table.loc[table["metric"] == "failed", "scenario"]) >= {"ood", "calibration"}
    assert "apart from the test images" in page(table).partition("<h2>Failed</h2>")[2].partition("<h2>")[0]
    assert not audit(table, ["auroc>=0.5"]).passed
