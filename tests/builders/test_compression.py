"""Compressed and trained-on models as artifacts, and images that may not be test images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from robench import workshop
from robench.builders import apart, tuning
from robench.builders.apart import apart_from_test
from robench.errors import DataError, ModelError
from robench.scenarios.disagreement import disagreement
from robench.scenarios.efficiency import efficiency
from robench.scenarios.explanation_change import explanation_change
from robench.scenarios.objects import open_cell
from robench.spec import Artifact, Cell, Context, Ref

BASE = Artifact("model", Ref.of("zoo", name="digits-standard"), label="digits-standard")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=100), label="digits")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=30), label="digits")


@pytest.fixture
def context(tmp_path) -> Context:
    workshop.load.cache_clear()
    yield Context(str(tmp_path))
    workshop.load.cache_clear()


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


def leaking(tmp_path, *, shared: int) -> Artifact:
    """A folder of arrays whose training split has some of the test images, under other ids."""
    digits = workshop.read_split("digits", "test")
    rng = np.random.Generator(np.random.Philox(key=3))
    pixels = (digits.images()[:40, 0] * 255).round().byte().numpy()
    other = rng.integers(0, 256, (60, *pixels.shape[1:]), dtype=np.uint8)
    train = np.concatenate([other[: 60 - shared], pixels[:shared]])
    path = tmp_path / "leak.npz"
    np.savez(path, x_train=train, y_train=np.resize(np.arange(10), 60), x_test=pixels, y_test=digits.labels[:40].numpy())
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
    with pytest.raises(DataError, match="got '2 that are also in the test split"):
        apart_from_test(leak, context)


def test_images_that_are_apart_pass(context, tmp_path):
    assert len(apart_from_test(TRAIN, context)) == 100
    apart._test_hashes.cache_clear()
    assert len(apart_from_test(leaking(tmp_path, shared=0), context)) == 60


def cell(scenario: Ref, model: Artifact, *extra: Artifact) -> Cell:
    return Cell(scenario, "1", model, TEST, condition="arm", extra=extra)


def predictions(model: Artifact) -> Artifact:
    return Artifact("predictions", Ref.of("predictions", width=64), inputs=(model, TEST), stored=True)


def test_disagreement_reads_two_kept_passes(context):
    pruned = compressed("prune(amount=0.8)")
    objects = open_cell(cell(Ref.of("disagreement"), pruned, predictions(pruned), predictions(BASE)), context)
    rows = disagreement(objects, parent="scarcity(fraction=0.5)")
    x, y = workshop.load(TEST, context).images(), workshop.load(TEST, context).labels
    own, first = (workshop.load_model(m, context).net(x) for m in (pruned, BASE))
    assert [r["pred"] for r in rows] == own.argmax(1).tolist()
    assert [r["pred_parent"] for r in rows] == first.argmax(1).tolist()
    assert [r["score_parent"] for r in rows] == (first.argmax(1) == y).double().tolist()
    p, q = first.double().softmax(1), own.double().softmax(1)
    found = torch.tensor([r["kl"] for r in rows], dtype=torch.float64)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(1), rtol=1e-3, atol=1e-6)
    assert {r["parent"] for r in rows} == {"scarcity(fraction=0.5)"}
    same = disagreement(replace(objects, cell=cell(Ref.of("disagreement"), BASE, predictions(BASE), predictions(BASE))))
    assert all(r["kl"] == 0 and r["pred"] == r["pred_parent"] for r in same)


def test_explanations_of_equal_models_are_exactly_alike(context):
    explainers = ("saliency", "integrated_gradients(steps=4)")
    for model, alike in ((compressed("float"), True), (compressed("prune(amount=0.8)"), False)):
        rows = explanation_change(open_cell(cell(Ref.of("explanation_change"), model, BASE), context), explainers=explainers)
        assert [r["explainer"] for r in rows] == [e for e in explainers for _ in range(30)]
        assert all((r["rank_correlation"] == 1.0 and r["top_intersection"] == 1.0) == alike for r in rows)
        assert not any(r["degenerate"] for r in rows)


def test_costs_of_packed_weights_are_those_of_the_file_and_notes_are_told(context):
    from safetensors.torch import save

    from robench.compress.packing import pack

    rounded = compressed("int4_weights")
    (row,) = efficiency(open_cell(cell(Ref.of("efficiency"), rounded), context))
    assert row["stored_bytes"] == len(save(pack(workshop.load_model(rounded, context).net)))
    assert row["simulated"] and row["latency_p50_ms"] is None and row["peak_memory_bytes"] is None
    (plain,) = efficiency(open_cell(cell(Ref.of("efficiency"), BASE), context))
    assert row["parameters"] == plain["parameters"] and row["macs"] == plain["macs"]
    assert row["stored_bytes"] < plain["stored_bytes"] / 5 and row["nominal_bytes"] < plain["nominal_bytes"] / 7
    (half,) = efficiency(open_cell(cell(Ref.of("efficiency"), compressed("fp16")), context))
    assert half["nominal_bytes"] == plain["nominal_bytes"] / 2 and half["latency_p50_ms"] > 0
    (sparse,) = efficiency(open_cell(cell(Ref.of("efficiency"), compressed("prune_2_4")), context))
    assert "2:4 left 1 of 4 layers dense" in sparse["note"]
