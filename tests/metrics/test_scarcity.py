"""Curves, gains and memorised labels from synthetic frames, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics import crossed, scarcity, stats
from robench.metrics.scarcity import cube, curves, pairs, read_condition
from robench.metrics.table import COLUMNS, tidy

N = 40
RNG = np.random.default_rng(0)


def clean(condition: str, share: float, *, seed: int = 0, dataset: str = "digits", **more: object) -> pd.DataFrame:
    """Rows of one training: the first ``share`` of the images are right."""
    right = (np.arange(N) < round(share * N)).astype(float)
    base = {"model": "m", "dataset": dataset, "scenario": "clean", "condition": condition, "seed": seed, "split": "test"}
    return pd.DataFrame({**base, "cell": f"{condition}{seed}", "sample": np.arange(N), "label": np.arange(N) % 4,
                         "score": right, "confidence": 0.9, "brier": 0.1, "nll": 0.2, "margin": 1.0, **more})  # fmt: skip


def attacked(condition: str, share: float, *, seed: int = 0, failed: int = 0, attack: str = "pgd") -> pd.DataFrame:
    rows = clean(condition, 1.0, seed=seed).assign(scenario="evasion", threat="linf(0.1)", eps=0.1, attack=attack)
    status = np.where(np.arange(N) < failed, "failed", "ok")
    return rows.assign(score_clean=1.0, score_adv=(np.arange(N) < round(share * N)).astype(float), status=status)


def worn(condition: str, name: str, share: float, *, seed: int = 0) -> pd.DataFrame:
    parts = [clean(condition, share, seed=seed).assign(severity=s, corruption=name, score_clean=1.0) for s in (1, 2)]
    return pd.concat(parts).assign(scenario="corruption")


def table(**frames: list[pd.DataFrame]) -> pd.DataFrame:
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return (
        pd.DataFrame(list(scarcity.lines(whole, [])), columns=[*COLUMNS], dtype=object)
        .infer_objects()
        .assign(status=lambda t: t["status"].astype(object).fillna(""))
    )


def only(rows: pd.DataFrame, **keys: object) -> pd.Series:
    for key, value in keys.items():
        rows = rows[rows[key] == value]
    assert len(rows) == 1, rows
    return rows.iloc[0]


FRACTIONS = {0.1: 0.5, 0.25: 0.75, 0.5: 0.85, 1.0: 0.9}


def grown(**more: object) -> list[pd.DataFrame]:
    return [
        clean(f"scarcity(fraction={f})", share + 0.05 * (seed == 1), seed=seed, fraction=f, train_n=round(1000 * f), **more)
        for f, share in FRACTIONS.items() for seed in (0, 1, 2)
    ]  # fmt: skip


def test_a_curve_joins_trainings_at_each_fraction() -> None:
    rows = table(clean=grown())
    points = rows[rows["metric"] == "accuracy_at_fraction"]
    assert (
        points["eps"].tolist() == list(FRACTIONS) and set(points["attack"]) == {"clean"} and set(points["condition"]) == {""}
    )
    expected = [np.mean([round(s * N), round((s + 0.05) * N), round(s * N)]) / N for s in FRACTIONS.values()]
    assert points["value"].tolist() == pytest.approx(expected)
    scores = np.stack([part["score"].to_numpy() for part in grown()[:3]])
    found = crossed.rate(scores)
    assert (points["ci_low"].iloc[0], points["ci_high"].iloc[0]) == pytest.approx((found.low, found.high))
    assert rows[rows["metric"] == "trainings_at_fraction"]["value"].tolist() == [3.0] * 4
    area = only(rows, metric="data_efficiency_auc")
    logs = np.log2(list(FRACTIONS))
    assert area["value"] == pytest.approx(np.trapezoid(expected, logs) / (logs[-1] - logs[0]))
    assert area["ci_low"] < area["value"] < area["ci_high"]
    assert only(rows, metric="scarce_accuracy_ratio")["value"] == pytest.approx(expected[0] / expected[-1])
    reached = only(rows, metric="samples_for_target", eps=0.8)
    share = (0.8 - expected[1]) / (expected[2] - expected[1])
    assert reached["value"] == pytest.approx(250 * 2**share) and not reached["status"]
    assert 0 < only(rows, metric="power_law_exponent")["value"] < 4


def test_targets_beyond_the_sizes_are_censored_and_said_so() -> None:
    rows = table(
        clean=[clean(f"scarcity(fraction={f})", s, fraction=f, train_n=100 * f) for f, s in ((0.5, 0.55), (1.0, 0.7))]
    )
    low, high = (only(rows, metric="samples_for_target", eps=target) for target in (0.5, 0.9))
    assert low["status"] == high["status"] == "censored" and low["value"] == 50 and math.isnan(high["value"])
    assert low["ci_low"] == 0 and high["ci_low"] == 100 and math.isinf(high["ci_high"])


def test_lines_stand_in_the_tidy_table_in_one_order() -> None:
    parts = [p for p in grown() if p["seed"].iloc[0] < 2]
    one, other = (tidy({"clean": pd.concat(p, ignore_index=True)}) for p in (parts, parts[::-1]))
    pd.testing.assert_frame_equal(one, other)
    rows = one[one["scenario"] == "scarcity"]
    assert (rows["metric"] == "accuracy_at_fraction").sum() == 4 and set(rows["threat"]) == {"fraction"}


def test_one_fraction_makes_no_curve_and_constant_accuracy_no_law() -> None:
    assert table(clean=[clean("scarcity(fraction=0.5)", 0.5, fraction=0.5, train_n=50)]).empty
    flat = table(clean=[clean(f"scarcity(fraction={f})", 0.8, fraction=f, train_n=1000 * f) for f in FRACTIONS])
    assert only(flat, metric="data_efficiency_auc")["value"] == pytest.approx(0.8)
    assert not flat["metric"].str.startswith("power_law").any()
    assert scarcity.data_efficiency_auc(clean("", 0.5)) == stats.EMPTY


def test_a_missing_score_counts_as_wrong() -> None:
    parts = grown()
    parts[0] = parts[0].assign(score=parts[0]["score"].where(parts[0]["sample"] != 0))
    before, after = (only(table(clean=p), metric="accuracy_at_fraction", eps=0.1)["value"] for p in (grown(), parts))
    assert after == pytest.approx(before - 1 / (3 * N))


def test_images_and_seeds_that_are_not_everywhere_are_left_out() -> None:
    parts = grown()
    few = [p if i else p[p["sample"] > 3] for i, p in enumerate(parts)]
    positions, scores = cube(pd.concat(few))
    assert positions.tolist() == list(FRACTIONS) and scores.shape == (4, 3, N - 4)
    assert cube(pd.concat(parts[:-1]))[1].shape == (4, 2, N)


def test_robust_accuracy_is_the_worst_case_and_unknown_is_not_robust() -> None:
    evasion = [
        attacked(f"scarcity(fraction={f})", share, attack=attack, failed=4 if attack == "pgd" else 0)
        for f in FRACTIONS for attack, share in (("pgd", 0.6), ("apgd", 0.4))
    ]  # fmt: skip
    rows = table(clean=grown(), evasion=evasion)
    point = only(rows, metric="robust_accuracy_at_fraction", eps=0.5)
    assert point["value"] == pytest.approx(0.4 - 4 / N) and point["attack"] == "linf(0.1)"
    assert point["n_unknown"] == 4
    known = [part.assign(status="ok", score_adv=part["score_adv"].fillna(1.0)) for part in evasion]
    least = only(table(clean=grown(), evasion=known), metric="robust_accuracy_at_fraction", eps=0.5)
    assert point["ci_high"] == least["ci_high"] and least["value"] > point["value"]
    assert "robust_power_law_exponent" not in set(rows["metric"]), "what is missing may bend the law either way"
    assert only(rows, metric="robust_data_efficiency_auc")["n_unknown"] == 16


def test_verdicts_of_the_trainings_are_kept() -> None:
    lines = [
        {"model": "m", "dataset": "digits", "attack": "worst", "condition": condition, "threat": "linf(0.1)",
         "validity": told}
        for condition, told in (("scarcity(fraction=0.1)", "sound"), ("scarcity(fraction=0.5) seed=1", "suspicious: a; b"))
    ]  # fmt: skip
    frames = {
        "clean": pd.concat(grown()),
        "evasion": pd.concat([attacked(f"scarcity(fraction={f})", 0.5) for f in FRACTIONS]),
    }
    found = {(r["metric"], r.get("eps")): r.get("validity") for r in scarcity.lines(frames, lines)}
    assert found["robust_accuracy_at_fraction", 0.1] == "sound"
    assert found["robust_accuracy_at_fraction", 0.5] == found["robust_data_efficiency_auc", None] == "suspicious: a; b"
    assert found["accuracy_at_fraction", 0.5] is None


def test_gains_are_paired_by_seed_and_image() -> None:
    arm = "scarcity(augment='mixup', fraction=0.1)"
    parts = [clean(arm, 0.5 + 0.1 * seed, seed=seed, fraction=0.1) for seed in (0, 1)]
    rows = table(clean=[*grown(), *parts])
    gain = only(rows, threat="gain", attack="clean")
    first = np.stack([p["score"] for p in parts])
    second = np.stack([p["score"] for p in grown()[:2]])
    found = crossed.difference(first, second)
    assert (gain["value"], gain["ci_low"], gain["ci_high"]) == pytest.approx((found.value, found.low, found.high))
    assert gain["condition"] == arm and gain["metric"] == "gain_in_accuracy" and gain["eps"] == 0.1
    reversed_ = table(clean=[*parts[::-1], *grown()[::-1]])
    assert only(reversed_, threat="gain", attack="clean")["ci_low"] == pytest.approx(gain["ci_low"])


def test_a_corruption_that_the_augmentation_is_made_of_does_not_count_for_it() -> None:
    arm, plain = "scarcity(augment='rotation', fraction=0.1)", "scarcity(fraction=0.1)"
    parts = [
        clean(arm, 0.5, fraction=0.1, augment_overlaps="rotation"),
        clean(plain, 0.5, fraction=0.1, augment_overlaps=""),
    ]
    corruption = [worn(arm, "rotation", 1.0), worn(plain, "rotation", 0.0), worn(arm, "fog", 0.3), worn(plain, "fog", 0.2)]
    gain = only(table(clean=parts, corruption=corruption), metric="gain_in_corrupted_accuracy")
    assert gain["value"] == pytest.approx(0.1) and gain["attack"] == "corruption without rotation"
    rest = [worn(arm, "rotation", 1.0), worn(plain, "rotation", 0.0)]
    assert not (table(clean=parts, corruption=rest)["metric"] == "gain_in_corrupted_accuracy").any()


def test_transfer_is_compared_on_its_own_data_set_only() -> None:
    arm, plain = "scarcity(fraction=0.1, transfer='lp_ft')", "scarcity(fraction=0.1)"
    halves = [clean(c, s, fraction=0.1, dataset="half") for c, s in ((arm, 0.9), (plain, 0.6))]
    rows = table(clean=[*halves, *grown()])
    assert only(rows, threat="gain")["value"] == pytest.approx(0.3) and only(rows, threat="gain")["dataset"] == "half"


def test_noise_imbalance_and_shots_have_curves_from_none() -> None:
    conditions = {
        "scarcity(fraction=1.0)": 0.9, "scarcity(fraction=1.0, label_noise=0.2)": 0.8,
        "scarcity(fraction=1.0, label_noise=0.4)": 0.6,
        "scarcity(fraction=1.0, label_noise=0.4, noise='pair')": 0.5, "scarcity(fraction=1.0, imbalance=10.0)": 0.7,
        "scarcity(shots=2)": 0.3, "scarcity(shots=5)": 0.4,
    }  # fmt: skip
    rows = table(clean=[clean(c, s) for c, s in conditions.items()])

    def curve(axis: str, base: str) -> dict[float, float]:
        part = rows[(rows["metric"] == f"accuracy_at_{axis}") & (rows["condition"] == base)]
        return dict(zip(part["eps"], part["value"].round(3), strict=True))

    assert curve("label_noise", "scarcity(fraction=1.0)") == {0.0: 0.9, 0.2: 0.8, 0.4: 0.6}
    assert curve("label_noise", "scarcity(fraction=1.0, noise='pair')") == {0.0: 0.9, 0.4: 0.5}
    assert curve("imbalance", "scarcity(fraction=1.0)") == {1.0: 0.9, 10.0: 0.7}
    assert curve("shots", "") == {2.0: 0.3, 5.0: 0.4}


def test_memorised_labels_are_a_share_of_the_wrong_ones() -> None:
    condition = "scarcity(fraction=1.0, label_noise=0.4)"
    made = [clean(condition, 0.5, seed=s, noisy_n=100, memorised_n=k) for s, k in ((0, 10), (1, 30), (2, 20))]
    found = scarcity.memorised_labels(pd.concat(made))
    assert (found.value, found.n) == (pytest.approx(0.2), 300)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert scarcity.memorised_labels(made[1]) == stats.wilson(30, 100)
    assert scarcity.memorised_labels(clean(condition, 0.5)) == stats.EMPTY
    assert scarcity.memorised_labels(clean(condition, 0.5, noisy_n=0, memorised_n=0)) == stats.EMPTY
    row = only(table(clean=made), metric="memorised_labels")
    assert row["eps"] == 0.4 and row["value"] == pytest.approx(0.2)


def test_conditions_are_read_and_others_left_alone() -> None:
    assert read_condition("scarcity(label_noise=0.2)") == {"fraction": 1.0, "label_noise": 0.2}
    assert read_condition("scarcity(shots=5)") == {"shots": 5}
    for other in ("", "prune(amount=0.5)", "scarcity(fraction=0.1) | prune(amount=0.5)"):
        assert read_condition(other) is None
    assert table(clean=[clean("", 0.9), clean("prune(amount=0.5)", 0.8)]).empty


def test_pairs_and_curves_need_their_plain_twin() -> None:
    arms = {c: read_condition(c) for c in ("scarcity(augment='mixup', fraction=0.1)", "scarcity(fraction=0.5)")}
    assert list(pairs(arms)) == []
    assert list(curves(arms, "fraction")) == []


@pytest.mark.parametrize("condition", ["scarcity(fraction=0.1, seed=1)", "scarcity(fraction=0.1)", ""])
@pytest.mark.parametrize("suffix", ["", "seed=2"])
def test_doubts_are_found_whatever_seed_the_condition_names(condition, suffix):
    from robench.metrics.scarcity import _doubts

    line = {"model": "m", "dataset": "d", "attack": "worst", "validity": "suspicious: x", "threat": "linf(0.1)"}
    found = _doubts([{**line, "condition": f"{condition} {suffix}".strip()}], "m", "d")
    assert found == {(condition, "linf(0.1)"): ("suspicious: x",)}
