from __future__ import annotations

import math

import pandas as pd
import pytest

from robench.errors import StoreError
from robench.metrics import table as table_module
from robench.metrics.table import COLUMNS, tidy, unmeasured


@pytest.fixture(scope="module")
def table(synthetic):
    return synthetic.table()


def pick(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    for key, value in where.items():
        table = table[table[key] == value]
    return table


def test_columns_stand_in_the_promised_order(table):
    assert ",".join(table.columns) == (
        "model,dataset,scenario,condition,threat,eps,attack,metric,value,ci_low,ci_high,n,n_clean_correct,n_unknown,"
        "status,validity,excludes,escalated,seconds,forwards,backwards,cell"
    )
    assert tuple(tidy({}).columns) == COLUMNS and len(tidy({})) == 0


def test_a_verdict_says_what_its_checks_exclude_and_only_a_verdict_does(table):
    told = table["excludes"] != ""
    assert set(table.loc[told, "attack"]) == {"worst"} and told.any()
    assert table.loc[told, "excludes"].str.contains("of samples would have been told with a probability of 95 %").all()


def test_a_randomised_models_mean_and_worst_draw_stand_beside_its_robust_accuracy(synthetic):
    frames = {name: frame for name, frame in synthetic.frames().items() if name in ("clean", "evasion", "sentinel")}
    rows = frames["evasion"]
    assert not tidy(frames)["metric"].str.contains("_draw").any()
    half = rows["score_adv"].where(rows["score_adv"] == 0, 0.75)
    drawn = rows.assign(draws=50, score_mean=half, score_worst=0.0)
    table = pick(tidy({**frames, "evasion": drawn}), model="trained", threat="linf(8/255)", attack="worst")
    found = table.set_index("metric")["value"]
    assert found["robust_accuracy_mean_draw"] == pytest.approx(0.75 * found["robust_accuracy"])
    assert found["robust_accuracy_worst_draw"] == 0 < found["robust_accuracy"]


def test_one_row_per_attack_and_one_worst_row_with_the_verdict(table):
    rows = pick(table, model="trained", threat="linf(8/255)", metric="robust_accuracy")
    assert list(rows["attack"]) == ["fgsm", "noise", "pgd(steps=40)", "worst"]
    assert list(rows["validity"]) == ["", "", "", "sound"]
    assert rows["value"].iloc[-1] <= rows["value"].min()
    assert pick(table, model="masked", attack="worst")["validity"].str.startswith("suspicious: zero gradients").all()
    assert list(rows["n"]) == [60] * 4 and list(rows["n_clean_correct"]) == [57] * 4 and list(rows["n_unknown"]) == [0] * 4


def test_work_is_summed_and_rows_name_their_cell(table):
    worst = pick(table, model="trained", threat="linf(8/255)", metric="robust_accuracy", attack="worst").iloc[0]
    assert (worst["forwards"], worst["backwards"]) == (7200, 4800)
    assert worst["seconds"] == pytest.approx(1.8)
    assert worst["cell"] and "+" not in worst["cell"]


def test_the_curve_row_is_per_norm_and_suspicious_if_one_threat_is(table):
    curve = pick(table, attack="curve", metric="security_curve_area")
    assert list(curve["threat"]) == ["linf"] * 3 and curve["eps"].isna().all()
    assert list(curve["validity"].str.partition(":")[0]) == ["suspicious", "sound", "sound"]


def test_corruptions_have_each_severity_and_their_means(table):
    rows = pick(table, model="plain", metric="corrupted_accuracy")
    assert len(rows) == 15 + 5 + 1
    each = rows[rows["threat"] != "mean"]["value"].mean()
    assert pick(rows, threat="mean")["value"].iloc[-1] == pytest.approx(each)
    assert math.isnan(pick(rows, threat="mean")["eps"].iloc[-1])


def test_scarcity_has_conditions_seeds_fractions_and_an_area(table):
    conditions = pick(table, model="plain", metric="accuracy")["condition"]
    told = [f"scarcity(fraction={f}){seed}" for f in (0.05, 0.1, 0.5, 1.0) for seed in ("", " seed=1")]
    assert list(conditions) == ["", *told]
    assert list(pick(table, metric="accuracy_at_fraction")["eps"]) == [0.05, 0.1, 0.5, 1.0]
    assert len(pick(table, metric="data_efficiency_auc")) == 1


def test_explanations_and_costs_are_there(table):
    assert set(pick(table, metric="insertion_deletion_gap")["attack"]) == {"saliency", "smoothgrad"}
    cost = pick(table, model="plain", scenario="efficiency")
    assert len(cost) == 13 and cost["ci_low"].isna().all()
    large = cost[cost["metric"].str.contains("_large_")]
    assert set(large["threat"]) == {"batch=32"} and set(cost["threat"]) == {"", "batch=32"}


def test_what_was_measured_says_on_which_device_and_with_how_many_threads(synthetic):
    rows = synthetic.efficiency("plain").assign(device="cuda", threads=2)
    found = tidy({"efficiency": rows}).set_index("metric")["attack"]
    assert found["latency_p50_ms"] == found["throughput"] == found["peak_memory_bytes"] == "cuda, 2 threads"
    assert found["parameters"] == found["stored_bytes"] == ""


def test_order_of_the_rows_in_the_frames_does_not_matter(synthetic, table):
    shuffled = {k: f.sample(frac=1, random_state=3) for k, f in reversed(synthetic.frames().items())}
    again = tidy(shuffled)
    pd.testing.assert_frame_equal(unmeasured(again), unmeasured(table), rtol=1e-12)
    assert (
        unmeasured(again).drop(columns=["value", "ci_low", "ci_high"]).to_csv()
        == unmeasured(table).drop(columns=["value", "ci_low", "ci_high"]).to_csv()
    )


def test_unmeasured_is_the_same_bytes_whatever_was_measured(synthetic, table):
    frames = synthetic.frames()
    frames["evasion"] = frames["evasion"].assign(seconds=9.0)
    frames["efficiency"] = frames["efficiency"].assign(latency_p50_ms=7.0, latency_p95_ms=8.0, peak_memory_bytes=1.0)
    other = tidy(frames)
    assert other.to_csv() != table.to_csv()
    assert unmeasured(other).to_csv() == unmeasured(table).to_csv()
    assert "seconds" not in unmeasured(table) and "macs" in set(unmeasured(table)["metric"])


def test_limited_and_unknown_are_in_the_status(synthetic):
    frames = {name: frame for name, frame in synthetic.frames().items() if name in ("clean", "evasion", "sentinel")}
    assert set(synthetic.table(limited=True)["status"]) == {"limited"}
    bad = frames["evasion"]["model"].eq("trained") & frames["evasion"]["attack"].eq("fgsm")
    frames["evasion"].loc[bad, "status"] = "failed"
    frames["evasion"].loc[bad, "score_adv"] = math.nan
    worst = pick(tidy(frames), model="trained", threat="linf(8/255)", attack="worst", metric="robust_accuracy").iloc[0]
    assert worst["status"] == "unknown" and worst["n_unknown"] > 0 and "attack rows failed (fgsm)" in worst["validity"]
    assert worst["value"] == 0.0


def test_costs_of_a_fake_quantized_model_say_simulated_and_have_no_bytes():
    row = {"model": "m", "dataset": "d", "scenario": "efficiency", "condition": "int8", "seed": 0, "cell": "c",
           "parameters": 9,
           "nonzero": 9, "macs": 5.0, "stored_bytes": None, "latency_p50_ms": None, "latency_p95_ms": None,
           "peak_memory_bytes": None, "threads": 1, "device": "cpu", "simulated": True}  # fmt: skip
    found = tidy({"efficiency": pd.DataFrame([row])})
    assert set(found["status"]) == {"simulated"} and "macs" in set(found["metric"])
    assert not set(found["metric"]) & {"stored_bytes", "latency_p50_ms", "peak_memory_bytes"}


def test_no_line_of_another_seed_stands_where_the_first_one_lost_a_scenario():
    rows = pd.DataFrame({"sample": range(20), "label": 0, "split": "test", "pred": 0, "score": 1.0, "confidence": 0.9})
    lead = {"model": "net", "dataset": "d", "condition": "scarcity(fraction=0.1)", "cell": "c"}
    clean = pd.concat([rows.assign(**lead, seed=s, brier=0.0, nll=0.1) for s in (0, 1)])
    told = {"threat": "linf(0.1)", "eps": 0.1, "attack": "noise(draws=2)", "access": "noise", "status": "ok", "seconds": 0.0}
    flags = dict.fromkeys(("projected", "unstable", "broken", "broken_8bit"), False)
    counts = dict.fromkeys(("forwards", "backwards", "zero_gradients", "nonfinite_gradients", "nonfinite_outputs"), 0)
    evasion = rows[["sample", "label"]].assign(**lead, **told, **flags, **counts, seed=1, score_clean=1.0, score_adv=1.0,
                                               margin_clean=1.0, margin_adv=1.0, distance=0.0)  # fmt: skip
    table = tidy({"clean": clean, "evasion": evasion})
    assert set(table[table["metric"] == "accuracy"]["condition"]) == {lead["condition"], f"{lead['condition']} seed=1"}
    assert set(table[table["metric"] == "robust_accuracy"]["condition"]) == {f"{lead['condition']} seed=1"}


@pytest.mark.parametrize("scenario", ["clean", "evasion", "corruption"])
def test_rows_that_lack_a_column_are_told_by_its_name(synthetic, scenario):
    """A store edited by hand or written by other code: the table is made without the column, or the error names it."""
    frames = {name: synthetic.frames()[name] for name in (scenario,)}
    frames = {name: frame[frame["model"] == "trained"] for name, frame in frames.items()}
    named = set()
    for column in set(frames[scenario]) - {"model", "dataset", "condition"}:
        try:
            tidy({**frames, scenario: frames[scenario].drop(columns=column)})
        except StoreError as error:
            assert f"no column {column}" in str(error)
            named.add(column)
    needed = {"clean": {"score", "confidence"}, "evasion": {"score_adv"}, "corruption": {"severity"}}
    assert needed.get(scenario, set()) <= named


def test_other_lookups_that_fail_are_not_told_as_missing_columns(synthetic, monkeypatch):
    monkeypatch.setitem(table_module._MAKERS, "clean", lambda rows, frames: [{}["confidences"]])
    with pytest.raises(KeyError):
        tidy(synthetic.frames())
