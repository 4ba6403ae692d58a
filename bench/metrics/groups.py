"""Metrics of classes and of named groups of samples: who is served worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from robench.metrics import stats
from robench.metrics.clean import split
from robench.metrics.rows import each, row
from robench.registry import facts
from robench.spec import Estimate

LEAST = 50
"""Samples of a group below which nothing is claimed about it."""
INSUFFICIENT = "insufficient"
"""Status of a group with fewer samples."""
UNGROUPED = "(no group)"
"""Samples that the file of groups does not name; no group of their own."""
TENTH = 0.1


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean", group="generalization")
def tenth_percentile_class_accuracy(frame: pd.DataFrame) -> Estimate:
    """10th percentile of the classes' accuracies, in [0, 1], interpolated linearly; n counts all test samples.

    Chance alone spreads the classes, so that with few samples per class the value is too low. The interval is that of the
    same percentile of all classes' lower and of all upper modified Wilson bounds, which hold all at once (Bonferroni): it
    covers at least 95 %, since a percentile rises with every class.

    Source: Hyndman & Fan, The American Statistician 1996, definition 7 (percentile).
    """
    counts = split(frame, "test").groupby("label")["score"].agg(["sum", "count"])
    if counts.empty:
        return stats.EMPTY
    found = _together([(float(k), int(n)) for k, n in counts.to_numpy()])
    value, low, high = (float(np.quantile([getattr(e, end) for e in found], TENTH)) for end in ("value", "low", "high"))
    return Estimate(value, low, high, int(counts["count"].sum()))


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="groups", group="generalization")
def group_accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean score of the samples of one group, in [0, 1], with the modified Wilson interval."""
    return stats.rate(frame["score"])


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="groups", group="generalization")
def worst_group_accuracy(frame: pd.DataFrame) -> Estimate:
    """Accuracy of the worst group of at least 50 samples, in [0, 1]; n is that group's number of samples.

    The interval runs from the lowest lower to the lowest upper modified Wilson bound of these groups at the level
    1 - 0.05/G, as for the worst class. Empty where no group has 50 samples.

    Args:
        frame: Rows of the scenario ``groups`` with the columns group and score.

    Source: Sagawa et al., ICLR 2020 (worst-group accuracy).
    """
    named = frame[frame["group"] != UNGROUPED]
    counts = named.groupby("group")["score"].agg(["sum", "count"])
    counts = counts[counts["count"] >= LEAST]
    if counts.empty:
        return stats.EMPTY
    return lowest([(float(k), int(n)) for k, n in counts.to_numpy()])


def lowest(counts: list[tuple[float, int]]) -> Estimate:
    """The lowest of several proportions (successes, samples), with an interval that allows for the choice (Bonferroni)."""
    found = _together(counts)
    worst = min(found, key=lambda e: (e.value, e.n))
    return Estimate(worst.value, min(e.low for e in found), min(e.high for e in found), worst.n)


def _together(counts: list[tuple[float, int]]) -> list[Estimate]:
    """Proportions with the modified Wilson intervals that hold all at once (Bonferroni)."""
    level = 1 - (1 - stats.LEVEL) / len(counts)
    return [stats.wilson(round(k), n, level=level) for k, n in counts]


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """A line for each group, its name in ``threat``, and the worst of those that are large enough."""
    for name, part in rows.groupby("group", sort=True):
        small = len(part) < LEAST or name == UNGROUPED
        status = {"status": INSUFFICIENT} if small else {}
        yield row("group_accuracy", group_accuracy(part), part, threat=str(name), **status)
    yield from each({"worst_group_accuracy": worst_group_accuracy}, rows, threat="worst")
