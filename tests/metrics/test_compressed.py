"""Compressed against parent: loops, scikit-learn, scipy, statsmodels and torchmetrics; and the cases at the edge."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics import compressed, stats
from robench.metrics.table import tidy

RNG = np.random.Generator(np.random.Philox(key=7))
N, K = 400, 5


def frame(n: int = N, *, noise: float = 1.0) -> pd.DataFrame:
    """Two models' predictions on n samples of five classes."""
    labels = RNG.integers(0, K, n)
    first = RNG.normal(size=(n, K)) + 2.0 * np.eye(K)[labels]
    other = first + noise * RNG.normal(size=(n, K))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (first, other))
    return pd.DataFrame(
        {
            "sample": np.arange(n), "label": labels, "parent": "", "pred": q.argmax(1), "pred_parent": p.argmax(1),
            "score": (q.argmax(1) == labels).astype(float), "score_parent": (p.argmax(1) == labels).astype(float),
            "confidence": q.max(1), "confidence_parent": p.max(1), "kl": (p * np.log(p / q)).sum(1),
        }
    ).assign(model="m", dataset="d", condition="prune", seed=0, cell="c")  # fmt: skip


ROWS = frame()
P, Q = ROWS["pred_parent"].to_numpy(), ROWS["pred"].to_numpy()


def test_disagreement_and_churn_are_the_counts_of_a_confusion_table():
    from sklearn.metrics import accuracy_score, confusion_matrix
    from statsmodels.stats.proportion import proportion_confint

    found = compressed.disagreement_rate(ROWS)
    assert found.value == pytest.approx(1 - accuracy_score(P, Q))
    low, high = proportion_confint(int((P != Q).sum()), N, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))
    (_, won), (lost, _) = confusion_matrix(ROWS["score_parent"] > 0, ROWS["score"] > 0)
    for metric, count in ((compressed.correct_to_wrong, lost), (compressed.wrong_to_correct, won)):
        estimate = metric(ROWS)
        low, high = proportion_confint(count, N, method="wilson")
        assert estimate.value == pytest.approx(count / N) and (estimate.low, estimate.high) == pytest.approx((low, high))
    drop = compressed.accuracy_drop(ROWS)
    assert drop.value == pytest.approx((lost - won) / N)
    assert drop == stats.tango(int(lost), int(won), N)


def test_kl_is_scipys_entropy_of_the_scenarios_logits():
    import torch
    from scipy.stats import entropy

    from robench.scenarios.disagreement import divergence

    first, other = RNG.normal(size=(2, 50, K))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (first, other))
    found = divergence(torch.tensor(first), torch.tensor(other)).numpy()
    np.testing.assert_allclose(found, entropy(p, q, axis=1), rtol=1e-10)
    assert compressed.kl_from_parent(ROWS.head(50).assign(kl=found)).value == pytest.approx(entropy(p, q, axis=1).mean())
    same = torch.tensor(first)
    assert not divergence(same, same.clone()).any()
    far = divergence(torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]]))
    assert far.item() == pytest.approx(1000.0)


def test_the_change_of_the_calibration_error_is_torchmetrics_difference():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    def theirs(suffix: str) -> float:
        confidence = torch.tensor(ROWS[f"confidence{suffix}"].to_numpy())
        return float(binary_calibration_error(confidence, torch.tensor(ROWS[f"score{suffix}"].to_numpy()).int(), n_bins=15))

    found = compressed.ece_change(ROWS)
    assert found.value == pytest.approx(theirs("") - theirs("_parent"), abs=1e-6)
    assert found.low <= found.value <= found.high and found.n == N


def test_class_drops_are_those_of_a_loop_with_statsmodels_tests():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    drops = compressed.class_drops(ROWS)
    raw = []
    for label, part in ROWS.groupby("label"):
        lost = int(((part["score_parent"] == 1) & (part["score"] == 0)).sum())
        won = int(((part["score_parent"] == 0) & (part["score"] == 1)).sum())
        raw.append(mcnemar([[0, lost], [won, 0]], exact=True).pvalue)
        assert drops.loc[label, "value"] == pytest.approx((lost - won) / len(part))
    np.testing.assert_allclose(drops["p"], multipletests(raw, method="holm")[1])
    worst = compressed.worst_class_drop(ROWS)
    assert worst.value == drops["value"].max() and worst.low <= worst.value <= worst.high
    level = 1 - 0.05 / K
    each = [stats.paired_difference(p["score_parent"], p["score"], level=level) for _, p in ROWS.groupby("label")]
    assert worst.high == max(e.high for e in each) and worst.low == max(e.low for e in each)


def test_the_worst_class_keeps_its_coverage_although_it_was_chosen():
    """All classes drop by the same 10 %; the interval of the worst one must hold that in 95 % of the draws."""
    n, inside, repeats = 60, 0, 300
    for _ in range(repeats):
        parent = np.ones((4, n))
        own = (RNG.random((4, n)) >= 0.1).astype(float)
        rows = pd.DataFrame({"label": np.repeat(np.arange(4), n), "score": own.ravel(), "score_parent": parent.ravel()})
        found = compressed.worst_class_drop(rows)
        inside += found.low <= 0.1 <= found.high
    assert inside / repeats >= 0.93


@pytest.mark.parametrize("name", sorted(compressed.METRICS))
def test_identical_models_differ_by_exactly_nothing(name):
    same = ROWS.assign(pred=P, score=ROWS["score_parent"], confidence=ROWS["confidence_parent"], kl=0.0)
    found = compressed.METRICS[name](same)
    assert found.value == 0.0 and found.low <= 0.0 <= found.high


@pytest.mark.parametrize("name", sorted(compressed.METRICS))
def test_one_sample_and_none(name):
    one = compressed.METRICS[name](ROWS.head(1))
    assert one.n == 1 and math.isfinite(one.value)
    none = compressed.METRICS[name](ROWS.head(0))
    assert none.n == 0 and math.isnan(none.value)


def test_a_class_that_is_absent_is_no_class():
    rows = ROWS[ROWS["label"] != 2]
    drops = compressed.class_drops(rows)
    assert list(drops.index) == [0, 1, 3, 4]
    assert compressed.worst_class_drop(rows).value == drops["value"].max()
    alone = compressed.class_drops(rows[rows["label"] == 0])
    assert alone["p"].item() == stats.mcnemar_exact(
        int(((rows["label"] == 0) & (rows["score_parent"] == 1) & (rows["score"] == 0)).sum()),
        int(((rows["label"] == 0) & (rows["score_parent"] == 0) & (rows["score"] == 1)).sum()),
    )


def test_a_missing_score_is_not_right():
    rows = ROWS.head(4).assign(score=[1.0, math.nan, 0.0, math.nan], score_parent=1.0)
    assert compressed.correct_to_wrong(rows).value == 0.75
    assert math.isnan(compressed.kl_from_parent(rows.assign(kl=math.nan)).value)


def corrupted(condition: str, level: float) -> pd.DataFrame:
    """Rows of 30 images at two corruptions and two severities, right with a chance."""
    index = pd.MultiIndex.from_product([range(30), ("fog", "jpeg"), (1, 2)], names=["sample", "corruption", "severity"])
    rows = index.to_frame(index=False)
    lead = {"model": "m", "dataset": "d", "scenario": "corruption", "condition": condition, "seed": 0, "cell": condition}
    return rows.assign(score=(RNG.random(len(rows)) < level).astype(float), score_clean=1.0, **lead)


def attacked(condition: str, level: float, *, failed: int = 0) -> pd.DataFrame:
    ids = np.arange(40)
    status = np.where(ids < failed, "failed", "ok")
    score = np.where(ids < failed, np.nan, (RNG.random(40) < level).astype(float))
    return pd.DataFrame(
        {"model": "m", "dataset": "d", "scenario": "evasion", "condition": condition, "seed": 0, "cell": condition,
         "sample": ids, "label": ids % K, "threat": "linf(0.1)", "eps": 0.1, "attack": "pgd", "access": "white", "stage": "",
         "status": status, "error": "", "score_clean": 1.0, "score_adv": score, "broken_8bit": False, "unstable": False,
         "forwards": 1, "backwards": 1, "zero_gradients": 0, "nonfinite_gradients": 0, "nonfinite_outputs": 0,
         "seconds": 0.0}
    )  # fmt: skip


def test_the_table_sets_every_scenario_beside_the_parents():
    corruption = pd.concat([corrupted("", 0.9), corrupted("prune", 0.6), corrupted("other", 0.1)], ignore_index=True)
    evasion = pd.concat([attacked("", 0.5), attacked("prune", 0.3, failed=3)], ignore_index=True)
    table = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "corruption": corruption, "evasion": evasion})
    rows = table[table["scenario"] == "disagreement"].set_index(["metric", "threat"])
    drop = rows.loc[("corrupted_accuracy_drop", "mean")]
    means = corruption.groupby("condition")["score"].mean()
    assert drop["value"] == pytest.approx(means[""] - means["prune"]) and drop["n"] == 30
    assert drop["ci_low"] < drop["value"] < drop["ci_high"]
    robust = rows.loc[("robust_accuracy_drop", "linf(0.1)")]
    left = evasion[evasion["condition"] == "prune"]["score_adv"].fillna(0.0).mean()
    assert robust["value"] == pytest.approx(evasion[evasion["condition"] == ""]["score_adv"].mean() - left)
    kept = pd.concat([evasion.fillna({"score_adv": 1.0}).assign(status="ok")])
    least = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "evasion": kept})
    least = least[least["metric"] == "robust_accuracy_drop"].iloc[0]
    assert robust["ci_low"] == least["ci_low"] and robust["value"] > least["value"] and robust["ci_high"] > least["ci_high"]
    assert robust["status"] == "unknown" and robust["n_unknown"] == 3 and robust["attack"] == "worst"
    assert set(rows.index.get_level_values(0)) >= {*compressed.METRICS, "class_accuracy_drop", "class_drop_p_value"}
    stronger = attacked("", 0.0).assign(attack="apgd")
    more = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "evasion": pd.concat([evasion, stronger])})
    again = more[more["metric"] == "robust_accuracy_drop"].iloc[0]
    assert again["value"] == robust["value"], "an attack that only the parent met does not count against it"
    lent = evasion.assign(attack=evasion["attack"].where(evasion["condition"] == "", "through(attack='pgd')"))
    through = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "evasion": lent})
    assert through.loc[through["metric"] == "robust_accuracy_drop", "value"].item() == robust["value"]
    noise = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "evasion": evasion.assign(access="noise")})
    assert "robust_accuracy_drop" not in set(noise["metric"])
    union = attacked("prune", 0.0).assign(attack="compressed-union(source='m')")
    strong = attacked("", 0.4).assign(attack="robench-standard")
    whole = pd.concat([evasion, stronger, strong, union])
    both = tidy({"disagreement": ROWS.assign(scenario="disagreement"), "evasion": whole})
    drop = both.loc[both["metric"] == "robust_accuracy_drop", "value"].item()
    met = pd.concat([evasion[evasion["condition"] == ""], strong]).groupby("sample")["score_adv"].min().mean()
    assert drop == pytest.approx(met), "ensembles are the same test; apgd, which only the parent met, is not"
    alone = tidy({"disagreement": ROWS.assign(scenario="disagreement")})
    assert not set(alone["metric"]) & {"corrupted_accuracy_drop", "robust_accuracy_drop"}


def test_the_worst_hit_class_and_every_significant_one_stand_in_the_table():
    hit = ROWS.assign(score=np.where(ROWS["label"].isin([1, 3]), 0.0, ROWS["score_parent"]))
    table = tidy({"disagreement": hit.assign(scenario="disagreement")})
    classes = table[table["metric"] == "class_accuracy_drop"]
    assert list(classes["threat"]) == ["class=1", "class=3"] and (classes["value"] > 0.5).all()
    assert (table.loc[table["metric"] == "class_drop_p_value", "value"] < 1e-6).all()


def test_explanations_of_each_explainer_have_lines():
    rows = pd.DataFrame({"sample": [0, 1, 0, 1], "explainer": ["a", "a", "b", "b"], "rank_correlation": [1.0, 0.0, 1.0, 1.0],
                         "top_intersection": [1.0, 0.5, 1.0, 1.0], "parent": ""})  # fmt: skip
    lead = {"model": "m", "dataset": "d", "scenario": "explanation_change", "condition": "prune", "seed": 0, "cell": "c"}
    table = tidy({"explanation_change": rows.assign(**lead)}).set_index(["metric", "attack"])["value"]
    assert table.to_dict() == {
        ("explanation_rank_correlation", "a"): 0.5, ("explanation_rank_correlation", "b"): 1.0,
        ("explanation_top_intersection", "a"): 0.75, ("explanation_top_intersection", "b"): 1.0,
    }  # fmt: skip
