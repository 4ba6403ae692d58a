"""Lines of the tidy table from estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from robench.spec import Estimate

Metric = Callable[[pd.DataFrame], Estimate]
_SHOWN = 12
"""Digits of a cell's digest that the table shows."""


def row(metric: str, estimate: Estimate, rows: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """One line of the tidy table: what every estimate has, and further columns."""
    cells = "+".join(sorted({str(c)[:_SHOWN] for c in rows["cell"].unique()})) if "cell" in rows else ""
    exact = estimate.kind == "exact"
    return {
        "metric": metric,
        "value": estimate.value,
        "ci_low": math.nan if exact else estimate.low,
        "ci_high": math.nan if exact else estimate.high,
        "n": estimate.n,
        "cell": cells,
        **more,
    }


def each(metrics: Mapping[str, Metric], rows: pd.DataFrame, **more: Any) -> Iterator[dict[str, Any]]:
    """A line per metric that found something to measure (n above 0)."""
    for name, metric in metrics.items():
        estimate = metric(rows)
        if estimate.n:
            yield row(name, estimate, rows, **more)


def same_model(frame: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame | None:
    """Rows of the frame that belong to the model, data set, condition and seed of ``rows``."""
    if frame is None or frame.empty:
        return None
    first = rows.iloc[0]
    for key in ("model", "dataset", "condition", "seed"):
        frame = frame[frame[key] == first[key]]
    return frame
