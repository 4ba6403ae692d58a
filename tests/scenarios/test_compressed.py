"""Compressed models beside their parents: predictions, explanations, costs."""

from __future__ import annotations

from dataclasses import replace

import torch

from robench import workshop
from robench.scenarios.disagreement import disagreement
from robench.scenarios.efficiency import efficiency
from robench.scenarios.explanation_change import explanation_change
from robench.scenarios.objects import open_cell
from robench.spec import Artifact, Cell, Ref

BASE = Artifact("model", Ref.of("zoo", name="digits-standard"), label="digits-standard")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=100), label="digits")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=30), label="digits")


def compressed(method: str, parent: Artifact = BASE, images: Artifact = TRAIN) -> Artifact:
    return Artifact("model", Ref.of("compressed", method=method), inputs=(parent, images), label="digits-standard")


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
