"""Tables of the page on what a model's outputs tell: images of other kinds, and how far its confidence can be trusted."""

from __future__ import annotations

import math

import pandas as pd

from robench.metrics.confidence import AFTER, BEFORE
from robench.reports.cells import interval
from robench.reports.sections import Section

_SHOWN = {
    "ece": "ECE %",
    "adaptive_ece": "adaptive ECE %",
    "nll": "NLL",
    "augrc": "AUGRC %",
    "risk_at_80_coverage": "risk@80 %",
}

_ESTIMATE = ("value", "ci_low", "ci_high")


def detection(table: pd.DataFrame) -> Section | None:
    """AUROC of every detector against every source, and the worst false positive rate; None without OOD images."""
    rows = table[(table["scenario"] == "ood") & (table["condition"] == "")]
    areas = rows[rows["metric"] == "auroc"]
    if areas.empty:
        return None
    texts = [
        "skipped" if status == "skipped" else interval(v, low, high)
        for status, v, low, high in zip(areas["status"], areas["value"], areas["ci_low"], areas["ci_high"], strict=True)
    ]
    keys = ["dataset", "model", "attack"]
    long = areas.assign(text=texts, what=areas["threat"])
    cells = long.pivot_table(index=keys, columns="what", values="text", aggfunc="first", sort=False)
    rates = rows[rows["metric"] == "fpr_at_95_tpr_id_positive"].sort_values("value", kind="stable", na_position="first")
    worst = {tuple(row[key] for key in keys): interval(*(row[name] for name in _ESTIMATE)) for _, row in rates.iterrows()}
    cells["worst FPR@95TPR(ID+) %"] = [worst.get(key, "") for key in cells.index]
    note = (
        "AUROC in percent with 95 % intervals, 50 is chance; higher scores are more like the data set's own images. Only "
        "successful adversarial images count. FPR@95TPR(ID+): part of the other images that pass where 95 % of the data "
        "set's own do, on the source where it is largest; chance is 95."
    )
    cells = cells.fillna("").reset_index().rename(columns={"attack": "detector"}).rename_axis(columns=None)
    return Section("Images of other kinds", cells, note)


def confidence(table: pd.DataFrame) -> Section | None:
    """Calibration and selective prediction before and after temperature scaling, by source of images; None without."""
    rows = table[(table["scenario"] == "calibration") & (table["condition"] == "")]
    shown = rows[rows["metric"].isin(_SHOWN)]
    if shown.empty:
        return None
    texts = [_text(metric, *values) for metric, *values in shown[["metric", *_ESTIMATE]].itertuples(index=False)]
    marks = shown["status"].map({"unknown": " (unknown samples count as sure and wrong)"}).fillna("")
    long = shown.assign(text=texts, images=shown["threat"] + marks, what=shown["metric"].map(_SHOWN))
    keys = ["dataset", "model", "images"]
    scaled = long[long["attack"].str.startswith(AFTER)].set_index([*keys, "what"])["text"]
    plain = long[long["attack"] == BEFORE].set_index([*keys, "what"])["text"]
    both = plain.to_frame("before").join(scaled.rename("after"))
    pairs = both["before"].where(both["after"].isna(), both["before"] + " → " + both["after"].fillna(""))
    cells = pairs.unstack("what").reindex(columns=list(_SHOWN.values())).fillna("")
    fitted = rows[rows["metric"] == "temperature"].set_index(["dataset", "model"])["value"]
    cells.insert(0, "T", [f"{fitted.get(key[:2], float('nan')):.2f}" for key in cells.index])
    split = next(iter(rows.loc[rows["metric"] == "temperature", "threat"]), "")
    note = (
        f"Before → after dividing the logits by the temperature T, which was fitted on {split} images. ECE in 15 bins of "
        "equal width (adaptive: of equal numbers); AUGRC and risk: errors that remain when only sure images are answered. "
        "In brackets: 95 % intervals over images."
    )
    return Section("Confidence", cells.reset_index().rename_axis(columns=None), note)


def _text(metric: str, value: float, low: float, high: float) -> str:
    """A measure with its interval: NLL as a number, others in percent."""
    if metric != "nll" or math.isnan(value):
        return interval(value, low, high)
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
