"""Predictions: the model's outputs and the inputs of its last linear layer, kept whole, the same in any company."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robench import workshop
from robench.builders.predictions import forward_pass, last_linear
from robench.data.dataset import Dataset
from robench.errors import ModelError
from robench.spec import Artifact, Context, DatasetSpec, Ref

N = 23
X = torch.sin(torch.arange(N * 16.0)).reshape(N, 1, 4, 4) * 0.4 + 0.5
DATA = Dataset(
    DatasetSpec("memory", ("a", "b", "c"), (1, 4, 4), ("test",)), torch.arange(N) + 7, torch.arange(N) % 3, X.__getitem__
)
ZOO = Artifact("model", Ref.of("zoo", name="digits-standard"), label="digits-standard")
IMAGES = Artifact("data", Ref.of("images", source="digits", limit=30), label="digits")
NOISY = Artifact("data", Ref.of("corrupted", corruption="gaussian_noise", table="digits-v1"), inputs=(IMAGES,), stored=True)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("size", [1, 7, 256])
@pytest.mark.parametrize("width", [16, 64])
def test_outputs_and_features_are_the_model_s_own(size, width):
    model = net()
    seen = forward_pass(model, DATA, Context("", batch_size=size), width=width)
    features = model[:3](X)
    assert torch.allclose(seen.features, features, atol=1e-6) and torch.allclose(seen.logits, model(X), atol=1e-6)
    assert torch.equal(seen.ids, DATA.ids) and torch.equal(seen.labels, DATA.labels) and len(seen) == N
    assert not model._modules["3"]._forward_pre_hooks and model.training


def test_results_do_not_depend_on_how_many_are_held():
    one, other = (forward_pass(net(), DATA, Context("", batch_size=size)) for size in (3, 256))
    assert torch.equal(one.logits, other.logits) and torch.equal(one.features, other.features)


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), nn.Sequential(nn.Linear(4, 3), nn.Conv2d(1, 3, (4, 3)), nn.Flatten())],
)
def test_without_a_last_layer_on_vectors_there_are_no_features(model):
    seen = forward_pass(model, DATA, Context(""))
    assert seen.features.shape == (N, 0) and seen.logits.shape == (N, 3)


def test_features_can_be_left_out_and_rows_taken():
    seen = forward_pass(net(), DATA, Context(""), features=False)
    assert seen.features.shape == (N, 0)
    part = seen.take(torch.tensor([4, 2]))
    assert part.ids.tolist() == [11, 9] and torch.equal(part.logits, seen.logits[[4, 2]])


def test_the_last_linear_layer_is_the_head():
    model = net()
    assert last_linear(model) is model[3] and last_linear(nn.ReLU()) is None


def test_a_model_that_moves_is_an_error():
    class Moving(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight += 1e-3
            return super().forward(x.flatten(1))

    with pytest.raises(ModelError, match="same after as before"):
        forward_pass(Moving(16, 3), DATA, Context(""))


def test_predictions_are_kept_and_read_back(context, monkeypatch):
    artifact = Artifact("predictions", Ref.of("predictions", width=64), inputs=(ZOO, IMAGES), stored=True)
    first = workshop.load(artifact, context)
    assert workshop.is_built(artifact, context) and first.features.shape[0] == 30 and first.features.shape[1] > 0
    workshop.forget()
    monkeypatch.setattr("robench.builders.predictions.forward_pass", lambda *a, **k: pytest.fail("predicted again"))
    again = workshop.load(artifact, context)
    assert torch.equal(first.logits, again.logits) and torch.equal(first.features, again.features)


def test_five_severities_are_one_artifact_and_a_part_is_one_of_them(context):
    artifact = Artifact("predictions", Ref.of("predictions", width=64), inputs=(ZOO, NOISY), stored=True)
    every = workshop.load(artifact, context)
    assert len(every) == 5 and all(p.features.shape == (30, 0) for p in every)
    part = workshop.load(Artifact("predictions", Ref.of("part", index=4), inputs=(artifact,)), context)
    worst = workshop.load(Artifact("data", Ref.of("severity", severity=5), inputs=(NOISY,)), context)
    model = workshop.load_model(ZOO, context).net
    with torch.no_grad():
        assert torch.allclose(part.logits, model(worst.images()), atol=1e-4)


def test_a_damaged_file_says_what_to_do(context):
    artifact = Artifact("predictions", Ref.of("predictions", width=64), inputs=(ZOO, IMAGES), stored=True)
    workshop.build(artifact, context)
    (workshop.folder(artifact, context) / "predictions.npz").write_bytes(b"no archive")
    workshop.forget()
    with pytest.raises(ModelError, match="remove its folder and run again"):
        workshop.load(artifact, context)
