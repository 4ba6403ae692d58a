"""The Pareto set against brute force, and the table of cost and quality."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.errors import DataError
from robench.metrics.pareto import COLUMNS, front, pareto
from robench.metrics.table import tidy


def brute(points: list[tuple[float, ...]], maximise: tuple[bool, ...]) -> list[bool]:
    """Every point against every other, one coordinate at a time."""
    found = []
    for p in points:
        beaten = any(math.isnan(v) for v in p)
        for q in points:
            if any(math.isnan(v) for v in q):
                continue
            pairs = [(b, a) if up else (-b, -a) for a, b, up in zip(p, q, maximise, strict=True)]
            beaten |= all(b >= a for b, a in pairs) and any(b > a for b, a in pairs)
        found.append(not beaten)
    return found


@pytest.mark.parametrize("maximise", [(False, True), (True, True), (False, True, True)])
def test_the_front_is_that_of_brute_force(maximise):
    rng = np.random.Generator(np.random.Philox(key=1))
    for size in (1, 2, 3, 7, 30):
        for _ in range(20):
            points = rng.integers(0, 5, (size, len(maximise))).astype(float)  # a small grid, so that ties are many
            points[rng.random(points.shape) < 0.05] = math.nan
            assert front(points, maximise=maximise).tolist() == brute([tuple(p) for p in points], maximise)


def test_ties():
    equal = [(1.0, 0.5), (1.0, 0.5)]
    assert front(equal, maximise=(False, True)).tolist() == [True, True]
    assert front([(1.0, 0.5), (1.0, 0.6)], maximise=(False, True)).tolist() == [False, True]
    assert front([(1.0, 0.5), (2.0, 0.5)], maximise=(False, True)).tolist() == [True, False]
    assert front(np.empty((0, 2)), maximise=(False, True)).tolist() == []
    assert front([(math.nan, 0.9), (1.0, 0.1)], maximise=(False, True)).tolist() == [False, True]
    with pytest.raises(DataError, match="points must be of shape"):
        front([(1.0,)], maximise=(False, True))


def line(model, condition, metric, value, **more):
    base = {
        "model": model,
        "dataset": "d",
        "scenario": "clean",
        "condition": condition,
        "threat": "",
        "eps": math.nan,
        "attack": "",
        "metric": metric,
        "value": value,
        "ci_low": value,
        "ci_high": value,
        "n": 100,
        "validity": "",
    }
    return {**base, **more}


def models():
    """A model, a smaller one that is as good, a worse one of the same size, one without a latency."""
    rows = []
    for condition, size, latency, accuracy in (("", 400, 1.0, 0.9), ("small", 100, 0.5, 0.9), ("bad", 400, 1.0, 0.8),
                                               ("twin", 50, math.nan, 0.7)):  # fmt: skip
        rows += [line("m", condition, "stored_bytes", size, n=1), line("m", condition, "accuracy", accuracy)]
        if not math.isnan(latency):
            rows.append(line("m", condition, "latency_p50_ms", latency, n=1))
    return rows


def test_the_table_marks_the_front_and_says_who_is_left_out():
    found = pareto(pd.DataFrame(models()))
    assert tuple(found.columns) == COLUMNS
    by = found.set_index(["cost", "condition"])
    assert by.loc["stored_bytes"]["front"].to_dict() == {"twin": True, "small": True, "": False, "bad": False}
    assert by.loc["latency_p50_ms"]["front"].to_dict() == {"small": True, "": False, "bad": False, "twin": False}
    assert by.loc[("latency_p50_ms", "twin"), "left_out"] == "its cost was not measured"


def test_numbers_that_cannot_be_compared_are_never_in_front():
    robust = {"attack": "worst", "threat": "linf(0.1)", "eps": 0.1}
    searched = {**robust, "attack": "robench-standard"}
    met = [line("m", c, "robust_accuracy", 0.9, **searched) for c in ("", "small", "bad")]
    rows = [
        *models(),
        *met,
        line("m", "", "robust_accuracy", 0.2, validity="sound", **robust),
        line("m", "small", "robust_accuracy", 0.9, validity="suspicious: zero gradients", **robust),
        line("m", "bad", "robust_accuracy", 0.1, validity="sound", n=50, **{**robust}),
        line("m", "twin", "robust_accuracy", 0.3, validity="sound", **{**robust, "attack": "pgd"}),
        line("m", "", "corrupted_accuracy", 0.5, threat="mean"),
        line("m", "small", "corrupted_accuracy", 0.6, threat="mean"),
        line("m", "small", "corrupted_accuracy", 0.9, threat="fog", eps=1.0),
    ]
    found = pareto(pd.DataFrame(rows))
    attacked = found[(found["quality"] == "robust_accuracy") & (found["cost"] == "stored_bytes")].set_index("condition")
    assert attacked["front"].to_dict() == {"": True, "small": False, "bad": False}
    assert attacked["left_out"].to_dict() == {
        "": "", "small": "its verdict is not sound", "bad": "measured on fewer than 100 samples",
    }  # fmt: skip
    corrupted = found[(found["quality"] == "corrupted_accuracy") & (found["cost"] == "stored_bytes")].set_index("condition")
    assert len(corrupted) == 2 and corrupted["front"].to_dict() == {"small": True, "": False}
    assert corrupted["left_out"].to_dict() == {"small": "", "": "it did not meet fog"}


def test_a_model_that_met_fewer_attacks_is_not_compared():
    robust = {"threat": "linf(0.1)", "eps": 0.1}
    attacks = {"": ["pgd", "apgd"], "small": ["pgd", "transfer(source='m')"], "bad": ["apgd", "through(attack='pgd')"],
               "twin": []}  # fmt: skip
    rows = models()
    for condition, names in attacks.items():
        rows += [line("m", condition, "robust_accuracy", 0.4, attack=a, **robust) for a in names]
        rows.append(line("m", condition, "robust_accuracy", 0.3, attack="worst", validity="sound", **robust))
    found = pareto(pd.DataFrame(rows))
    told = found[(found["quality"] == "robust_accuracy") & (found["cost"] == "stored_bytes")].set_index("condition")
    assert told["left_out"].to_dict() == {
        "": "", "bad": "", "small": "it did not meet apgd", "twin": "it did not meet apgd, pgd",
    }  # fmt: skip
    assert not told["front"].any(), "after single attacks nobody is in front"


def test_an_ensemble_stands_for_short_attacks_and_not_for_long_ones():
    robust = {"threat": "linf(0.1)", "eps": 0.1}

    def told(attacks):
        rows = models()
        for condition, names in attacks.items():
            rows += [line("m", condition, "robust_accuracy", 0.4, attack=a, **robust) for a in names]
            rows.append(line("m", condition, "robust_accuracy", 0.3, attack="worst", validity="sound", **robust))
        found = pareto(pd.DataFrame(rows))
        return found[(found["quality"] == "robust_accuracy") & (found["cost"] == "stored_bytes")].set_index("condition")

    attacks = {"": ["fgsm", "robench-standard"], "small": ["noise", "compressed-union(source='m')"], "bad": ["fgsm", "pgd"]}
    lack = "it did not meet an ensemble of attacks such as robench-standard, noise"
    assert told(attacks)["left_out"].to_dict() == {"": "", "small": "", "bad": lack}
    assert told(attacks)["front"].to_dict() == {"": False, "small": True, "bad": False}
    attacks[""].append("square(queries=20000)")
    assert told(attacks)["left_out"]["small"] == "it did not meet square(queries=20000)"


def test_numbers_without_single_attacks_are_compared_with_each_other():
    robust = {"threat": "linf(0.1)", "eps": 0.1, "attack": "worst", "validity": "sound"}
    rows = [*models(), *(line("m", c, "robust_accuracy", 0.3, **robust) for c in ("", "small"))]
    found = pareto(pd.DataFrame(rows))
    told = found[(found["quality"] == "robust_accuracy") & (found["cost"] == "stored_bytes")].set_index("condition")
    assert not told["front"].any() and set(told["left_out"]) == {""}, "nobody knows what they met"


def test_without_costs_there_is_no_table(synthetic):
    frames = {"corruption": synthetic.corruption("plain")}
    assert len(pareto(tidy(frames))) == 0
    whole = pareto(tidy({**frames, "efficiency": synthetic.efficiency("plain")}))
    assert set(whole["cost"]) == {"stored_bytes", "latency_p50_ms"} and whole["front"].any()
