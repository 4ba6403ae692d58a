"""Classes and groups that are served worst, beside counts by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from robench.metrics import groups, stats
from robench.metrics.table import tidy


def rows(counts: dict[str, tuple[int, int]], column: str = "group") -> pd.DataFrame:
    """A frame with (right, all) samples of each group."""
    parts = [
        pd.DataFrame({column: name, "score": [1.0] * right + [0.0] * (n - right)}) for name, (right, n) in counts.items()
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(
        sample=np.arange(len(frame)), model="m", dataset="d", condition="", seed=0, cell="c", scenario="groups"
    )


def test_the_worst_of_large_enough_groups_with_bounds_for_all_of_them():
    frame = rows({"day": (90, 100), "night": (30, 60), "fog": (1, 49), groups.UNGROUPED: (0, 80)})
    e = groups.worst_group_accuracy(frame)
    by_hand = [stats.wilson(90, 100, level=0.975), stats.wilson(30, 60, level=0.975)]
    assert (e.value, e.n) == (0.5, 60)
    assert (e.low, e.high) == (min(x.low for x in by_hand), min(x.high for x in by_hand))


def test_groups_of_fewer_than_50_are_insufficient_and_never_the_worst():
    assert groups.worst_group_accuracy(rows({"a": (0, 49), "b": (3, 20)})).n == 0
    table = tidy({"groups": rows({"a": (40, 50), "b": (0, 49)})})
    told = table.set_index(["metric", "threat"])
    assert told.loc[("group_accuracy", "a"), "status"] == "ok"
    assert told.loc[("group_accuracy", "b"), "status"] == "insufficient"
    assert told.loc[("worst_group_accuracy", "worst"), "value"] == 0.8


def test_tenth_percentile_of_classes_is_numpys_with_the_percentile_of_their_bounds():
    right = (40, 38, 36, 30, 20, 39, 39, 40, 35, 37)
    frame = rows(dict(enumerate((k, 40) for k in right)), column="label")
    e = groups.tenth_percentile_class_accuracy(frame)
    bounds = [proportion_confint(k, 40, alpha=0.005, method="wilson") for k in right]
    assert e.value == pytest.approx(np.quantile([k / 40 for k in right], 0.1)) and e.n == 400
    assert (e.low, e.high) == pytest.approx(tuple(np.quantile(bounds, 0.1, axis=0)))
    assert groups.tenth_percentile_class_accuracy(frame.sample(frac=1, random_state=0)) == e


def test_the_tenth_percentile_covers_95_percent():
    draws, p = np.random.default_rng(0), np.linspace(0.7, 0.99, 10)
    hits = 0
    for _ in range(150):
        found = rows({c: (int(draws.binomial(40, q)), 40) for c, q in enumerate(p)}, column="label")
        e = groups.tenth_percentile_class_accuracy(found)
        hits += e.low <= np.quantile(p, 0.1) <= e.high
    assert hits / 150 >= 0.95


def test_one_class_constant_scores_and_no_rows():
    one = groups.tenth_percentile_class_accuracy(rows({3: (9, 10)}, column="label"))
    assert (one.value, one.low, one.high) == (0.9, stats.wilson(9, 10).low, stats.wilson(9, 10).high)
    same = groups.tenth_percentile_class_accuracy(rows({0: (5, 5), 1: (5, 5)}, column="label"))
    assert (same.value, same.high) == (1.0, 1.0) and same.low == stats.wilson(5, 5, level=0.975).low
    assert groups.tenth_percentile_class_accuracy(rows({0: (1, 1)}, column="label").iloc[:0]).n == 0
