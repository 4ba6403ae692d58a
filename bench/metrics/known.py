"""Facts about every metric of the tidy table: direction, unit, bounds and frame; and the lines of plug-in metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pandas as pd

from robench.errors import ConfigError, RobenchError, must, suggestion
from robench.metrics import TABLE, clean
from robench.metrics.rows import row
from robench.registry import Entry, Table
from robench.spec import Estimate

_RATE, _DIFFERENCE, _COUNT = ("rate", (0, 1)), ("difference", (-1, 1)), ("count", (0, None))


def _facts(higher: bool | None, kind: tuple[str, tuple[Any, Any]], needs: str, summary: str) -> dict[str, Any]:
    return {"higher_is_better": higher, "unit": kind[0], "bounds": kind[1], "needs": needs, "summary": summary}


_AXES = ("fraction", "shots", "imbalance", "label_noise")
_MEASURES = ("", "corrupted_", "robust_")
_CURVES = ("data_efficiency_auc", "power_law_exponent", "power_law_floor", "scarce_accuracy_ratio", "samples_for_target")
DERIVED: Mapping[str, Mapping[str, Any]] = {
    "rank": _facts(False, _COUNT, "evasion", "Rank among the models that may be compared in the run."),
    "robust_accuracy_train": _facts(True, _RATE, "evasion_train", "Robust accuracy on training images."),
    "robust_gap": _facts(False, _DIFFERENCE, "evasion_train", "Robust accuracy on training minus on test images."),
    "relative_robustness": _facts(True, _DIFFERENCE, "shift", "Accuracy on a shifted set minus that of another model."),
    "temperature": _facts(None, ("ratio", (0, None)), "calibration", "Temperature that was fitted to the logits."),
    "accuracy_in_bin": _facts(None, _RATE, "calibration", "Accuracy of the samples of one confidence bin."),
    "risk_at_coverage": _facts(False, _RATE, "calibration", "Error of the most confident samples at one coverage."),
    "class_accuracy_drop": _facts(False, _DIFFERENCE, "disagreement", "Loss of accuracy on one class by compression."),
    "class_drop_p_value": _facts(None, _RATE, "disagreement", "p-value of that loss."),
    **{f"trainings_at_{axis}": _facts(None, _COUNT, "clean", f"Trainings at a {axis}.") for axis in _AXES},
    **{
        f"{measure}accuracy_at_{axis}": _facts(True, _RATE, "clean", f"Accuracy of trainings at a {axis}.")
        for axis in _AXES
        for measure in _MEASURES
    },
    **{
        f"gain_in_{measure}accuracy": _facts(True, _DIFFERENCE, "clean", "Gain over the same training without help.")
        for measure in _MEASURES
    },
}
"""Metrics that are computed from several results, so that no function of one frame gives them: name -> facts."""

_BY = {
    "corruption": ("corruption", "threat"),
    "evasion": ("threat", "threat"),
    "explanation": ("explainer", "attack"),
    "flips": ("perturbation", "threat"),
    "shift": ("shift", "threat"),
}
"""Frame -> the column by which a plug-in metric is computed, and the tidy table's column that holds its value."""
_USER_ERRORS = (RobenchError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a plug-in may raise in practice."""
_LOG = logging.getLogger("robench")


_SHORT = {
    "clean": "accuracy", "clean_accuracy": "accuracy", "robust": "robust_accuracy",
    "adversarial_accuracy": "robust_accuracy",
    "corrupted": "corrupted_accuracy", "corruption_accuracy": "corrupted_accuracy",
    "data_efficiency": "data_efficiency_auc", "calibration_error": "ece",
}  # fmt: skip
"""What people call metrics (the leaderboard's columns among them), and their names."""


@cache
def metrics() -> Table:
    """Metrics that are functions of one frame: ours and plug-ins'."""
    return Table("metrics", TABLE)


def names() -> list[str]:
    """Names of all metrics that a tidy table can hold, sorted."""
    return sorted({*metrics(), *DERIVED, *(f"{measure}{name}" for measure in _MEASURES for name in _CURVES)})


def facts_of(name: str, *, what: str = "a metric") -> Mapping[str, Any]:
    """``higher_is_better`` (None: neither), ``unit``, ``bounds``, ``needs`` and ``summary`` of a metric.

    Args:
        name: The metric.
        what: What the name is for, as an error says it.

    Raises:
        ConfigError: Unknown name.
    """
    if name in DERIVED:
        return DERIVED[name]
    for measure in ("corrupted_", "robust_"):
        if name.removeprefix(measure) in _CURVES:
            return metrics()[name.removeprefix(measure)].facts
    if name not in metrics():
        remedy = f"did you mean {_SHORT[name]!r}?" if name in _SHORT else suggestion(name, names())
        raise ConfigError(must(what, "a known one", name, remedy))
    return metrics()[name].facts


@cache
def plugged(scenario: str) -> tuple[Entry, ...]:
    """Metrics of other packages that are computed from this scenario's frame."""
    found = [entry for entry in metrics().values() if entry.origin != "robench"]
    for entry in found:
        if "needs" not in entry.facts or "higher_is_better" not in entry.facts:
            _LOG.warning("metric %s of %s is left out: declare needs and higher_is_better", entry.name, entry.origin)
    return tuple(e for e in found if e.facts.get("needs") == scenario and "higher_is_better" in e.facts)


def plugged_lines(scenario: str, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Lines of the plug-in metrics of a scenario on one model's rows: one per threat, corruption, explainer, ...

    Of clean rows a metric is given those of the test split. One that raises, or returns no ``Estimate`` within its
    declared bounds, gives a line with the status ``failed`` and no value.
    """
    entries = plugged(scenario)
    if not entries:
        return
    rows = clean.split(rows, "test") if scenario == "clean" else rows
    column, place = _BY.get(scenario, ("", ""))
    groups = list(rows.groupby(column, sort=True, observed=True)) if column in rows else [("", rows)]
    for entry in entries:
        for value, part in groups:
            yield _computed(entry, part, {place: str(value)} if place and value != "" else {})


def _computed(entry: Entry, rows: pd.DataFrame, where: dict[str, Any]) -> dict[str, Any]:
    try:
        found = entry.load()(rows)
        error = _fault(found, entry.facts.get("bounds", (None, None)))
    except _USER_ERRORS as raised:
        error = f"{type(raised).__name__}: {raised}".partition("\n")[0][:200]
    if error:
        empty = Estimate(math.nan, math.nan, math.nan, 0)
        return row(entry.name, empty, rows, status="failed", validity=f"failed: {error}", **where)
    return row(entry.name, found, rows, **where)


def _fault(found: Any, bounds: tuple[float | None, float | None]) -> str:
    """Why what a metric returned is no result of it; empty where it is one."""
    if not isinstance(found, Estimate):
        return f"it returned {type(found).__name__} instead of an Estimate"
    low, high = bounds
    if (low is not None and found.value < low) or (high is not None and found.value > high):
        return f"its value {found.value:g} is outside its bounds {low} to {high}"
    return ""
