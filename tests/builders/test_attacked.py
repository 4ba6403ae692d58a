"""Adversarial images kept with the model's outputs on them; what an attack cannot tell is unknown, not robust."""

from __future__ import annotations

import pytest
import torch

from robench import workshop
from robench.errors import ModelError
from robench.spec import Artifact, Context, Ref

IMAGES = Artifact("data", Ref.of("images", source="digits", limit=40), label="digits")


def artifact(model: str, **args) -> Artifact:
    zoo = Artifact("model", Ref.of("zoo", name=model), label=model)
    ref = Ref.of("attacked", **{"attack": "pgd(steps=5)", "threat": "linf(0.1)", "seed": 0, "width": 64, **args})
    return Artifact("attacked", ref, inputs=(zoo, IMAGES), stored=True)


def test_images_stay_in_the_ball_and_outputs_are_the_model_s_own(context):
    found = workshop.load(artifact("digits-standard"), context)
    data = workshop.load(IMAGES, context)
    net = workshop.load_model(artifact("digits-standard").inputs[0], context).net
    assert found.images.shape == (40, 1, 32, 32) and float((found.images - data.images()).abs().max()) <= 0.1 + 1e-6
    assert found.images.min() >= 0 and found.images.max() <= 1
    with torch.no_grad():
        clean, adversarial = net(data.images()).argmax(1), net(found.images).argmax(1)
    assert torch.equal(found.seen.logits.argmax(1), adversarial) and torch.equal(found.seen.ids, data.ids)
    assert torch.equal(found.broken, (clean == data.labels) & (adversarial != data.labels))
    assert found.broken.sum() > 20 and not found.failed.any() and found.error == ""


def test_what_is_stored_is_read_back_and_does_not_depend_on_how_many_are_held(context, tmp_path):
    first = workshop.load(artifact("digits-standard"), context)
    workshop.forget()
    again = workshop.load(artifact("digits-standard"), context)
    other = workshop.load(artifact("digits-standard"), Context(str(tmp_path / "other"), batch_size=7))
    for found in (again, other):
        assert torch.equal(found.images, first.images) and torch.equal(found.seen.logits, first.seen.logits)
        assert torch.equal(found.broken, first.broken)


def test_a_model_that_hides_its_gradient_is_unknown_not_robust(context):
    found = workshop.load(artifact("digits-trap"), context)
    recognised = workshop.load(artifact("digits-trap"), context).seen
    right = recognised.logits.argmax(1) == recognised.labels
    assert found.failed.sum() > 30 and torch.equal(found.failed, right & ~found.broken)
    assert "zero" in found.error


def test_damage_is_named(context):
    workshop.load(artifact("digits-mlp", attack="fgsm"), context)
    workshop.forget()
    stored = workshop.folder(artifact("digits-mlp", attack="fgsm"), context) / "attacked.npz"
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(ModelError, match="remove its folder"):
        workshop.load(artifact("digits-mlp", attack="fgsm"), context)


def test_drawn_images_have_the_ids_of_the_data_and_no_classes(context):
    data = workshop.load(IMAGES, context)
    drawn = workshop.load(Artifact("data", Ref.of("drawn", source="glyphs(detail=8)", seed=3), inputs=(IMAGES,)), context)
    assert torch.equal(drawn.ids, data.ids) and drawn.labels.tolist() == [0] * 40 and drawn.spec.name == "glyphs"
    assert drawn.images().shape == data.images().shape and not torch.equal(drawn.images(), data.images())
    inverted = workshop.load(Artifact("data", Ref.of("drawn", source="inverted", seed=3), inputs=(IMAGES,)), context)
    assert torch.equal(inverted.images(), 1 - data.images())
