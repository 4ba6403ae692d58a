"""Corruptions on the page: accuracy by family against severity, and a short table."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robench.metrics.pending import with_result
from robench.metrics.table import FAILED
from robench.registry import facts
from robench.reports.cells import unit
from robench.reports.curves import COLOURS
from robench.reports.sections import Section

FAMILY = "family_corrupted_accuracy"
_MARKERS = "os^Dvp*"
_COLUMNS = 2
_NOTE = (
    "Mean accuracy over five severities; drop: mean corrupted error minus clean error, in percentage points. "
    "Images called robench-C are made "
    "here and are not the published ones, so their numbers do not compare with published tables. Flips: share of the frames "
    "of slight perturbations whose prediction differs from the frame before (of noise: from the clean one)."
)


@facts(version=1)
def family_curves(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Accuracy against severity per model, one panel for each family of corruptions, with 95 % bands; None without any."""
    rows = with_result(table[(table["metric"] == FAMILY) & (table["condition"] == "") & table["eps"].notna()])
    rows = rows[rows["dataset"] == (dataset or next(iter(rows["dataset"]), ""))]
    if rows.empty:
        return None
    families, models = sorted(rows["threat"].unique()), sorted(set(table["model"]))
    lines = math.ceil(len(families) / _COLUMNS)
    figure = Figure(figsize=(7.5, 0.6 + 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, family in zip(panels, families, strict=False):
        for model, part in rows[rows["threat"] == family].groupby("model"):
            i, points = models.index(model), part.sort_values("eps")
            style = {"color": COLOURS[i % len(COLOURS)], "label": model}
            panel.plot(points["eps"], points["value"], marker=_MARKERS[i % len(_MARKERS)], markersize=4, **style)
            panel.fill_between(points["eps"], points["ci_low"], points["ci_high"], color=style["color"], alpha=0.15, lw=0)
        panel.set_title(family, loc="left", fontsize=10)
        panel.set_ylim(0, 1)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    where = f"{rows['attack'].iloc[0] or 'Common corruptions'}, {rows['dataset'].iloc[0]}, n = {int(rows['n'].max())}"
    figure.suptitle(where, x=0.01, ha="left", fontsize=12)
    for panel in panels[max(0, len(families) - _COLUMNS) : len(families)]:
        panel.set_xlabel("severity", fontsize=10)
        panel.tick_params(labelbottom=True)
    figure.supylabel("accuracy (95 % interval)", fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def corruptions(table: pd.DataFrame) -> Section | None:
    """Per model and source of images: drop, accuracy by family, errors beside a reference, flip rate."""
    kept = table[(table["condition"] == "") & table["eps"].isna() & table["scenario"].isin(["corruption", "flips"])]
    drops = kept[kept["metric"] == "corruption_drop"]
    if drops.empty:
        return None
    lines = [_line(kept, row) for _, row in drops.iterrows()]
    failed = kept[(kept["scenario"] == "corruption") & (kept["status"] == FAILED)]
    missing = sorted(set(failed["model"]) - set(drops["model"]))
    told = f" Not shown, since no corruption finished on them: {', '.join(missing)}." if missing else ""
    return Section("Corruptions", pd.DataFrame(lines).fillna(""), _NOTE + told)


def _line(kept: pd.DataFrame, drop: pd.Series) -> dict[str, str]:
    """One model on one source of images."""
    own = kept[(kept["model"] == drop["model"]) & (kept["dataset"] == drop["dataset"])]
    line = {"model": drop["model"], "dataset": drop["dataset"], "images": drop["attack"], "drop": _said(drop)}
    for _, row in own[(own["metric"] == FAMILY) & (own["attack"] == drop["attack"])].iterrows():
        line[str(row["threat"])] = _said(row)
    for _, row in own[own["metric"].isin(["mce_alexnet", "mce_reference"])].iterrows():
        if row["attack"].partition(" over ")[0] == drop["attack"]:
            other = row["attack"].partition(" over ")[2] or "AlexNet"
            line[f"error over {other}'s"] = f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    for _, row in own[(own["metric"] == "flip_rate") & (own["threat"] == "mean")].iterrows():
        line["flips"] = _said(row)
    return line


def _said(row: pd.Series) -> str:
    shown = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    return f"{100 * row['value']:.1f} {unit(row['metric'])} {shown}"
