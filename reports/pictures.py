"""All pictures by name, for the page and for the run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from robench.escape import shortened, visible
from robench.progress import Progress, silent
from robench.reports.corruptions import family_curves
from robench.reports.curves import corruption_curve, image, security_curve
from robench.reports.fonts import families, spelled
from robench.reports.pareto import pareto_picture
from robench.reports.reliability import reliability_diagram, risk_coverage
from robench.reports.scarcity import augmentation_gains, data_quality_curve, scarcity_curve, transfer_gains

PICTURES: Mapping[str, Callable[..., Figure | None]] = {
    "security_curve": security_curve,
    "corruption_curve": corruption_curve,
    "corruption_families": family_curves,
    "scarcity_curve": scarcity_curve,
    "data_quality_curve": data_quality_curve,
    "augmentation_gains": augmentation_gains,
    "transfer_gains": transfer_gains,
    "pareto": pareto_picture,
    "reliability_diagram": reliability_diagram,
    "risk_coverage": risk_coverage,
}
"""File name → ``f(table, *, dataset=None) -> Figure | None``, in the order of the page; None: nothing to draw."""


@dataclass(frozen=True)
class Picture:
    """A picture of one data set."""

    name: str
    title: str
    figure: Figure
    png: bytes


_NAMED = ("model", "dataset", "condition", "attack")
"""Columns of names that others chose and pictures show."""


def drawn(draw: Callable[..., Figure | None], table: pd.DataFrame, *, dataset: str | None) -> Figure | None:
    """A picture whose names are drawn letter by letter: no mathematical notation, nothing invisible, not too long."""
    columns = [column for column in _NAMED if column in table]
    texts = {name: visible(name) for column in columns for name in set(table[column]) if isinstance(name, str)}
    fonts, missing = families(texts.values())
    shown = {column: table[column].map(lambda name: _shown(name, missing)) for column in columns}
    with matplotlib.rc_context({"font.family": fonts}):
        return draw(table.assign(**shown), dataset=None if dataset is None else _shown(dataset, missing))


def _shown(name: Any, missing: frozenset[str]) -> Any:
    """A name as matplotlib draws it letter by letter: ``$`` begins no formula, a leading ``_`` does not hide it."""
    if not isinstance(name, str):
        return name
    text = shortened(spelled(visible(name), missing)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def pictures(table: pd.DataFrame, *, progress: Progress = silent) -> list[Picture]:
    """All pictures that there is something to draw for, by data set, in the order of the page."""
    found = []
    datasets = sorted(set(table["dataset"]))
    for i, dataset in enumerate(datasets):
        for k, (name, draw) in enumerate(PICTURES.items()):  # whether there is anything to draw shows only then: no names
            progress("drawing pictures", i * len(PICTURES) + k, len(datasets) * len(PICTURES))
            figure = drawn(draw, table, dataset=dataset)
            if figure is not None:
                title = (figure.get_suptitle() or figure.axes[0].get_title(loc="left")).replace(r"\$", "$").strip()
                found.append(Picture(name, title, figure, image(figure)))
    return found
