"""Pictures of cost against quality: what each compression costs, and which are worth it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from robench.metrics.pareto import COSTS, pareto
from robench.registry import facts
from robench.reports.curves import COLOURS

_PANEL = ["quality", "threat", "cost"]
_MARGIN = 1.25
"""Factor by which a cost axis goes beyond the smallest and the largest cost."""
_DECADE = 10.0
"""Below this ratio a log axis has at most one power of ten, so its ticks are chosen as on a linear one."""
_MARKERS = "os^Dvp*"
_NAMES = {
    "accuracy": "clean accuracy", "robust_accuracy": "robust accuracy", "corrupted_accuracy": "corrupted accuracy",
    "stored_bytes": "stored bytes", "latency_p50_ms": "latency of one image (ms)",
}  # fmt: skip


@facts(version=1)
def pareto_picture(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Quality against stored bytes and latency (log scales), one panel for each; the Pareto set is joined and named.

    Args:
        table: A tidy table.
        dataset: Data set to draw; by default the first.

    Returns:
        A figure, or None when no compressed model can be compared with its original. A panel in which nothing can be
        compared is left out.
    """
    points = pareto(table)
    points = points[points["left_out"] == ""]
    if points.empty:
        return None
    points = points[points["dataset"] == (dataset or points["dataset"].iloc[0])]
    points = points[points.groupby(_PANEL)["condition"].transform(_compares)]
    if points.empty:
        return None
    qualities = list(points.groupby(["quality", "threat"], sort=True))
    costs = [cost for cost in COSTS if cost in set(points["cost"])]
    models = sorted(set(table["model"]))
    figure = Figure(figsize=(1.5 + 5.75 * len(costs), 1.2 + 3.1 * len(qualities)), layout="constrained")
    grid = figure.subplots(len(qualities), len(costs), squeeze=False)
    for line, ((quality, threat), part) in zip(grid, qualities, strict=True):
        for axes, cost in zip(line, costs, strict=True):
            shown = part[part["cost"] == cost]
            if shown.empty:
                axes.remove()
                continue
            _panel(axes, shown, models)
            axes.set_xlabel(_NAMES[cost])
            axes.set_ylabel(_NAMES[str(quality)] + (f" at {threat}" if quality == "robust_accuracy" else ""))
    where = f"{points['dataset'].iloc[0]}, n = {int(points['n'].max())}"
    grid[0, 0].set_title(f"Cost against quality ({where})", loc="left", fontsize=12)
    _legend(figure, [m for m in models if m in set(points["model"])], models, shown_front=bool(points["front"].any()))
    return figure


def _panel(axes: Axes, points: pd.DataFrame, models: list[str]) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _cost_axis(axes, points["cost_value"])
    for model, rows in points.groupby("model"):
        i = models.index(str(model))
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]
        errors = [
            rows["value"] - rows["ci_low"].fillna(rows["value"]),
            rows["ci_high"].fillna(rows["value"]) - rows["value"],
        ]
        axes.errorbar(rows["cost_value"], rows["value"], yerr=errors, fmt="none", ecolor=colour, alpha=0.3, linewidth=0.8)
        for row in rows.itertuples():
            style = "full" if row.front else "none"
            axes.plot(row.cost_value, row.value, marker=marker, color=colour, fillstyle=style, linestyle="", markersize=6)
    best = points[points["front"]].sort_values("cost_value")
    axes.step(best["cost_value"], best["value"], where="post", color="#888888", linewidth=0.9, zorder=0)
    _name(axes, best, several=points["model"].nunique() > 1)


def _compares(conditions: pd.Series) -> bool:
    """Whether a panel compares something: a model as it is and a changed one."""
    return bool((conditions == "").any() and (conditions != "").any())


def _cost_axis(axes: Axes, costs: pd.Series) -> None:
    """A log axis over the costs with labelled ticks, also where they are nearly or exactly equal."""
    low, high = float(costs.min()) / _MARGIN, float(costs.max()) * _MARGIN
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high / low < _DECADE:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v < 1e3 else f"{v / 1e3:g} k"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, best: pd.DataFrame, *, several: bool) -> None:
    """Number the points of the Pareto set, and say beside the panel which is which; names at the points would overlap."""
    lines = []
    for number, (place, rows) in enumerate(best.groupby(["cost_value", "value"], sort=True), start=1):
        axes.annotate(str(number), place, xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center")
        names = [
            (f"{m}: " if several else "") + (c or "as it is") for m, c in zip(rows["model"], rows["condition"], strict=True)
        ]
        lines.append(f"{number}  " + ", ".join(names))
    axes.text(1.01, 0.0, "\n".join(lines), transform=axes.transAxes, fontsize=8, va="bottom")


def _note(front: bool) -> str:
    return "filled: nothing else is as good and as cheap" if front else "too few attacks to say which are worth their cost"


def _legend(figure: Figure, shown: list[str], models: list[str], *, shown_front: bool) -> None:
    """Which colour and marker is which model, under the panels."""
    axes = figure.axes[-1]
    handles = []
    for model in shown:
        i = models.index(model)
        handles += axes.plot([], [], marker=_MARKERS[i % len(_MARKERS)], color=COLOURS[i % len(COLOURS)], linestyle="",
                             label=model)  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
                  title=_note(shown_front), title_fontsize=8)  # fmt: skip
