from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics import TABLE, clean, corrupted, cost, explained, robust, scarcity, stats
from robench.registry import Table

GROUPS = {"robustness", "generalization", "interpretability", "efficiency", "compression"}
SCENARIOS = {
    "clean", "evasion", "corruption", "explanation", "efficiency", "disagreement", "explanation_change", "twin", "ood",
    "calibration", "shift", "spatial", "groups", "flips",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_metric_declares_its_facts_and_stays_in_its_bounds(name, synthetic):
    entry = Table("metrics", TABLE)[name]
    facts = entry.facts
    assert facts["group"] in GROUPS and facts["needs"] in SCENARIOS and facts["summary"].endswith(".")
    assert isinstance(facts["higher_is_better"], bool) and facts["unit"]
    frame = {**synthetic.confident(), **synthetic.shifts()}[facts["needs"]]
    rows = frame[frame["model"] == "plain"]
    if facts["needs"] == "corruption":
        rows = synthetic.benchmark("plain")
    if facts["group"] == "compression" and facts["needs"] in ("corruption", "evasion"):
        rows = rows.assign(score=rows["score_clean"], score_parent=1.0)
    if facts["needs"] == "evasion":
        rows = rows.assign(draws=50, score_mean=0.75 * rows["score_adv"], score_worst=0.0)
    if facts["needs"] == "ood":
        rows = rows[(rows["detector"] == "energy") & rows["source"].isin(["", "glyphs"])]
    estimate = entry.load()(rows)
    low, high = facts["bounds"]
    assert estimate.n > 0
    assert estimate.value >= low and (high is None or estimate.value <= high)
    if estimate.kind == "interval":
        assert estimate.low <= estimate.value <= estimate.high


def test_metrics_and_reports_import_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, robench.metrics.table, robench.metrics.validity, robench.reports.write, robench.reports.text;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def rows_of(
    scores: dict[str, list[float]], clean_scores: list[float], failed: dict[str, list[int]] | None = None
) -> pd.DataFrame:
    parts = []
    for attack, adv in scores.items():
        bad = (failed or {}).get(attack, [])
        status = ["failed" if i in bad else "ok" for i in range(len(adv))]
        adv = [math.nan if s == "failed" else a for s, a in zip(status, adv, strict=True)]
        parts.append(
            pd.DataFrame(
                {
                    "sample": range(10, 10 + len(adv)),
                    "attack": attack,
                    "eps": 0.1,
                    "status": status,
                    "score_clean": clean_scores,
                    "score_adv": adv,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_robust_accuracy_is_the_per_sample_worst_case_not_the_worst_attack():
    frame = rows_of({"a": [0, 1, 1, 1], "b": [1, 0, 1, 1]}, [1, 1, 1, 0])
    assert robust.robust_accuracy(frame).value == 1 / 4


def test_unknown_samples_count_as_not_robust_and_broken_ones_are_not_unknown():
    frame = rows_of({"a": [1, 0, 1, 1, 1], "b": [1, 1, 1, 1, 1]}, [1, 1, 1, 1, 0], {"b": [0, 1, 4]})
    assert robust.robust_accuracy(frame).value == 2 / 5
    assert robust.n_unknown(frame).value == 1
    without = robust.robust_accuracy_without_unknown(frame)
    assert (without.value, without.n) == (2 / 4, 4)


def test_the_upper_end_counts_unknown_samples_as_robust_and_value_and_lower_end_do_not():
    """52 of 60 are unknown, 8 are broken: between none and 52 are robust."""
    frame = rows_of({"a": [0] * 8 + [1] * 52}, [1] * 60, {"a": list(range(8, 60))})
    none, most = stats.wilson(0, 60), stats.wilson(52, 60)
    rounded = frame.assign(broken_8bit=frame["score_adv"] == 0)
    for found in (robust.robust_accuracy(frame), robust.robust_accuracy_8bit(rounded)):
        assert (found.value, found.low, found.high) == (0.0, none.low, most.high)
    near, far = frame.fillna({"score_adv": 1.0}).assign(status="ok"), frame.assign(eps=0.2)
    area = robust.security_curve_area(pd.concat([near, far]))
    known = robust.security_curve_area(pd.concat([near, near.assign(eps=0.2)]))
    assert area.value < known.value and area.high == known.high


def test_an_attack_row_without_a_score_is_a_failure_even_if_it_says_ok():
    frame = rows_of({"a": [1, math.nan]}, [1, 1])
    assert robust.robust_accuracy(frame).value == 1 / 2
    assert robust.n_unknown(frame).value == 1


def test_worst_case_equals_a_slow_twin():
    rng = np.random.default_rng(0)
    frame = rows_of({a: list(rng.integers(0, 2, 50)) for a in "abc"}, list(rng.integers(0, 2, 50)), {"b": [3, 7, 20, 21]})
    good = 0
    for sample in frame["sample"].unique():
        mine = frame[frame["sample"] == sample]
        good += bool((mine["score_clean"] == 1).all() and (mine["status"] == "ok").all() and (mine["score_adv"] == 1).all())
    assert robust.robust_accuracy(frame.sample(frac=1, random_state=1)).value == good / 50


def test_graded_scores_take_the_minimum():
    frame = rows_of({"a": [0.9, 0.5], "b": [0.7, 0.6]}, [0.8, 0.55])
    assert robust.robust_accuracy(frame).value == pytest.approx((0.7 + 0.5) / 2)


def test_security_curve_area_of_a_known_curve():
    near = rows_of({"a": [1, 1, 0, 0]}, [1, 1, 1, 0])
    far = rows_of({"a": [1, 0, 0, 0]}, [1, 1, 1, 0]).assign(eps=0.3)
    box = rows_of({"a": [0, 0, 0, 0]}, [1, 1, 1, 0]).assign(eps=math.inf)
    area = robust.security_curve_area(pd.concat([near, far, box])).value
    assert area == pytest.approx((0.1 * (0.75 + 0.5) / 2 + 0.2 * (0.5 + 0.25) / 2) / 0.3)
    assert robust.security_curve_area(box).n == 0


def clean_rows(score: list[float], confidence: list[float], **more: object) -> pd.DataFrame:
    return pd.DataFrame({"sample": range(len(score)), "score": score, "confidence": confidence, "split": "test", **more})


def test_accuracy_looks_at_the_test_split_only():
    frame = clean_rows([1, 0, 0], [1, 1, 1])
    frame.loc[2, "split"] = "train"
    assert clean.accuracy(frame).value == 0.5
    assert clean.train_test_gap(frame).value == -0.5


def test_gap_falls_back_to_the_recorded_training_accuracy():
    frame = clean_rows([1, 0], [1, 1], train_accuracy=0.9, train_n=100)
    assert clean.train_test_gap(frame).value == pytest.approx(0.4)
    assert clean.train_test_gap(clean_rows([1, 0], [1, 1])).n == 0


def test_worst_class_has_a_simultaneous_interval():
    frame = clean_rows([1] * 9 + [0] + [1] * 5 + [0] * 5, [1] * 20, label=[0] * 10 + [1] * 10)
    e = clean.worst_class_accuracy(frame)
    assert (e.value, e.n) == (0.5, 10)
    from robench.metrics.stats import wilson

    assert e.low == pytest.approx(wilson(5, 10, level=0.975).low)
    assert e.low < wilson(5, 10).low


def test_corrupted_accuracy_counts_images_not_rows():
    frame = pd.DataFrame({"sample": [0, 1] * 6, "score": [1.0, 0.0] * 6})
    e = corrupted.corrupted_accuracy(frame)
    assert (e.value, e.n) == (0.5, 2)


def test_data_efficiency_of_a_known_curve():
    parts = [clean_rows(s, [1] * 4, fraction=f) for f, s in ((0.25, [0, 0, 0, 0]), (0.5, [1, 1, 0, 0]), (1.0, [1, 1, 1, 1]))]
    assert scarcity.data_efficiency_auc(pd.concat(parts)).value == pytest.approx((0.25 + 0.75) / 2)
    assert scarcity.data_efficiency_auc(parts[0]).n == 0


def test_degenerate_maps_count_as_chance():
    gaps = {"gap": [0.5, math.nan], "gap_random": [0.1, 0.1], "infidelity": [0.2, math.nan], "degenerate": [False, True]}
    frame = pd.DataFrame({**gaps, "max_sensitivity": [1.0, 3.0]})
    assert explained.insertion_deletion_gap(frame).value == pytest.approx(0.2)
    assert explained.infidelity(frame).n == 1
    assert explained.max_sensitivity(frame).value == 2.0


def test_costs_are_exact(synthetic):
    e = cost.macs(synthetic.efficiency("plain"))
    assert (e.value, e.kind) == (5e6, "exact")
