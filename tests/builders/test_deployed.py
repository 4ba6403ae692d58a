"""Deployed models are kept as the file that ships, and come back as it is."""

from __future__ import annotations

import json

import pytest
import torch

from robench import workshop
from robench.compress.backends import _onnx
from robench.errors import DataError, ModelError
from robench.spec import Artifact, Ref

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PARENT = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=40), label="digits")


def deployed(data: Artifact = TRAIN) -> Artifact:
    return Artifact("model", Ref.of("compressed", method="onnx_int8(ranges='minmax')"), inputs=(PARENT, data), stored=True)


def test_the_file_is_written_once_and_is_what_ships(context, monkeypatch):
    artifact = deployed()
    workshop.build(artifact, context)
    first = workshop.load_model(artifact, context)
    place = workshop.folder(artifact, context)
    assert {path.name for path in place.iterdir()} == {"model.onnx", "header.json"}
    assert (place / "model.onnx").read_bytes() == first.net.files["model.onnx"]
    assert not first.simulated and not first.net.training
    workshop.forget()
    monkeypatch.setattr(_onnx, "_quantised", lambda *a: pytest.fail("quantised again"))
    again = workshop.load_model(artifact, context)
    x = workshop.load(TRAIN, context).images(torch.arange(8))
    assert again.net is not first.net and torch.equal(again.net(x), first.net(x))


def test_a_damaged_or_missing_file_is_told(context):
    artifact = deployed()
    workshop.build(artifact, context)
    place = workshop.folder(artifact, context)
    content = (place / "model.onnx").read_bytes()
    for damage, text in ((content[:-1] + b"x", "unchanged since it was written"), (None, "the compressed model in")):
        (place / "model.onnx").unlink() if damage is None else (place / "model.onnx").write_bytes(damage)
        workshop.forget()
        with pytest.raises(ModelError, match=text):
            workshop.load_model(artifact, context)
    (place / "model.onnx").write_bytes(content)
    assert set(json.loads((place / "header.json").read_text())["files"]) == {"model.onnx"}
    workshop.load_model(artifact, context)


def test_calibration_on_test_images_is_refused(context):
    test = Artifact("data", Ref.of("images", source="digits", split="test", limit=40), label="digits")
    with pytest.raises(DataError, match="apart from the test images"):
        workshop.load_model(deployed(test), context)
