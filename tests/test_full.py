"""The packaged ``full`` suite: one run of it, and what its leaderboard must show if the house is in order."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import robench
from robench.metrics.stats import paired_difference
from robench.metrics.table import tidy
from robench.zoo.entries import DIGITS

pytestmark = pytest.mark.slow

TRAINED = {"digits-pgd-at", "digits-trades"}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """Frames of a finished run named by ROBENCH_FULL_RUN, or of one that is done now."""
    given = os.environ.get("ROBENCH_FULL_RUN")
    if given is None:
        given = robench.run("full", out=tmp_path_factory.mktemp("full"), workers=1).out
    return robench.load(Path(given))


@pytest.fixture(scope="module")
def table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return tidy(frames)


def worst(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[(table["metric"] == "robust_accuracy") & (table["attack"] == "worst")]
    return rows.assign(sound=rows["validity"] == "sound")


def test_at_least_300_images_and_100_explained(table: pd.DataFrame) -> None:
    whole = worst(table).query("dataset == 'digits'")  # transfer arms look at half of the classes
    assert len(whole) and (whole["n"] >= 300).all()
    explained = table[table["scenario"] == "explanation"]
    assert len(explained) and (explained["n"] >= 100).all()


def test_adversarially_trained_models_lead(table: pd.DataFrame) -> None:
    at_eps = worst(table).query("threat == 'linf(0.1)' and condition == ''").set_index("model")
    assert at_eps["sound"].drop("digits-trap").all()
    others = at_eps.drop(index=[*TRAINED, "digits-trap"])
    assert at_eps.loc[sorted(TRAINED), "ci_low"].min() > others["ci_high"].max()


def test_the_trap_and_the_undone_defence_are_suspicious(table: pd.DataFrame) -> None:
    rows = worst(table)
    hidden = rows[(rows["model"] == "digits-trap") | rows["condition"].str.startswith("bit_depth")]
    assert len(hidden) and not hidden["sound"].any()
    assert hidden["validity"].str.contains("zero gradients").all()


def test_no_worst_case_is_above_the_noise_floor_and_gradients_beat_it(table: pd.DataFrame) -> None:
    each = table[(table["metric"] == "robust_accuracy") & ~table["condition"].str.startswith("scarcity(")]
    keys = ["model", "condition", "threat"]
    floor = each[each["attack"].str.startswith("noise")].set_index(keys)["value"]
    strong = each[each["attack"].str.startswith(("pgd", "worst"))]
    known = strong.merge(worst(table)[[*keys, "sound"]], on=keys)
    counted = known[(known["attack"] == "worst") | known["sound"]]
    assert set(counted["model"]) >= set(DIGITS) and counted["attack"].str.startswith("pgd").any()
    met = [row for row in counted.itertuples() if (row.model, row.condition, row.threat) in floor.index]
    assert {row.model for row in met} >= set(DIGITS)
    for row in met:
        assert row.value <= floor[(row.model, row.condition, row.threat)]


def test_robust_accuracy_never_rises_with_eps_and_ends_at_zero(table: pd.DataFrame) -> None:
    rows = worst(table)
    curves = rows[rows["threat"].str.startswith("linf") & (rows["condition"] == "")]
    sound = 0
    for model, curve in curves.sort_values("eps").groupby("model"):
        assert curve["value"].is_monotonic_decreasing, model
        if curve["sound"].all():
            sound += 1
            assert curve["value"].iloc[-1] == 0 and curve["eps"].iloc[-1] == 1
    assert sound == len(set(DIGITS) - {"digits-trap"})


def test_corrupted_accuracy_falls_with_severity(table: pd.DataFrame, frames: dict[str, pd.DataFrame]) -> None:
    means = table[(table["metric"] == "corrupted_accuracy") & (table["threat"] == "mean") & table["eps"].notna()]
    means = means[means["condition"] == ""]
    assert set(means["model"]) >= set(DIGITS)
    for model, rows in means.sort_values("eps").groupby("model"):
        assert rows["value"].is_monotonic_decreasing, model


def test_the_hardest_corruption_of_each_kind_costs_every_model_accuracy(frames: dict[str, pd.DataFrame]) -> None:
    hardest = frames["corruption"].query("severity == 5 and not condition.str.startswith('scarcity(')")
    assert set(hardest["model"]) >= set(DIGITS) and hardest["corruption"].nunique() == 19
    for which, rows in hardest.groupby(["model", "condition", "corruption"]):
        assert paired_difference(rows["score"], rows["score_clean"]).high < 0, which


def test_heavy_pruning_and_scarce_data_cost_accuracy(frames: dict[str, pd.DataFrame]) -> None:
    clean = frames["clean"].query("split == 'test'")

    def scores(model: str, condition: str) -> pd.Series:
        rows = clean[(clean["model"] == model) & (clean["condition"] == condition)]
        return rows.set_index(["seed", "sample"])["score"].sort_index()

    pruned = scores("digits-standard", "prune(amount=0.9)")
    assert paired_difference(pruned, scores("digits-standard", "")).high < 0
    for recipe in ("standard", "augmented"):
        few, all_ = (scores(f"trained-{recipe}", f"scarcity(fraction={f})") for f in (0.05, 1.0))
        assert paired_difference(few.loc[0], all_.loc[0]).high < 0


def test_every_part_of_the_audit_has_its_numbers(table: pd.DataFrame) -> None:
    metrics = {
        "corrupted_accuracy", "flip_rate", "spatial_robust_accuracy", "robust_gap", "auroc", "fpr_at_95_tpr_id_positive",
        "ece", "augrc", "temperature", "data_efficiency_auc", "gain_in_accuracy", "memorised_labels", "disagreement_rate",
        "rank", "throughput", "peak_memory_bytes",
    }  # fmt: skip
    assert metrics <= set(table["metric"])
    crossed = table[table["condition"].str.contains(" | corruption(", regex=False)]
    assert {"accuracy", "robust_accuracy"} <= set(crossed["metric"])


def test_a_deployed_model_is_judged_by_the_honest_union(table: pd.DataFrame) -> None:
    rows = worst(table).query("condition == 'onnx_int8'")
    assert len(rows) == 1 and rows["sound"].all() and (rows["n_unknown"] == 0).all()
    parent = worst(table).query("model == 'digits-pgd-at' and condition == '' and threat == 'linf(0.1)'")
    assert rows["value"].item() <= parent["ci_high"].item()


def test_every_training_left_other_weights(frames: dict[str, pd.DataFrame]) -> None:
    trained = frames["clean"].dropna(subset=["weights_sha256"])
    alone = trained["condition"].str.startswith("scarcity(") & ~trained["condition"].str.contains(" | ", regex=False)
    arms = trained[alone].drop_duplicates("cell")
    assert len(arms) == 39 and arms["weights_sha256"].nunique() == 39
    told = [
        "steps",
        "seed",
        "train_seed",
        "train_n",
        "train_accuracy",
        "weights_sha256",
        "augment",
        "transfer",
        "label_noise",
    ]
    assert arms[told].notna().all().all() and set(arms["steps"]) == {150} and (arms["seed"] == arms["train_seed"]).all()
    plain = arms[(arms["augment"] == "") & (arms["transfer"] == "") & (arms["dataset"] == "digits")]
    assert plain["train_n"].nunique() == 4


def test_scarcity_has_curves_arms_and_their_gains(table: pd.DataFrame) -> None:
    rows = table[table["scenario"] == "scarcity"].set_index("metric")
    for metric in ("accuracy", "corrupted_accuracy", "robust_accuracy"):
        curve = rows.loc[[f"{metric}_at_fraction"]]
        assert curve.groupby("model")["eps"].nunique().eq(4).all() and set(curve["model"]) == {
            "trained-standard", "trained-augmented",
        }  # fmt: skip
        assert len(rows.loc[[f"gain_in_{metric}"]]) == 3 and rows.loc[[f"gain_in_{metric}"], "ci_low"].notna().all()
    assert (rows.loc[["accuracy_at_label_noise"], "eps"].tolist()) == [0.0, 0.4] and "memorised_labels" in rows.index
