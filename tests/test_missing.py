"""What was planned and is not there counts against a model: in worst cases, means, comparisons, and never elsewhere."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics import columns
from robench.metrics.table import tidy
from robench.missing import with_missing
from robench.reports.audit import audit

N = 40


def corrupted(model: str, name: str, score: float, cell: str, dataset: str = "digits") -> pd.DataFrame:
    rows = [
        {"sample": i, "label": 0, "corruption": name, "severity": s, "family": "noise", "table": "t", "source": "robench-C",
         "reference": "", "classes": 10, "pred": 0, "score": score, "score_clean": 1.0}
        for s in range(1, 6) for i in range(N)
    ]  # fmt: skip
    lead = {"model": model, "dataset": dataset, "scenario": "corruption", "condition": "", "seed": 0, "cell": cell}
    return pd.DataFrame(rows).assign(**lead)


def planned(scenario: str, dataset: str = "digits", model: str = "net", **more: str) -> dict:
    return {"scenario": scenario, "model": model, "dataset": dataset, "condition": "", "seed": 0, **more}


def test_a_corruption_without_a_result_counts_as_wrong_and_as_unknown():
    frame = corrupted("net", "brightness", 1.0, "a")
    plan = {
        "a": planned("corruption", corruption="brightness"),
        "b": planned("corruption", corruption="fog", family="weather"),
    }
    whole = with_missing({"corruption": frame}, plan)
    added = whole["corruption"][whole["corruption"]["cell"] == "b"]
    assert len(added) == 5 * N and set(added["corruption"]) == {"fog"} and set(added["family"]) == {"weather"}
    assert (added["score"] == 0).all() and added["failed"].all()
    table = tidy(whole)
    mean = table[(table["metric"] == "corrupted_accuracy") & (table["threat"] == "mean") & table["eps"].isna()].iloc[0]
    assert mean["value"] == 0.5 and mean["status"] == "unknown" and mean["n_unknown"] == N
    assert not audit(table, ["corrupted_accuracy>=0.1"]).passed
    assert audit(tidy({"corruption": frame}), ["corrupted_accuracy>=0.1"]).passed


def test_nobody_is_put_beside_a_reference_that_lacks_a_corruption():
    frames = [corrupted("a", "fog", 0.5, "1"), corrupted("a", "snow", 0.5, "2"), corrupted("b", "fog", 0.9, "3"),
              corrupted("b", "snow", 0.9, "4")]  # fmt: skip
    plan = {str(i + 1): planned("corruption", model="ab"[i // 2], corruption=("fog", "snow")[i % 2]) for i in range(4)}
    assert "mce_reference" in set(tidy(with_missing({"corruption": pd.concat(frames)}, plan))["metric"])
    lost = tidy(with_missing({"corruption": pd.concat([frames[0], *frames[2:]])}, plan))
    assert "mce_reference" not in set(lost["metric"])


@pytest.mark.parametrize(("dataset", "failed"), [("digits", 0), ("half", N)])
def test_a_failed_attack_is_charged_to_its_own_data_set(dataset, failed):
    rows = pd.DataFrame({"sample": range(N), "score_clean": 1.0, "score_adv": 1.0, "status": "ok", "threat": "linf(0.1)"})
    lead = {"model": "net", "condition": "", "seed": 0, "attack": "noise"}
    frame = pd.concat([rows.assign(**lead, dataset=d, cell=f"{d}-noise") for d in ("digits", "half")])
    plan = {f"{d}-noise": planned("evasion", d, attack="noise", threat="linf(0.1)") for d in ("digits", "half")}
    plan["lost"] = planned("evasion", "half", attack="pgd", threat="linf(0.1)")
    found = with_missing({"evasion": frame}, plan)["evasion"]
    assert int((found[found["dataset"] == dataset]["status"] == "failed").sum()) == failed


def test_a_failed_attack_lends_nothing_from_another(synthetic):
    """Its seconds were counted twice, and its access, margins and distances were those of the attack that finished."""
    frame = synthetic.evasion("trained", attacks=("pgd(steps=40)",)).assign(seconds=2.0, margin_adv=-3.0, distance=0.1)
    about = {key: frame[key].iloc[0] for key in ("model", "dataset", "condition", "seed")}
    plan = {"lost": {**about, "scenario": "evasion", "attack": "square(queries=5)", "threat": "linf(4/255)"}}
    added = with_missing({"evasion": frame}, plan)["evasion"].query("cell == 'lost'")
    clean = {"sample", "label", "score_clean", "pred_clean", "margin_clean"}
    assert set(columns.EVASION) <= set(added.columns)
    assert set(added["access"]) == {"score"} and set(added["seconds"]) == {0.0} and set(added["norm"]) == {"linf"}
    assert added[["pred_adv", "margin_adv", "distance", "fresh_copy_agrees"]].isna().all(axis=None)
    said = {"threat", "norm", "eps", "attack", "access", "status", "error", "score_adv", "score_mean", "score_worst"}
    rest = set(columns.EVASION) - clean - said
    assert added[sorted(rest)].isin(["", 0, False]).where(added[sorted(rest)].notna(), True).all(axis=None)
    whole = tidy(with_missing({"evasion": frame, "sentinel": synthetic.sentinel("trained")}, plan))
    before = tidy({"evasion": frame, "sentinel": synthetic.sentinel("trained")})
    assert whole["seconds"].max() == before["seconds"].max()


def test_an_attack_that_is_not_installed_counts_as_one_that_sees_everything(synthetic):
    frame = synthetic.evasion("trained")
    about = {key: frame[key].iloc[0] for key in ("model", "dataset", "condition", "seed")}
    plan = {"lost": {**about, "scenario": "evasion", "attack": "of_a_plugin(x=1)", "threat": "linf(4/255)"}}
    assert set(with_missing({"evasion": frame}, plan)["evasion"].query("cell == 'lost'")["access"]) == {"white"}
