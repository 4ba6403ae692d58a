"""Pictures of confidence from the tidy table: reliability with the images in each bin, and risk against coverage."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robench.metrics.confidence import AFTER, BEFORE
from robench.metrics.pending import with_result
from robench.registry import facts
from robench.reports.curves import COLOURS

_ACROSS = 4
_CLEAN = "clean"
_BINS = 15
_ENOUGH = 10
"""Images in a bin from which on its accuracy is drawn with an interval."""


@facts(version=1)
def reliability_diagram(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Accuracy against confidence in 15 bins, a panel per model, with the number of images in each bin below it.

    Every source of images has a line as the model is; clean images have one after temperature scaling too (dashed). Bins
    under the diagonal are over-confident. 95 % intervals (modified Wilson); bins of fewer than 10 images are faint points.

    Args:
        table: A tidy table.
        dataset: Data set to draw; by default the first.

    Returns:
        A figure, or None where calibration was not measured.

    Source: DeGroot & Fienberg, The Statistician 1983; Guo et al., ICML 2017, figure 1.
    """
    rows = _of(table, "accuracy_in_bin", dataset)
    if rows.empty:
        return None
    models = sorted(set(rows["model"]))
    across = min(_ACROSS, len(models))
    down = math.ceil(len(models) / across)
    figure = Figure(figsize=(3.1 * across + 0.8, 4.0 * down + 0.6), layout="constrained")
    figure.suptitle(f"Reliability ({rows['dataset'].iloc[0]})", x=0.01, ha="left", fontsize=12)
    grid = figure.subplots(2 * down, across, squeeze=False, sharex=True, height_ratios=[3, 1] * down)
    for place in range(down * across):
        line, column = divmod(place, across)
        above, below = grid[2 * line][column], grid[2 * line + 1][column]
        if place < len(models):
            _panel(above, below, rows[rows["model"] == models[place]], models[place])
        else:
            above.set_axis_off()
            below.set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize=8)
    return figure


def _panel(above: Axes, below: Axes, rows: pd.DataFrame, model: str) -> None:
    """One model: accuracy above, counts below."""
    above.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    sources = [_CLEAN, *sorted(set(rows["threat"]) - {_CLEAN})]
    for i, source in enumerate(sources):
        same = rows[rows["threat"] == source]
        after = same["attack"].str.startswith(AFTER)
        _points(above, same[~after], source, place=i)
        if source == _CLEAN:
            _points(above, same[after], f"{source}, after temperature", place=i, dashed=True)
        centres = (same.loc[~after, "eps"] * _BINS).clip(upper=_BINS - 1e-6).floordiv(1) + (i + 0.5) / len(sources)
        counts = same.loc[~after, "n"].astype(float)
        below.bar(centres / _BINS, counts, width=1 / _BINS / len(sources), color=COLOURS[i % len(COLOURS)])
    above.set_title(model, loc="left", fontsize=9)
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    below.set_yscale("log")
    below.set_ylabel("images")
    below.set_xlim(0, 1)
    below.set_xlabel("confidence")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Axes, rows: pd.DataFrame, name: str, *, place: int, dashed: bool = False) -> None:
    """A line through the bins with enough images, with intervals; the others are faint points."""
    colour, marker = COLOURS[place % len(COLOURS)], "os^D"[place % 4]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "fillstyle": "none" if dashed else "full"}
    ordered = rows.sort_values("eps")
    many = ordered["n"].astype(int) >= _ENOUGH
    few, enough = ordered[~many], ordered[many]
    axes.plot(few["eps"], few["value"], linestyle="", alpha=0.3, **style)
    errors = [enough["value"] - enough["ci_low"], enough["ci_high"] - enough["value"]]
    line: dict[str, Any] = {"linewidth": 1, "elinewidth": 0.7, "linestyle": "--" if dashed else "-"}
    axes.errorbar(enough["eps"], enough["value"], yerr=errors, label=name, **style, **line)


@facts(version=1)
def risk_coverage(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Error of the most confident part of the images against that part, a panel per source, a line per model.

    Args:
        table: A tidy table.
        dataset: Data set to draw; by default the first.

    Returns:
        A figure, or None where calibration was not measured.

    Source: El-Yaniv & Wiener, JMLR 2010, section 2.
    """
    rows = _of(table, "risk_at_coverage", dataset)
    rows = rows[rows["attack"] == BEFORE] if len(rows) else rows
    if rows.empty:
        return None
    models = sorted(set(rows["model"]))
    sources = [_CLEAN, *sorted(set(rows["threat"]) - {_CLEAN})]
    figure = Figure(figsize=(3.4 * len(sources) + 1.2, 3.8), layout="constrained")
    figure.suptitle(f"Risk against coverage ({rows['dataset'].iloc[0]})", x=0.01, ha="left", fontsize=12)
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        for i, model in enumerate(models):
            part = rows[(rows["threat"] == source) & (rows["model"] == model)].sort_values("eps")
            told: dict[str, Any] = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": "os^Dvp*"[i % 7],
                "markersize": 3,
                "linewidth": 1,
            }
            axes.plot(part["eps"], part["value"], label=model, **told)
        axes.set_title(source, loc="left", fontsize=9)
        axes.set_xlabel("coverage: most confident part answered")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("risk: error among the answered")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 4), frameon=False, fontsize=8)
    return figure


def _of(table: pd.DataFrame, metric: str, dataset: str | None) -> pd.DataFrame:
    rows = with_result(table[(table["metric"] == metric) & (table["condition"] == "")])
    return rows if rows.empty else rows[rows["dataset"] == (dataset or rows["dataset"].iloc[0])]
