"""The calibration scenario: logits by source, a temperature from other images, and the lines of the table."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench import workshop
from robench.metrics.calibration import fit_temperature
from robench.metrics.confidence import lines
from robench.scenarios.calibration import calibration
from robench.scenarios.objects import open_cell
from robench.spec import Artifact, Cell, Context, Ref

IMAGES = Artifact("data", Ref.of("images", source="digits", limit=40), label="digits")
FIT = Artifact("data", Ref.of("images", source="digits", split="validation", limit=60))


def cell(name: str, *, shard=(0, 1)) -> Cell:
    model = Artifact("model", Ref.of("zoo", name=name), label=name)
    fit, clean = (
        Artifact("predictions", Ref.of("predictions", width=64), inputs=(model, data), stored=True) for data in (FIT, IMAGES)
    )
    args = {"attack": "pgd(steps=5)", "threat": "linf(0.1)", "seed": 0, "width": 64}
    hit = Artifact("attacked", Ref.of("attacked", **args), inputs=(model, IMAGES), stored=True)
    ref = Ref.of("calibration", split="validation", sources=("clean", "pgd linf(0.1)"))
    return Cell(ref, "1", model, IMAGES, extra=(fit, clean, hit), shard=shard)


def rows(given: Cell, context: Context) -> pd.DataFrame:
    return pd.DataFrame(calibration(open_cell(given, context), **given.scenario.kwargs))


def test_rows_hold_the_logits_and_the_temperature_of_the_validation_images(context):
    given = cell("digits-standard")
    found = rows(given, context)
    fit, clean, hit = (workshop.load(a, context) for a in given.extra)
    assert np.array_equal(np.stack(found["logits"][:40]), clean.logits.double().numpy())
    assert np.array_equal(np.stack(found["logits"][40:]), hit.seen.logits.double().numpy())
    assert found["source"].tolist() == ["clean"] * 40 + ["pgd linf(0.1)"] * 40
    expected = fit_temperature(fit.logits.double().numpy(), fit.labels.numpy())
    assert set(found["temperature"]) == {expected} and set(found["fit_n"]) == {60} and set(found["split"]) == {"validation"}
    assert not set(fit.ids.tolist()) & set(found["sample"])


def test_shards_together_are_the_whole(context):
    whole = rows(cell("digits-standard"), context).sort_values(["source", "sample"], ignore_index=True)
    parts = pd.concat([rows(cell("digits-standard", shard=(i, 3)), context) for i in range(3)])
    pd.testing.assert_frame_equal(parts.sort_values(["source", "sample"], ignore_index=True), whole)


def test_lines_stand_before_and_after_and_the_picture_s_points_add_up(context):
    found = list(lines(rows(cell("digits-standard"), context), {}))
    table = pd.DataFrame(found)
    fitted = table[table["metric"] == "temperature"].iloc[0]
    assert fitted["n"] == 60 and fitted["threat"] == "validation" and math.isnan(fitted["ci_low"])
    nll = table[table["metric"] == "nll"].set_index(["threat", "attack"])["value"]
    assert set(nll.index) == {
        (s, a) for s in ("clean", "pgd linf(0.1)") for a in ("uncalibrated", "temperature (validation)")
    }
    bins = table[table["metric"] == "accuracy_in_bin"]
    assert (bins.groupby(["threat", "attack"])["n"].sum() == 40).all()
    ece = table[(table["metric"] == "ece")].set_index(["threat", "attack"])["value"]
    for key, part in bins.groupby(["threat", "attack"]):
        assert (part["n"] / 40 * (part["value"] - part["eps"]).abs()).sum() == pytest.approx(ece[key], abs=1e-8)
    risks = table[table["metric"] == "risk_at_coverage"].groupby(["threat", "attack"])["eps"].max()
    assert (risks == 1).all()


def test_samples_of_which_the_attack_says_nothing_count_as_sure_and_wrong(context):
    frame = rows(cell("digits-trap"), context)
    unknown = frame["unknown"] != ""
    assert unknown.sum() > 30 and (frame.loc[unknown, "source"] == "pgd linf(0.1)").all()
    table = pd.DataFrame(list(lines(frame, {})))
    hit = table[(table["threat"] == "pgd linf(0.1)") & (table["attack"] == "uncalibrated")].set_index("metric")
    assert (
        hit.loc["brier", "value"] > 1.8 and hit.loc["ece", "value"] > 0.9 and hit.loc["risk_at_80_coverage", "value"] > 0.9
    )
    assert (hit["status"] == "unknown").all() and hit["excludes"].str.contains("of 40 samples are unknown").all()
    assert table[table["threat"] == "clean"]["status"].isna().all()


def test_a_temperature_that_cannot_be_fitted_is_said_and_leaves_what_is_uncalibrated():
    frame = pd.DataFrame(
        {
            "sample": range(4), "label": [0, 1, 0, 1], "source": "clean", "logits": [[2.0, 0.0]] * 4, "unknown": "",
            "split": "validation", "fit_n": 3, "temperature": math.nan, "error": "outputs are NaN",
        }
    )  # fmt: skip
    table = pd.DataFrame(list(lines(frame, {})))
    told = table[table["metric"] == "temperature"].iloc[0]
    assert told["status"] == "skipped" and told["validity"] == "skipped: outputs are NaN" and math.isnan(told["value"])
    assert set(table["attack"]) == {"uncalibrated", "temperature (validation)"}
    assert set(table.loc[table["attack"] != "uncalibrated", "metric"]) == {"temperature"}
