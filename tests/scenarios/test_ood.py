"""The ood scenario: a score per image and detector, fitted on training images only, reasons for what does not apply."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn

from robench import workshop
from robench.errors import NoGradientError
from robench.metrics.ood import lines
from robench.ood import TABLE
from robench.ood.outputs import Known, Seen, linear_head
from robench.registry import Table
from robench.scenarios import ood as module
from robench.scenarios.objects import open_cell
from robench.scenarios.ood import ood
from robench.spec import Artifact, Cell, Context, Ref

IMAGES = Artifact("data", Ref.of("images", source="digits", limit=30), label="digits")
TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=200))
DETECTORS = tuple(sorted(TABLE))


def predictions(model: Artifact, data: Artifact) -> Artifact:
    return Artifact("predictions", Ref.of("predictions", width=64), inputs=(model, data), stored=True)


def cell(name: str = "digits-vit", *, sources=("noise",), shard=(0, 1), fitted=True, detectors=DETECTORS) -> Cell:
    model = Artifact("model", Ref.of("zoo", name=name), label=name)
    drawn = [Artifact("data", Ref.of("drawn", source=s, seed=0), inputs=(IMAGES,)) for s in sources]
    known = (predictions(model, TRAIN),) if fitted else ()
    extra = (*known, predictions(model, IMAGES), *(predictions(model, d) for d in drawn))
    ref = Ref.of("ood", sources=tuple(sources), detectors=detectors, fitted=fitted)
    return Cell(ref, "1", model, IMAGES, extra=extra, shard=shard)


@pytest.fixture
def context(tmp_path) -> Context:
    for cache in (workshop._kept, module._fitted, module._known):
        cache.cache_clear()
    yield Context(str(tmp_path))
    for cache in (workshop._kept, module._fitted, module._known):
        cache.cache_clear()


def rows(given: Cell, context: Context) -> pd.DataFrame:
    return pd.DataFrame(ood(open_cell(given, context), **given.scenario.kwargs))


def test_every_image_has_a_score_of_every_detector(context):
    found = rows(cell(sources=("noise", "glyphs(detail=8)")), context)
    assert len(found) == len(DETECTORS) * 3 * 30 and (found["status"] == "ok").all()
    assert found["score"].notna().all()
    assert (found.groupby(["detector", "source"]).size() == 30).all()
    assert (found["is_id"] == (found["source"] == "")).all()
    areas = {
        line["attack"]: line["value"] for line in lines(found, {}) if line["metric"] == "auroc" and line["threat"] == "noise"
    }
    assert set(areas) == set(DETECTORS)
    # The 50 nearest of 200 images reach beyond a class of 20.
    assert min(area for name, area in areas.items() if name != "knn") > 0.8


def test_scores_are_those_of_the_detectors_on_the_whole_outputs(context):
    found = rows(cell(), context)
    given = cell()
    train, test = (workshop.load(a, context) for a in given.extra[:2])
    net = workshop.load_model(given.model, context).net
    seen = Seen(train.logits, train.features)
    known = Known(seen, train.labels, head=linear_head(net, seen), net=net)
    own = found[found["is_id"]]
    for name in ("energy", "knn", "mahalanobis", "vim"):
        scores = Table("detectors", TABLE)[name].load()(known)(Seen(test.logits, test.features))
        assert own.loc[own["detector"] == name, "score"].tolist() == pytest.approx(scores.tolist())


def test_shards_together_are_the_whole_and_batch_size_does_not_matter(context, tmp_path):
    key = ["detector", "source", "sample"]
    whole = rows(cell(), context).sort_values(key, ignore_index=True)
    parts = pd.concat([rows(cell(shard=(i, 2)), context) for i in range(2)]).sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-9)
    module._fitted.cache_clear()
    module._known.cache_clear()
    other = rows(cell(), Context(str(tmp_path / "other"), batch_size=7)).sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(other, whole)


def test_without_training_images_fitted_detectors_are_skipped_with_the_reason(context):
    found = rows(cell(fitted=False, sources=("noise", "inverted")), context)
    skipped = found[found["status"] == "skipped"]
    assert set(skipped["detector"]) == {"knn", "mahalanobis", "react", "vim"} and len(skipped) == 8
    assert skipped["error"].str.contains("no training images").all() and skipped["score"].isna().all()
    told = {(t["attack"], t["threat"]): t for t in lines(found, {}) if t["metric"] == "auroc"}
    assert told["knn", "noise"]["status"] == "skipped" and math.isnan(told["knn", "noise"]["value"])
    assert told["knn", "noise"]["n"] == 0 and "training" in told["knn", "noise"]["validity"]
    assert told["energy", "noise"]["n"] == 30 and "status" not in told["energy", "noise"]


class Detached(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.detach())


def test_odin_is_skipped_where_the_model_gives_no_gradient(context, monkeypatch):
    def refuse(*args):
        raise NoGradientError("no gradient here")

    monkeypatch.setattr("robench.ood._odin._direction", refuse)
    found = rows(cell(detectors=("odin", "msp")), context)
    assert found[found["detector"] == "odin"][["status", "error"]].to_numpy().tolist() == [["skipped", "no gradient here"]]
    assert (found[found["detector"] == "msp"]["status"] == "ok").all()


def attacked_cell(name: str) -> Cell:
    plain = cell(name, sources=())
    hit = Artifact(
        "attacked",
        Ref.of("attacked", attack="pgd(steps=5)", threat="linf(0.1)", seed=0, width=64),
        inputs=(plain.model, IMAGES),
        stored=True,
    )
    ref = Ref.of("ood", sources=("pgd linf(0.1)",), detectors=("msp",), fitted=True)
    return Cell(ref, "1", plain.model, IMAGES, extra=(*plain.extra, hit))


def test_of_adversarial_images_only_those_count_that_were_broken(context):
    found = rows(attacked_cell("digits-standard"), context)
    hit = workshop.load(attacked_cell("digits-standard").extra[-1], context)
    other = found[~found["is_id"]]
    assert sorted(other["sample"]) == sorted(hit.seen.ids[hit.broken].tolist()) and 10 < len(other) < 30
    confidence = hit.seen.logits[hit.broken].double().softmax(1).amax(1)
    assert other["score"].tolist() == pytest.approx(confidence.tolist())


def test_an_attack_that_broke_nothing_leaves_a_reason(context):
    found = rows(attacked_cell("digits-trap"), context)
    other = found[~found["is_id"]]
    assert other["status"].tolist() == ["skipped"] and "breaks nothing" in other["error"].iloc[0]


def test_id_scores_of_two_cells_count_once():
    def frame(source: str) -> pd.DataFrame:
        own = {"sample": range(20), "source": "", "is_id": True, "score": [float(i) for i in range(20)]}
        other = {"sample": range(10), "source": source, "is_id": False, "score": [i - 5.0 for i in range(10)]}
        both = pd.concat([pd.DataFrame(own), pd.DataFrame(other)])
        return both.assign(detector="msp", status="ok", error="", cell=source)

    alone = list(lines(frame("a"), {}))
    both = list(lines(pd.concat([frame("a"), frame("b")]), {}))
    assert [line for line in both if line["threat"] == "a"] == alone and len(both) == 8
