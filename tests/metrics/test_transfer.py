"""Surrogate → target, on rows whose shares are counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robench.metrics.alike import is_transfer
from robench.metrics.table import tidy
from robench.metrics.transfer import COLUMNS, matrix, transfer_success

EPS = {"linf(0.1)": 0.1, "linf(0.2)": 0.2}
BROKEN = {("a", "a"): 8, ("a", "b"): 2, ("b", "a"): 3, ("b", "b"): 6}
"""Samples of ten that a surrogate's images break on a target at 0.1; twice as many at 0.2, at most all."""


def rows(target: str, attack: str, threat: str, broken: int, *, condition: str = "", wrong: int = 0) -> pd.DataFrame:
    """Ten samples: the last ``wrong`` are clean mistakes, the first ``broken`` of the others were broken."""
    at = np.arange(10)
    clean = (at < 10 - wrong).astype(float)
    return pd.DataFrame({
        "model": target, "dataset": "d", "scenario": "evasion", "condition": condition, "seed": 0, "cell": "c",
        "sample": at, "label": 0, "threat": threat, "eps": EPS[threat], "attack": attack, "access": "transfer",
        "stage": "", "status": "ok", "error": "", "score_clean": clean, "score_adv": np.where(at < broken, 0.0, clean),
        "unstable": False, "forwards": 1, "backwards": 0, "zero_gradients": 0, "nonfinite_gradients": 0,
        "nonfinite_outputs": 0, "seconds": 0.0,
    })  # fmt: skip


def frame() -> pd.DataFrame:
    found = [
        rows(target, f"transfer(source={source!r})", threat, min(10, broken * (k + 1)))
        for (source, target), broken in BROKEN.items()
        for k, threat in enumerate(EPS)
    ]
    return pd.concat([*found, rows("a", "pgd(steps=3)", "linf(0.1)", 10)], ignore_index=True)


def test_every_pair_has_the_share_that_was_planted_in_it():
    found = matrix(tidy({"evasion": frame()}))
    assert tuple(found.columns) == COLUMNS and len(found) == 2 * len(BROKEN)
    told = found.set_index(["threat", "surrogate", "target"])
    for (source, target), broken in BROKEN.items():
        assert told.loc[("linf(0.1)", source, target), "value"] == broken / 10
        assert told.loc[("linf(0.2)", source, target), "value"] == min(10, 2 * broken) / 10
    assert (found["n"] == 10).all()
    one = told.loc[("linf(0.1)", "a", "b")]
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((0.0355, 0.5098), abs=1e-4)


def test_only_what_the_target_recognises_and_what_was_tried_counts():
    part = rows("b", "transfer(source='a')", "linf(0.1)", 3, wrong=4)
    found = transfer_success(part)
    assert (found.value, found.n) == (0.5, 6)
    part.loc[part["sample"].isin([0, 4]), ["status", "score_adv"]] = ["failed", np.nan]
    found = transfer_success(part)
    assert (found.value, found.n) == (0.5, 4)
    assert transfer_success(rows("b", "transfer(source='a')", "linf(0.1)", 0, wrong=10)).n == 0


def test_options_and_conditions_are_kept_apart():
    parts = [
        rows("b", "transfer(source='a')", "linf(0.1)", 1),
        rows("b", "transfer(mi=1.0, source='a')", "linf(0.1)", 2),
        rows("b", "transfer(source='a')", "linf(0.1)", 3, condition="int8"),
    ]
    found = matrix(tidy({"evasion": pd.concat(parts, ignore_index=True)}))
    told = dict(zip(zip(found["surrogate"], found["condition"], strict=True), found["value"], strict=True))
    assert told == {("a", ""): 0.1, ("a (mi=1.0)", ""): 0.2, ("a", "int8"): 0.3}


def test_other_attacks_are_no_transfers_and_without_one_there_is_no_matrix():
    assert is_transfer("transfer(source='a')")
    assert not any(map(is_transfer, ("transfer", "transfer(mi=1.0)", "pgd(steps=3)", "art:X(source='a')")))
    assert matrix(tidy({"evasion": rows("a", "pgd(steps=3)", "linf(0.1)", 4)})).empty and matrix(tidy({})).empty
