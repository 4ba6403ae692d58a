"""Compressed and trained-on models as artifacts."""

from __future__ import annotations

import json

import pytest
import torch

from robench import workshop
from robench.builders import tuning
from robench.errors import ModelError
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
        workshop.forget()
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
    workshop.forget()
    with pytest.raises(ModelError, match="remove that folder"):
        workshop.load_model(artifact, context)


def test_what_is_made_from_an_imitation_stays_one(context):
    imitated = compressed("int8")
    assert workshop.load_model(imitated, context).simulated
    assert workshop.load_model(compressed("float", imitated), context).simulated
    assert not workshop.load_model(compressed("float"), context).simulated
    behind = Artifact("model", Ref.of("defended", defense="bit_depth(bits=3)"), inputs=(imitated,), label="digits-standard")
    assert workshop.load_model(behind, context).simulated
