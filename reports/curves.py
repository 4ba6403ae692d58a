"""Pictures from the tidy table: accuracy against eps and severity."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robench.metrics.pending import with_result
from robench.metrics.stats import wilson
from robench.metrics.validity import DOUBTED, worst_of
from robench.registry import facts

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe & Ito 2008: told apart with every common form of colour blindness; markers differ too."""
MARKERS = "os^Dvp*"
_GAP = 0.055
"""Least distance between two labels at the line ends, as a share of the axis."""


@facts(version=1)
def security_curve(table: pd.DataFrame, *, norm: str | None = None, dataset: str | None = None) -> Figure | None:
    """Robust accuracy against eps per model, from clean at eps 0, with 95 % bands; suspicious models are dashed.

    Args:
        table: A tidy table.
        norm: Norm to draw; by default the one with the most points.
        dataset: Data set to draw; by default the first.

    Returns:
        A figure, or None when nothing was attacked at a finite eps.
    """
    rows = _of(table, "robust_accuracy", dataset)
    rows = rows[(rows["attack"] == "worst") & np.isfinite(rows["eps"])]
    if rows.empty:
        return None
    norms = rows["threat"].str.partition("(")[0]
    chosen = norm or str(norms.mode().iloc[0])
    rows = _informative(rows[norms == chosen])
    figure, axes = _axes(f"Security curve, {chosen} ({_where(rows)})", "perturbation size eps" + _unit(rows))
    lines = {m: pd.concat([_at_zero(part), part]) for m, part in rows.groupby("model")}
    _draw(axes, lines, sorted(set(table["model"])), scale=255.0 if _in_255(rows) else 1.0, legend=True)
    return figure


def _informative(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows up to the smallest eps at which no model is left with 1 %; beyond it all lines lie on the axis."""
    best = rows.groupby("eps")["value"].max()
    fallen = best[best < 0.01].index
    return rows[rows["eps"] <= fallen.min()] if len(fallen) else rows


@facts(version=1)
def corruption_curve(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Mean accuracy over corruptions against severity per model, with 95 % bands; None without corruptions."""
    rows = _of(table, "corrupted_accuracy", dataset)
    rows = rows[(rows["threat"] == "mean") & rows["eps"].notna()]
    if rows.empty:
        return None
    figure, axes = _axes(f"{rows['attack'].iloc[0] or 'Common corruptions'} ({_where(rows)})", "severity")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _draw(axes, dict(iter(rows.groupby("model"))), sorted(set(table["model"])))
    return figure


def image(figure: Figure, kind: str = "png") -> bytes:
    """The figure as ``png`` or ``svg``; the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "robench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _of(table: pd.DataFrame, metric: str, dataset: str | None) -> pd.DataFrame:
    rows = with_result(table[(table["metric"] == metric) & (table["condition"] == "")])
    if rows.empty:
        return rows
    return rows[rows["dataset"] == (dataset or rows["dataset"].iloc[0])]


def _where(rows: pd.DataFrame) -> str:
    return f"{rows['dataset'].iloc[0]}, n = {int(rows['n'].max())}"


def _in_255(rows: pd.DataFrame) -> bool:
    return bool(rows["threat"].str.contains("/255").any())


def _unit(rows: pd.DataFrame) -> str:
    return " (in 1/255)" if _in_255(rows) else ""


def _at_zero(rows: pd.DataFrame) -> pd.DataFrame:
    """The clean accuracy of the attacked samples as the point at eps 0."""
    first = rows.sort_values("eps").iloc[0]
    clean = wilson(int(first["n_clean_correct"]), int(first["n"]))
    return pd.DataFrame([{**first, "eps": 0.0, "value": clean.value, "ci_low": clean.low, "ci_high": clean.high}])


def _axes(title: str, x: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(x)
    axes.set_ylabel("accuracy (95 % interval)")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw(
    axes: Axes, lines: dict[str, pd.DataFrame], models: Sequence[str], *, scale: float = 1.0, legend: bool = False
) -> None:
    """One line per model; the colour follows the model's place among all models, so that all pictures agree."""
    ends = []
    for model, rows in sorted(lines.items()):
        i = models.index(model)
        points = rows.sort_values("eps")
        x, bad = points["eps"].to_numpy() * scale, bool(points["validity"].str.startswith(DOUBTED).any())
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        style: dict[str, Any] = {"linestyle": "--" if bad else "-", "fillstyle": "none" if bad else "full"}
        name = f"{model} ({_verdict(points)})" if bad else model
        axes.plot(x, points["value"], color=colour, marker=marker, clip_on=False, label=name, **style)
        axes.fill_between(x, points["ci_low"], points["ci_high"], color=colour, alpha=0.07 if bad else 0.15, linewidth=0)
        ends.append((float(points["value"].iloc[-1]), name, colour, float(x[-1])))
    if legend:  # the lines fall to the right, where names at their ends would lie on each other
        axes.legend(loc="upper right", frameon=False, fontsize=9)
    else:
        _label(axes, ends)


def _verdict(points: pd.DataFrame) -> str:
    """The worst status of a line's points, and where it is that of some of them only."""
    worst = worst_of(points["validity"])
    having = points["validity"].str.startswith(worst)
    if having.all():
        return worst
    threats = list(dict.fromkeys(points.loc[having, "threat"]))
    more = f" and {len(threats) - 1} more" if len(threats) > 1 else ""
    return f"{worst} at {threats[0]}{more}"


def _label(axes: Axes, ends: Sequence[tuple[float, str, str, float]]) -> None:
    """Names at the line ends instead of a legend, moved apart where they would overlap."""
    right = max(x for *_, x in ends)
    for (height, name, colour, _), y in zip(ends, spread([e[0] for e in ends]), strict=True):
        axes.annotate(
            name, (right, height), xytext=(1.02, y), textcoords="axes fraction", color=colour, va="center", fontsize=9,
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.7},
        )  # fmt: skip


def spread(heights: Sequence[float], *, gap: float = _GAP) -> list[float]:
    """Positions in [0, 1] in the order of the heights, at least ``gap`` apart where there is room."""
    gap = min(gap, 1 / max(len(heights), 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    last = -math.inf
    for i in order:
        last = placed[i] = max(heights[i], last + gap)
    ceiling = 1.0
    for i in reversed(order):
        ceiling = placed[i] = min(placed[i], ceiling)
        ceiling -= gap
    return placed
