"""The workshop: stored artifacts are whole or not there, and come back as they were built."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from robench import workshop
from robench.builders import images, training
from robench.errors import RobenchError, StoreError
from robench.models import fresh
from robench.sources import UserModel, resolve_sources
from robench.spec import Artifact, Context, Ref

TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=120), label="digits")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=30), label="digits")


def trained(steps: int = 3, seed: int = 0) -> Artifact:
    ref = Ref.of("trained", arch="mlp", recipe="standard", steps=steps, seed=seed)
    half = Artifact("data", Ref.of("sampled", fraction=0.5, seed=seed), inputs=(TRAIN,))
    return Artifact("model", ref, inputs=(half,), stored=True)


def corrupted() -> Artifact:
    return Artifact("data", Ref.of("corrupted", corruption="gaussian_noise", table="digits-v1"), inputs=(TEST,), stored=True)


def test_shape_and_classes_of_the_data_reach_a_users_architecture(tmp_path):
    arrays = {"x_test": np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8), "y_test": np.arange(6) % 3}
    np.savez(tmp_path / "colour.npz", **arrays)
    net = fresh("small_cnn(in_channels=3, num_classes=3, size=16, width=4)", seed=0)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    user = UserModel(str(tmp_path / "net.safetensors"), arch="small_cnn(width=4)")
    sources, paths = resolve_sources(f"npz:{tmp_path / 'colour.npz'}", [user])
    found = workshop.load_model(sources.models["net.safetensors"], Context(str(tmp_path), "cpu", sources=paths)).net
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(found(x), net.eval()(x))


def test_images_are_a_stratified_part_that_repeats(context):
    one, two = (images.images(TEST, context, limit=30, seed=0) for _ in range(2))
    assert len(one) == 30 and torch.equal(one.ids, two.ids)
    assert torch.bincount(one.labels, minlength=10).min() >= 2
    other = images.images(TEST, context, limit=30, seed=1)
    assert not torch.equal(one.ids, other.ids)
    assert len(images.images(TEST, context, limit=10**6)) == len(images.images(TEST, context))


def test_trained_model_is_stored_once_and_comes_back_bit_by_bit(context, monkeypatch):
    artifact = trained()
    assert not workshop.is_built(artifact, context)
    workshop.build(artifact, context)
    first = workshop.load_model(artifact, context)
    assert workshop.is_built(artifact, context)
    assert first.made["train_n"] == 60 and first.made["steps"] == 3 and first.made["fraction"] == 0.5
    assert not first.net.training
    monkeypatch.setattr(training, "_train", lambda *a, **k: pytest.fail("trained again"))
    workshop.forget()
    workshop.build(artifact, context)
    again = workshop.load_model(artifact, context)
    for key, value in first.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[key])
    assert again.made == first.made
    assert not (workshop.folder(artifact, context) / "checkpoint.pt").exists()


def test_training_is_the_same_in_another_folder_and_another_with_another_seed(tmp_path, context):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = workshop.load_model(trained(seed=seed), Context(str(tmp_path / name)))
        hashes.append(model.made["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_global_generator_stays_as_it_was(context):
    before = torch.get_rng_state()
    workshop.build(trained(), context)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_without_header_are_not_built_and_built_anew(context):
    artifact = trained()
    workshop.build(artifact, context)
    header = workshop.folder(artifact, context) / "header.json"
    made = json.loads(header.read_text())
    header.unlink()
    assert not workshop.is_built(artifact, context)
    workshop.forget()
    workshop.build(artifact, context)
    assert json.loads(header.read_text()) == made


@pytest.mark.parametrize("damage", [b"", b"short", None], ids=["empty", "garbage", "truncated"])
def test_damaged_weights_are_told(context, damage):
    artifact = trained()
    workshop.build(artifact, context)
    path = workshop.folder(artifact, context) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    workshop.forget()
    with pytest.raises(RobenchError):
        workshop.load_model(artifact, context)


def test_weights_of_another_training_are_told(context):
    one, other = trained(seed=0), trained(seed=1)
    for artifact in (one, other):
        workshop.build(artifact, context)
    source, target = (workshop.folder(a, context) / "model.safetensors" for a in (other, one))
    target.write_bytes(source.read_bytes())
    workshop.forget()
    with pytest.raises(RobenchError):
        workshop.load_model(one, context)


def test_corrupted_images_are_made_once_and_are_worse_each_time(context, monkeypatch):
    levels = workshop.load(corrupted(), context)
    clean = workshop.load(TEST, context)
    assert len(levels) == 5
    rows = torch.arange(len(clean))
    away = [float((level.images(rows) - clean.images(rows)).square().mean()) for level in levels]
    assert away == sorted(away) and away[0] > 0
    for level in levels:
        assert torch.equal(level.ids, clean.ids) and torch.equal(level.labels, clean.labels)
        x = level.images(rows)
        assert x.min() >= 0 and x.max() <= 1
        assert torch.equal((x * 255).round() / 255, x)
    monkeypatch.setattr(images, "_corrupt", lambda *a: pytest.fail("made again"))
    workshop.forget()
    again = workshop.load(corrupted(), context)
    assert all(torch.equal(a.images(rows), b.images(rows)) for a, b in zip(levels, again, strict=True))


@pytest.mark.parametrize("size", [0, 50, -30], ids=["empty", "short", "truncated"])
def test_damaged_images_are_told(context, size):
    workshop.build(corrupted(), context)
    path = workshop.folder(corrupted(), context) / "images.npz"
    path.write_bytes(path.read_bytes()[:size])
    workshop.forget()
    with pytest.raises(RobenchError):
        workshop.load(corrupted(), context)


def test_images_of_other_count_or_type_cannot_be_taken_for_them(context):
    workshop.build(corrupted(), context)
    path = workshop.folder(corrupted(), context) / "images.npz"
    np.savez(path, other=np.zeros(3))
    workshop.forget()
    with pytest.raises(RobenchError):
        workshop.load(corrupted(), context)


def test_full_disk_stops_a_training_whole(context, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robench.files.os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        workshop.build(trained(), context)
    monkeypatch.undo()
    assert not workshop.is_built(trained(), context)
    assert not [p for p in workshop.folder(trained(), context).rglob("*") if p.is_file()]


def test_defended_and_compressed_models_keep_their_parent_as_it_was(context):
    parent = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
    before = {k: v.clone() for k, v in workshop.load_model(parent, context).net.state_dict().items()}
    defended = Artifact("model", Ref.of("defended", defense="bit_depth(bits=1)"), inputs=(parent,))
    pruned = Artifact("model", Ref.of("compressed", method="prune(amount=0.9)"), inputs=(parent, TRAIN))
    x = workshop.load(TEST, context).images(torch.arange(8))
    outputs = [workshop.load_model(a, context).net(x) for a in (parent, defended, pruned)]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    after = workshop.load_model(parent, context).net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_only_fake_quantization_is_marked_simulated(context):
    parent = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
    made = [Artifact("model", Ref.of("compressed", method=m), inputs=(parent, TRAIN)) for m in ("prune(amount=0.5)", "int8")]
    assert [workshop.load_model(a, context).simulated for a in made] == [False, True]
