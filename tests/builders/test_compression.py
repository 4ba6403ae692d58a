"""Compressed and trained-on models as artifacts, and images that may not be test images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robench import workshop
from robench.builders import apart, tuning
from robench.builders.apart import apart_from_test
from robench.errors import DataError, ModelError
from robench.spec import Artifact, Ref

BASE = Artifact("model", Ref.of("zoo", name="digits-standard"), label="digits-standard")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=100), label="digits")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=30), label="digits")


def compressed(method: str, parent: Artifact = BASE, images: Artifact = TRAIN) -> Artifact:
    return Artifact("model", Ref.of("compressed", method=method), inputs=(parent, images), label="digits-standard")


def tuned(method: str, parent: Artifact = BASE, images: Artifact = TRAIN) -> Artifact:
    return Artifact("model", Ref.of("tuned", method=method), inputs=(parent, images), label="digits-standard", stored=True)


METHODS = (
    "bf16", "float", "fp16", "int4_weights(group=16)", "int8", "prune(amount=0.5, scope='layer')", "prune_2_4",
    "prune_channels(amount=0.25)",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_model_that_predicts(method, context):
    model = workshop.load_model(compressed(method), context)
    parent = workshop.load_model(BASE, context)
    x = workshop.load(TEST, context).images()
    assert (model.net(x).argmax(1) == parent.net(x).argmax(1)).float().mean() > 0.7
    assert not model.net.training and model.simulated == method.startswith(("int8", "int4"))


def test_a_training_is_stored_once_and_comes_back_bit_by_bit(context, monkeypatch):
    for artifact in (tuned("finetune(steps=3)", compressed("prune(amount=0.9)")),
                     tuned("distill(arch='mlp(hidden=8)', steps=3)")):  # fmt: skip
        workshop.build(artifact, context)
        first = workshop.load_model(artifact, context)
        workshop.load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "_tune", lambda *a: pytest.fail("trained again"))
            workshop.build(artifact, context)
            again = workshop.load_model(artifact, context)
        assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in first.net.state_dict().items())
        assert first.made == again.made and first.made["steps"] == 3 and first.made["train_n"] == 100
        assert first.made["recipe"].startswith(artifact.builder.kwargs["method"].partition("(")[0])
        assert not (workshop.folder(artifact, context) / "checkpoint.pt").exists()
        assert len(first.made["weights_sha256"]) == 64


def test_damaged_weights_of_a_training_are_refused(context):
    artifact = tuned("finetune(steps=1)")
    workshop.build(artifact, context)
    header = workshop.folder(artifact, context) / "header.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "weights_sha256": "0"}))
    workshop.load.cache_clear()
    with pytest.raises(ModelError, match="remove that folder"):
        workshop.load_model(artifact, context)


def leaking(tmp_path, *, shared: int, count: int = 60) -> Artifact:
    """A folder of arrays whose training split has some of the test images, under other ids."""
    digits = workshop.read_split("digits", "test")
    rng = np.random.Generator(np.random.Philox(key=3))
    pixels = (digits.images()[:40, 0] * 255).round().byte().numpy()
    other = rng.integers(0, 256, (count, *pixels.shape[1:]), dtype=np.uint8)
    train = np.concatenate([other[: count - shared], pixels[:shared]])
    path = tmp_path / "leak.npz"
    np.savez(path, x_train=train, y_train=np.resize(np.arange(10), count), x_test=pixels, y_test=digits.labels[:40].numpy())
    return Artifact("data", Ref.of("images", source=f"npz:{path}", split="train"), label="leak")


def test_calibration_and_training_on_test_images_are_refused_by_lineage_and_by_content(context, tmp_path):
    with pytest.raises(DataError, match="apart from the test images, got \"the split 'test'\""):
        workshop.load_model(compressed("int8", images=TEST), context)
    with pytest.raises(DataError, match="apart from the test images"):
        workshop.build(tuned("finetune(steps=1)", images=TEST), context)
    noisy = Artifact("data", Ref.of("corrupted", corruption="contrast", table="digits-v1"), inputs=(TEST,), stored=True)
    with pytest.raises(DataError, match="the split 'test'"):
        apart_from_test(noisy, context)
    apart._test_hashes.cache_clear()
    leak = leaking(tmp_path, shared=2)
    with pytest.raises(DataError, match="got '2 of 60 that are also in the test split"):
        apart_from_test(leak, context)


def test_an_image_that_a_large_collection_holds_twice_is_left_out(context, tmp_path, caplog):
    apart._test_hashes.cache_clear()
    found = apart_from_test(leaking(tmp_path, shared=1, count=120), context)
    assert len(found) == 119 and 119 not in found.ids.tolist() and "1 training images left out" in caplog.text


def test_images_that_are_apart_pass(context, tmp_path):
    assert len(apart_from_test(TRAIN, context)) == 100
    apart._test_hashes.cache_clear()
    assert len(apart_from_test(leaking(tmp_path, shared=0), context)) == 60


def test_what_is_made_from_an_imitation_stays_one(context):
    imitated = compressed("int8")
    assert workshop.load_model(imitated, context).simulated
    assert workshop.load_model(compressed("float", imitated), context).simulated
    assert not workshop.load_model(compressed("float"), context).simulated
    behind = Artifact("model", Ref.of("defended", defense="bit_depth(bits=3)"), inputs=(imitated,), label="digits-standard")
    assert workshop.load_model(behind, context).simulated
