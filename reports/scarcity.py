"""Scarce and noisy data in pictures and a table: accuracy against what there is to learn from, and what help gains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from robench.metrics.pending import with_result
from robench.metrics.scarcity import TARGETS
from robench.metrics.validity import DOUBTED, worst_of
from robench.registry import facts
from robench.reports.cells import interval
from robench.reports.curves import COLOURS, MARKERS
from robench.reports.sections import Section
from robench.spec import Ref

_MEASURES = ("accuracy", "corrupted_accuracy", "robust_accuracy")
_AXES = {
    "shots": "training images per class",
    "imbalance": "largest class over smallest",
    "label_noise": "share of wrong training labels",
}


@facts(version=2)
def scarcity_curve(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Clean, corrupted and robust accuracy against the share of training data per model, with 95 % bands.

    Args:
        table: A tidy table.
        dataset: Data set to draw; by default the first.

    Returns:
        A figure with a panel for each measure, or None without scarcity.
    """
    rows = _of(table, "accuracy_at_fraction", dataset)
    rows = rows[rows["condition"] == ""]
    if rows.empty:
        return None
    panels = list(_panels(rows))
    figure, axes = _figure(f"Scarce training data ({_where(rows, table)})", len(panels))
    models = sorted(set(table["model"]))
    for ax, (name, part) in zip(axes, panels, strict=True):
        _rated(ax, name, "share of the training data")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(rows["eps"].unique()))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
        ax.xaxis.minorticks_off()
        for model, line in sorted(part.groupby("model")):
            _line(ax, line, models.index(str(model)), str(model))
    _legend(figure, axes)
    return figure


@facts(version=1)
def data_quality_curve(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Accuracies against shots, imbalance and label noise, with 95 % bands; None where none of them was varied."""
    found = {axis: _of(table, f"accuracy_at_{axis}", dataset) for axis in _AXES}
    found = {axis: rows for axis, rows in found.items() if len(rows)}
    if not found:
        return None
    first = next(iter(found.values()))
    figure, axes = _figure(f"Few, uneven and wrong labels ({_where(first, table)})", len(found))
    for ax, (axis, rows) in zip(axes, found.items(), strict=True):
        _rated(ax, axis.replace("_", " "), _AXES[axis])
        if axis != "label_noise":
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(rows["eps"].unique()))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            ax.xaxis.minorticks_off()
        for (metric, attack, condition), line in sorted(rows.groupby(["metric", "attack", "condition"])):
            kind = "" if axis != "label_noise" else str(_args(condition).get("noise", "symmetric"))
            place = _MEASURES.index(str(metric).partition("_at_")[0])
            _line(
                ax, line, place, _measured(str(metric), str(attack)), style="--" if kind in ("asymmetric", "pair") else "-"
            )
            if kind not in ("", "symmetric"):
                ax.set_xlabel(f"{_AXES[axis]} (dashed: {kind})")
    _legend(figure, axes)
    return figure


@facts(version=1)
def augmentation_gains(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Paired gains of each augmentation over none, with 95 % intervals over trainings and images; None without arms."""
    return _gains(table, "augment", "Augmentation against none", dataset)


@facts(version=1)
def transfer_gains(table: pd.DataFrame, *, dataset: str | None = None) -> Figure | None:
    """Paired gains of each way of transfer over training from scratch, with 95 % intervals; None without arms."""
    return _gains(table, "transfer", "Transfer against training from scratch", dataset)


_TOLD = {
    "data_efficiency_auc": "area %", "scarce_accuracy_ratio": "10 % / 100 %", "power_law_exponent": "exponent b",
    "power_law_floor": "floor c %", "samples_for_target": "images for {:.0f} %",
}  # fmt: skip
"""Metric of a whole curve → column."""


def efficiency_of_data(table: pd.DataFrame) -> Section | None:
    """One line per model, measure and curve over fractions: area, ratio, power law, images for target accuracies."""
    rows = with_result(table[(table["scenario"] == "scarcity") & (table["threat"] == "fraction")])
    bare = rows["metric"].str.replace(r"^(corrupted|robust)_", "", regex=True)
    rows, bare = rows[bare.isin(_TOLD)], bare[bare.isin(_TOLD)]
    if rows.empty:
        return None
    columns = [_TOLD[name].format(100 * eps) for name, eps in zip(bare, rows["eps"], strict=True)]
    texts = [_text(name, line) for name, line in zip(bare, rows.to_dict("records"), strict=True)]
    changed = [_changed(c) for c in rows["condition"]]
    long = rows.assign(what=columns, text=texts, training=rows["model"] + changed, measured=rows["attack"])
    cells = long.pivot_table(
        index=["dataset", "training", "measured"], columns="what", values="text", aggfunc="first", sort=False
    )
    order = [c for c in dict.fromkeys(_TOLD[n].format(100 * t) for n in _TOLD for t in TARGETS) if c in cells]
    note = (
        "Curves over nested fractions with equal optimiser steps. Area: under the curve against log2 of the fraction. "
        "b and c of error = a n^-b + c. ≤ and >: the sizes that were tried only bound the number. 95 % intervals over "
        "trainings and images."
    )
    return Section("Scarce data", cells[order].fillna("").reset_index().rename_axis(columns=None), note)


def _changed(condition: str) -> str:
    args = _args(condition)
    return "" if not args else " (" + ", ".join(f"{k}={v}" for k, v in args.items()) + ")"


def _text(name: str, line: dict[str, Any]) -> str:
    """A value with its interval in the unit of its column."""
    value, low, high = (float(line[k]) for k in ("value", "ci_low", "ci_high"))
    if name == "samples_for_target":
        if math.isnan(value):
            return f"> {low:.0f}"
        bound = "≤ " if low == 0 else ""
        if bound and high <= value:
            return f"{bound}{value:.0f}"
        return f"{bound}{value:.0f} [{low:.0f}, {'∞' if math.isinf(high) else f'{high:.0f}'}]"
    if name in ("power_law_exponent", "scarce_accuracy_ratio"):
        return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return interval(value, low, high)


def _gains(table: pd.DataFrame, what: str, title: str, dataset: str | None) -> Figure | None:
    gains = table[(table["scenario"] == "scarcity") & (table["threat"] == "gain")]
    rows = with_result(gains[gains["condition"].str.contains(f"{what}=")])
    rows = rows[rows["dataset"] == (dataset or (rows["dataset"].iloc[0] if len(rows) else ""))]
    if rows.empty:
        return None
    rows = rows.assign(
        arm=[str(_args(c)[what]) for c in rows["condition"]], at=[_at(_args(c)) for c in rows["condition"]],
        measure=[_measured(m.removeprefix("gain_in_"), a) for m, a in zip(rows["metric"], rows["attack"], strict=True)],
    )  # fmt: skip
    rows = rows.assign(panel=rows["measure"].str.replace(r" without .*", "", regex=True))
    arms, panels = sorted(rows["arm"].unique(), reverse=True), sorted(rows["panel"].unique(), key=_order)
    figure, axes = _figure(f"{title} ({_where(rows, table)})", len(panels), height=1.6 + 0.34 * len(arms))
    for ax, panel in zip(axes, panels, strict=True):
        part = rows[rows["panel"] == panel]
        _dots(ax, part, arms, f"gain in {panel}")
        left_out = sorted({m.partition(" without ")[2] for m in part["measure"]} - {""})
        if left_out:
            ax.set_xlabel("points; each arm without\nthe corruptions it is made of", fontsize=8)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    _legend(figure, axes)
    return figure


def _dots(ax: Axes, rows: pd.DataFrame, arms: list[str], title: str) -> None:
    """One dot and interval per arm and sample, the samples beside each other."""
    ax.set_title(title, fontsize=10)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(-0.6, len(arms) - 0.4)
    samples = sorted(rows["at"].unique())
    for i, at in enumerate(samples):
        part = rows[rows["at"] == at]
        y = np.array([arms.index(a) for a in part["arm"]]) + (0.5 * (len(samples) - 1) - i) * 0.5 / len(samples)
        x = 100 * part["value"].to_numpy()
        sides = 100 * np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part["value"].to_numpy())
        doubted = part["validity"].str.startswith(DOUBTED).to_numpy()
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        ax.errorbar(x, y, xerr=np.nan_to_num(sides), fmt="none", ecolor=colour, elinewidth=1.2, capsize=2)
        ax.plot(x[~doubted], y[~doubted], marker, color=colour, label=at)
        if doubted.any():
            ax.plot(
                x[doubted], y[doubted], marker, color=colour, fillstyle="none", label=f"hollow: {worst_of(part['validity'])}"
            )
    ax.set_xlabel("percentage points")
    ax.grid(alpha=0.25, axis="x")
    ax.spines[["top", "right"]].set_visible(False)


def _panels(rows: pd.DataFrame) -> Any:
    """(title, rows) for each measure: clean, corrupted, then every threat."""
    for metric in _MEASURES:
        part = rows[rows["metric"] == f"{metric}_at_fraction"]
        for attack, same in part.groupby("attack", sort=True):
            yield _measured(metric, str(attack)), same


def _measured(metric: str, attack: str) -> str:
    base = metric.partition("_at_")[0].replace("_", " ")
    return (
        f"{base} at {attack}"
        if base.startswith("robust")
        else base + attack.removeprefix("clean").removeprefix("corruption")
    )


def _order(title: str) -> tuple[int, str]:
    return next(i for i, m in enumerate(("accuracy", "corrupted", "robust")) if title.startswith(m)), title


def _args(condition: str) -> dict[str, Any]:
    return dict(Ref.parse(condition).kwargs) if condition else {}


def _at(args: dict[str, Any]) -> str:
    return f"{args['shots']} shots" if "shots" in args else f"{100 * float(args.get('fraction', 1.0)):g} % of the data"


def _of(table: pd.DataFrame, metric: str, dataset: str | None) -> pd.DataFrame:
    """Rows of one metric in its clean, corrupted and robust form."""
    names = [metric, f"corrupted_{metric}", f"robust_{metric}"]
    rows = with_result(table[table["metric"].isin(names)])
    return rows if rows.empty else rows[rows["dataset"] == (dataset or rows["dataset"].iloc[0])]


def _where(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Data set, images and trainings."""
    here = with_result(table[table["dataset"] == rows["dataset"].iloc[0]])
    here = here[here["metric"].str.startswith("trainings_at_")]
    seeds = f", {here['value'].min():g} trainings each" if len(here) else ""
    return f"{rows['dataset'].iloc[0]}, n = {int(rows['n'].max())}{seeds}"


def _figure(title: str, count: int, *, height: float = 4.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(7.5, 3.9 * count), height), layout="constrained")
    axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    axes[0].set_title(f"{title}\n", loc="left", fontsize=12)  # a line above the panels' own titles
    return figure, axes


def _rated(ax: Axes, title: str, x: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _line(ax: Axes, rows: pd.DataFrame, place: int, name: str, *, style: str = "-") -> None:
    points = rows.sort_values("eps")
    bad = bool(points["validity"].str.startswith(DOUBTED).any())
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    fill: Any = "none" if bad else "full"
    label = f"{name} ({worst_of(points['validity'])})" if bad else name
    ax.plot(points["eps"], points["value"], style, color=colour, marker=marker, fillstyle=fill, clip_on=False, label=label)
    ax.fill_between(points["eps"], points["ci_low"], points["ci_high"], color=colour, alpha=0.13, linewidth=0)


def _legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels, each name once."""
    named: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(str(label), handle)
    columns = max(1, math.ceil(len(named) / 2)) if len(named) > 4 else len(named)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
