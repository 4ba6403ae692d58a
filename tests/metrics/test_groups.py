"""Classes and groups that are served worst, beside counts by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robench.errors import DataError
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


def test_tenth_percentile_of_classes_is_numpys_and_resamples_like_the_library():
    counts = {c: (k, 40) for c, k in enumerate((40, 38, 36, 30, 20, 39, 39, 40, 35, 37))}
    frame = rows(counts, column="label")
    e = groups.tenth_percentile_class_accuracy(frame)
    assert e.value == pytest.approx(np.quantile([k / 40 for k, _ in counts.values()], 0.1)) and e.n == 400
    slow = []
    for index in np.concatenate(list(stats.resamples(400))):
        drawn = frame.iloc[index]
        slow.append(np.quantile(drawn.groupby("label")["score"].mean(), 0.1))
        if len(slow) == 60:
            break
    assert e.low <= np.median(slow) <= e.high
    whole = groups.tenth_percentile_class_accuracy(frame.sample(frac=1, random_state=0))
    assert whole.value == pytest.approx(e.value)


def test_one_class_constant_scores_no_rows_and_nan():
    one = groups.tenth_percentile_class_accuracy(rows({3: (9, 10)}, column="label"))
    assert one.value == pytest.approx(0.9) and one.low < 0.9 < one.high
    same = groups.tenth_percentile_class_accuracy(rows({0: (5, 5), 1: (5, 5)}, column="label"))
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    empty = rows({0: (1, 1)}, column="label").iloc[:0]
    assert groups.tenth_percentile_class_accuracy(empty).n == 0
    with pytest.raises(DataError, match="scores must be numbers"):
        groups.tenth_percentile_class_accuracy(rows({0: (1, 2)}, column="label").assign(score=np.nan))
