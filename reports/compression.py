"""Compressed models beside the models they were made from: what was lost, and what was saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from robench.metrics.validity import DOUBTED
from robench.registry import facts
from robench.reports.cells import interval, unit
from robench.reports.sections import Section

PLAIN = "(as it is)"
_RATES = {
    "clean": ("accuracy", ""), "drop": ("accuracy_drop", ""), "other class": ("disagreement_rate", ""),
    "right to wrong": ("correct_to_wrong", ""), "wrong to right": ("wrong_to_correct", ""),
    "worst class drop": ("worst_class_drop", ""), "corrupted": ("corrupted_accuracy", "mean"),
    "corrupted drop": ("corrupted_accuracy_drop", "mean"), "calibration change": ("ece_change", ""),
}  # fmt: skip
"""Column → metric and threat of rates, shown in percent with their interval."""
_NUMBERS = {
    "KL": ("kl_from_parent", "{:.3g}"), "kB": ("stored_bytes", "{:.4g}"), "nonzero": ("nonzero", "{:.0f}"),
    "MMACs": ("macs", "{:.3g}"), "ms": ("latency_p50_ms", "{:.3g}"), "images/s": ("throughput", "{:.3g}"),
}  # fmt: skip
_SCALES = {"kB": 1e3, "MMACs": 1e6}
_KEYS = ["dataset", "model"]
_NOTE = (
    "A line is one compressed model; differences are against the line (as it is) above, on the same images. Percent, and "
    "percentage points for differences, with 95 % intervals over images. "
    "kB are those of all files that ship; a model without a latency imitates that. "
    "Robust accuracy is under each model's own attacks; its drop counts those that the parent met too."
)


@facts(version=1)
def compression(table: pd.DataFrame) -> Section | None:
    """Every compressed model under its parent; None where nothing was compressed."""
    lines = list(_lines(table))
    if not lines:
        return None
    cells = pd.DataFrame(lines).fillna("")
    kept = [c for c in cells if (cells[c] != "").any() and not (c == "dataset" and cells[c].nunique() == 1)]
    return Section("Compression", cells[kept], _NOTE)


def _lines(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    changed = table[table["scenario"] == "disagreement"]
    for (dataset, model), part in changed.groupby(_KEYS, sort=True):
        rows = table[(table["dataset"] == dataset) & (table["model"] == model)]
        for condition in ("", *sorted(set(part["condition"]))):
            own = rows[rows["condition"] == condition]
            if len(own):
                yield {"dataset": dataset, "model": model, "condition": condition or PLAIN, **_cells(own)}


def _cells(rows: pd.DataFrame) -> dict[str, str]:
    """The texts of one model."""
    found = {f"{name} {unit(key[0])}": _rate(_of(rows, *key)) for name, key in _RATES.items()}
    attacked = rows[(rows["metric"] == "robust_accuracy") & (rows["attack"] == "worst")]
    for threat, part in attacked.groupby("threat", sort=True):
        found[f"robust@{threat} %"] = _rate(part)
    for threat, part in rows[rows["metric"] == "robust_accuracy_drop"].groupby("threat", sort=True):
        found[f"robust drop@{threat} points"] = _rate(part)
    for explainer, part in rows[rows["metric"] == "explanation_rank_correlation"].groupby("attack", sort=True):
        found[f"same map ({explainer})"] = f"{part['value'].iloc[0]:.2f}"
    for name, (metric, text) in _NUMBERS.items():
        own = _of(rows, metric, "")["value"].dropna()
        found[name] = text.format(own.iloc[0] / _SCALES.get(name, 1.0)) if len(own) else ""
    return found


def _of(rows: pd.DataFrame, metric: str, threat: str) -> pd.DataFrame:
    """The line of a metric over everything: of a corruption's, the one over all severities."""
    own = rows[(rows["metric"] == metric) & (rows["threat"] == threat)]
    return own[own["eps"].isna()]


def _rate(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    text = interval(row["value"], row["ci_low"], row["ci_high"])
    return f"{text} ({row['validity'].partition(':')[0]})" if str(row["validity"]).startswith(DOUBTED) else text
