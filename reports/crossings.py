"""Crossings: models under more than one condition, one line per chain."""

from __future__ import annotations

import pandas as pd

from robench.reports.cells import interval
from robench.reports.sections import Section

_MARK = " | "


def crossings(table: pd.DataFrame) -> Section | None:
    """Accuracy, and robust accuracy at every attacked threat, of every chain of two conditions or more; None without."""
    rows = table[table["condition"].str.contains(_MARK, regex=False)]
    shown = (rows["metric"] == "accuracy") | ((rows["metric"] == "robust_accuracy") & (rows["attack"] == "worst"))
    rows = rows[shown]
    if rows.empty:
        return None
    what = ("robust@" + rows["threat"] + " %").where(rows["metric"] == "robust_accuracy", "accuracy %")
    doubt = rows["validity"].where(~rows["validity"].isin(["", "sound"]), "")
    texts = [interval(v, low, high) for v, low, high in zip(rows["value"], rows["ci_low"], rows["ci_high"], strict=True)]
    marked = [f"{text} ({why.partition(':')[0]})" if why else text for text, why in zip(texts, doubt, strict=True)]
    long = rows.assign(what=what, text=marked, chain=rows["condition"])
    cells = long.pivot_table(
        index=["dataset", "model", "chain", "n"], columns="what", values="text", aggfunc="first", sort=False
    )
    note = "A line is one model after all steps of its chain, from left to right. Percent with 95 % intervals over images."
    return Section("Crossed conditions", cells.fillna("").reset_index().rename_axis(columns=None), note)
