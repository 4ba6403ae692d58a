"""Shifted sets, reference lines, grids and the robust gap, beside numpy, statsmodels and counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from statsmodels.stats.proportion import confint_proportions_2indep

from robench.errors import DataError
from robench.metrics import shifts, stats
from robench.metrics.table import tidy

BASE = {"dataset": "digits", "condition": "", "seed": 0}


def shifted(model: str = "m", right: int = 60, n: int = 100, clean: tuple[int, int] = (180, 200), **more) -> pd.DataFrame:
    scores = [1.0] * right + [0.0] * (n - right)
    before = [1.0] * clean[0] + [0.0] * (clean[1] - clean[0])
    split = ["shifted"] * n + ["clean"] * clean[1]
    frame = pd.DataFrame({"sample": [*range(n), *range(clean[1])], "score": [*scores, *before], "split": split})
    told = {"model": model, "scenario": "shift", "cell": f"c{model}", "shift": "sketch", "masked": 0, "baseline": ""}
    return frame.assign(**{**BASE, **told, **more})


def population(models: int = 25, slope: float = 0.9, intercept: float = -0.7) -> list[tuple[float, float]]:
    clean = np.linspace(0.6, 0.97, models)
    wobble = 0.1 * np.cos(np.arange(models))
    return list(zip(clean.tolist(), expit(slope * logit(clean) + intercept + wobble).tolist(), strict=True))


def test_accuracy_and_gap_equal_scipys_and_statsmodels():
    e = shifts.shifted_accuracy(shifted())
    assert (e.value, e.low, e.high, e.n) == (0.6, stats.wilson(60, 100).low, stats.wilson(60, 100).high, 100)
    gap = shifts.shift_gap(shifted())
    assert gap.value == pytest.approx(0.3) and gap.n == 100
    assert (gap.low, gap.high) == pytest.approx(confint_proportions_2indep(180, 200, 60, 100, method="newcomb"), abs=1e-9)


def test_the_reference_line_is_numpys_on_the_logit_scale():
    points = np.array(population())
    slope, intercept, n = shifts.reference_line(points.tolist())
    assert (slope, intercept) == pytest.approx(tuple(np.polyfit(logit(points[:, 0]), logit(points[:, 1]), 1))) and n == 25


def test_effective_robustness_is_what_lies_above_the_line():
    line = (0.9, -0.7, 25)
    frame = shifted().assign(slope=line[0], intercept=line[1], references=25)
    expected = expit(0.9 * logit(0.9) - 0.7)
    e = shifts.effective_robustness(frame)
    assert e.value == pytest.approx(0.6 - expected) and e.low < e.value < e.high
    known = shifted(clean=(180_000, 200_000)).assign(slope=0.9, intercept=-0.7, references=25)
    wilson, sure = stats.wilson(60, 100), shifts.effective_robustness(known)
    assert (sure.low, sure.high) == pytest.approx((wilson.low - expected, wilson.high - expected), abs=2e-3)
    assert sure.low > e.low and sure.high < e.high


def test_a_falling_line_and_a_perfect_model_keep_ordered_bounds():
    frame = shifted(right=100, clean=(200, 200)).assign(slope=-0.5, intercept=0.0, references=30)
    e = shifts.effective_robustness(frame)
    assert e.value == pytest.approx(1 - expit(-0.5 * logit(1 - 0.5 / 200))) and e.low < e.value <= e.high
    assert shifts.effective_robustness(shifted()).n == 0


def test_populations_that_fit_no_line_are_refused():
    with pytest.raises(DataError, match="a reference population must be at least 20 models, got 19"):
        shifts.reference_line(population()[:19])
    with pytest.raises(DataError, match=r"reference accuracies must be rates in \(0, 1\)"):
        shifts.reference_line([*population(), (76.0, 60.0)])
    with pytest.raises(DataError, match="reference accuracies"):
        shifts.reference_line([*population(), (math.nan, 0.5)])
    with pytest.raises(DataError, match="reference models must be of different clean accuracy"):
        shifts.reference_line([(0.9, 0.5 + 0.01 * i) for i in range(20)])


def test_relative_robustness_is_paired_and_needs_the_same_images():
    ours, other = shifted("pruned", right=50), shifted("m", right=60)
    e, same = shifts.relative_robustness(ours, other), stats.tango(0, 10, 100)
    assert (e.value, e.low, e.high, e.n) == (same.value, same.low, same.high, 100)
    assert shifts.relative_robustness(ours, other[other["sample"] > 0]).n == 0


def test_the_table_compares_a_changed_model_with_itself_and_others_with_the_baseline():
    frames = [
        shifted("m", baseline="m"), shifted("m", right=50, condition="prune(amount=0.5)", cell="p"),
        shifted("other", right=70, baseline="m"),
    ]  # fmt: skip
    table = tidy({"shift": pd.concat(frames, ignore_index=True)})
    relative = table[table["metric"] == "relative_robustness"].set_index(["model", "condition"])
    assert set(relative["attack"]) == {"over m"} and set(relative["threat"]) == {"sketch"}
    assert relative["value"].to_dict() == pytest.approx({("m", "prune(amount=0.5)"): -0.1, ("other", ""): 0.1})
    accuracy = table[table["metric"] == "shifted_accuracy"]
    assert list(accuracy["n_clean_correct"]) == [180] * 3


def test_grids_give_worst_and_mean():
    frame = pd.DataFrame({"sample": range(4), "score_clean": [1.0, 1, 1, 0], "score_worst": [1.0, 0, 0, 0]})
    frame = frame.assign(
        score_mean=[1.0, 0.5, 0.75, 0.25], grid="grid(...)", model="m", scenario="spatial", cell="c", padding="zeros", **BASE
    )
    table = tidy({"spatial": frame}).set_index("metric")
    assert table.loc["spatial_robust_accuracy", "value"] == 0.25
    assert table.loc["spatial_mean_accuracy", "value"] == pytest.approx(0.625)
    assert set(table["threat"]) == {"grid(...)"} and set(table["n_clean_correct"]) == {3}


def test_the_robust_gap_counts_only_attacks_that_both_met(synthetic):
    whole = synthetic.frames()
    test = whole["evasion"][whole["evasion"]["threat"] == "linf(8/255)"]
    frames = {"evasion": test, "sentinel": whole["sentinel"]}
    train = test.assign(score_adv=test["score_adv"].where(test["attack"] != "pgd(steps=40)", test["score_clean"]))
    table = tidy({**frames, "evasion_train": train.assign(scenario="evasion_train")})
    mine = table[(table["model"] == "plain") & (table["threat"] == "linf(8/255)")].set_index(["metric", "attack"])
    on_train = mine.loc[("robust_accuracy_train", "worst"), "value"]
    gap = mine.loc[("robust_gap", "worst")]
    assert gap["value"] == pytest.approx(on_train - mine.loc[("robust_accuracy", "worst"), "value"]) and gap["value"] > 0
    assert gap["validity"] == "sound" and gap["n"] == 60
    masked = table[(table["model"] == "masked") & (table["metric"] == "robust_gap")]
    assert masked["validity"].str.startswith("suspicious").all()
    only = shifts.robust_gap(train[train["attack"] == "noise"], test[test["attack"] != "noise"])
    assert only.n == 0


def test_unknown_training_samples_are_not_robust(synthetic):
    test = synthetic.evasion("trained")
    part = test[test["threat"] == "linf(8/255)"]
    failed = part.assign(status="failed", score_adv=np.nan)
    e = shifts.robust_gap(failed, part)
    assert e.value <= 0 and e.value == pytest.approx(-shifts.robust.robust_accuracy(part).value)
    assert e.low < e.value and e.high == shifts.robust_gap(part.assign(score_adv=part["score_clean"]), part).high
