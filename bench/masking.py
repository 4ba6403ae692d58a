"""What measured gradients say of a model: numbers in, findings out; for the verdict and for attacks that escalate.

Source: Athalye et al., ICML 2018, section 3; Croce & Hein, ICML 2020; Pintor et al., NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import comb

import numpy as np
from numpy.typing import NDArray

from robench.thresholds import DEFAULTS, Thresholds

VERSION = 1
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

Column = NDArray[np.float64]

PLACES = {"": "at random starts", "end_": "where an ascent ended", "wide_": "where a wider ascent ended"}
"""Where gradients were held against differences: what begins the column's name, and as a text."""


COARSE = 0.1
"""Median noise of differences from where on they tell nothing: 0.02 and less of float32 nets, 0.4 and more in 16 bits."""

ROUNDING = 2.0
"""How many times the middle sample's noise the error along a line must exceed; in 16 bits it is below once."""


def diagnose(
    measured: Mapping[str, Column],
    *,
    survived: NDArray[np.bool_] | None = None,
    lent: bool = False,
    limits: Thresholds = DEFAULTS,
) -> list[str]:
    """Every sign that the gradients of some samples (N,) cannot lead an attack.

    Args:
        measured: Columns (N,), NaN where a sample was not measured: ``zero_gradient``, ``nonfinite_gradient``,
            ``gradient_error``, ``slope``, ``slope_claimed``, ``hidden``, ``evenness``, and ``mass_error``,
            ``mass_noise``, ``steep`` at each of ``PLACES``, ``line_error``, ``line_noise``, ``line_turns``; what is absent
            is not judged.
        survived: The samples that attacks left robust; robustness rests on these, so few of them are enough. None: unknown.
        lent: Whether the gradient is a substitute's.
        limits: From where on a sign counts.

    Returns:
        One text per finding, none for a model without any.
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in measured.items()}
    found = [*_lost(columns, limits), *_misleading(columns, lent, limits)]
    return found if lent else [*found, *_in_general(columns, limits), *_one_by_one(columns, survived, limits)]


def many(count: int, total: int, share: float, limits: Thresholds = DEFAULTS, least: int = 0) -> bool:
    """Whether so many of so many are more than chance and more than a share, of ``least`` samples at least."""
    return count >= min(limits.floor, max(total, 1)) and count > share * max(total, least)


def _lost(columns: Mapping[str, Column], limits: Thresholds) -> Iterator[str]:
    zero = _flags(columns, "zero_gradient")
    if zero.size and zero.mean() > limits.zero_gradient and many(int(zero.sum()), zero.size, 0.0, limits):
        yield f"zero gradients on {percent(float(zero.mean()))} of samples"
    if _flags(columns, "nonfinite_gradient").any():
        yield "non-finite gradients"
    uneven = _present(columns, "evenness") < limits.even
    if uneven.size and many(int(uneven.sum()), uneven.size, limits.uneven, limits):
        yield f"the gradients of some classes are lost beside those of others on {percent(float(uneven.mean()))} of samples"
    hidden = _present(columns, "hidden")
    if hidden.size and hidden.mean() > limits.hidden:
        yield f"{percent(float(hidden.mean()))} of the squared gradient lie on pixels where it is said to be zero"


def _misleading(columns: Mapping[str, Column], lent: bool, limits: Thresholds) -> Iterator[str]:
    """Slopes along single directions, of all samples together."""
    wrong = _present(columns, "gradient_error") > 0.5
    if wrong.size and many(int(wrong.sum()), wrong.size, limits.misleading, limits):
        yield f"gradients disagree with finite differences on {percent(float(wrong.mean()))} of samples"
    if "slope" in columns:
        cosine = agreement(columns["slope"], columns["slope_claimed"])
        if cosine < (limits.lent if lent else limits.agreement):
            yield f"slopes along random directions agree with the gradient by a cosine of {cosine:.2f} only"


def agreement(measured: Column, claimed: Column) -> float:
    """Cosine between slopes (N,) as measured and as the gradient has them; 1 where both are zero throughout."""
    measured, claimed = np.nan_to_num(measured), np.nan_to_num(claimed)
    norms = float(np.linalg.norm(measured) * np.linalg.norm(claimed))
    return float(measured @ claimed) / norms if norms else float(not (measured.any() or claimed.any()))


def _in_general(columns: Mapping[str, Column], limits: Thresholds) -> Iterator[str]:
    """What holds of the middle sample, so that a few odd ones do not matter."""
    for place, where in PLACES.items():
        if _middle(columns, f"{place}mass_noise") > COARSE:
            continue
        error, steep = _present(columns, f"{place}mass_error"), _present(columns, f"{place}steep")
        if error.size and np.median(error) > limits.mass:
            yield f"differences of pixel groups contradict {percent(float(np.median(error)))} of the gradient {where}"
        if steep.size and np.median(steep) < limits.steep:
            told = percent(max(0.0, float(np.median(steep))))
            yield f"the steepest step {where} yields {told} of the slope that the gradient claims"
    line, turns = _present(columns, "line_error"), _present(columns, "line_turns")
    if line.size and np.median(line) > max(limits.line, ROUNDING * _middle(columns, "line_noise")):
        yield f"gradients along an ascent's line miss {percent(float(np.median(line)))} of the margin's changes"
    if turns.size and np.median(turns) > limits.turns:
        yield f"the margin goes up and down {float(np.median(turns)):.1f} times as much as it falls along an ascent's line"


def misled(columns: Mapping[str, Column], limits: Thresholds = DEFAULTS) -> NDArray[np.bool_]:
    """The samples whose own gradients lead nowhere, bool (N,): at most places, or along the line of an ascent."""
    fine = [place for place in PLACES if _middle(columns, f"{place}mass_noise") <= COARSE]
    present = [columns[f"{place}mass_error"] for place in fine if f"{place}mass_error" in columns]
    wrong = np.zeros(len(next(iter(columns.values()), ())), dtype=bool)
    if present:
        errors = np.stack(present)
        wrong = (np.nan_to_num(errors) > limits.mass_of_one).sum(0) > (~np.isnan(errors)).sum(0) / 2
    line = max(limits.line_of_one, ROUNDING * _middle(columns, "line_noise"))
    for name, limit in (("line_error", line), ("line_turns", limits.turns_of_one)):
        if name in columns:
            wrong |= np.nan_to_num(columns[name]) > limit
    return wrong


def _one_by_one(columns: Mapping[str, Column], survived: NDArray[np.bool_] | None, limits: Thresholds) -> Iterator[str]:
    """Single samples: of all of them, and of those that met ascents, where not all did."""
    every = np.ones(len(next(iter(columns.values()), ())), dtype=bool)
    watched = ~np.isnan(columns["line_error"]) if "line_error" in columns else every
    for rows in (every, watched) if watched.any() and not watched.all() else (every,):
        wrong = misled({name: column[rows] for name, column in columns.items()}, limits)
        resting = wrong & survived[rows] if survived is not None and wrong.size else wrong[:0]
        if many(int(wrong.sum()), wrong.size, limits.misleading, limits):
            yield f"gradients lead astray on {int(wrong.sum())} of {wrong.size} samples"
            return
        if many(int(resting.sum()), wrong.size, limits.resting, limits):
            yield f"gradients lead astray on {int(resting.sum())} samples that stayed robust, of {wrong.size} looked at"
            return


def percent(share: float) -> str:
    """A share as text, one decimal."""
    return f"{100 * share:.1f} %"


def _middle(columns: Mapping[str, Column], name: str) -> float:
    """The median of what was measured, 0 where nothing was."""
    column = _present(columns, name)
    return float(np.median(column)) if column.size else 0.0


def _present(columns: Mapping[str, Column], name: str) -> Column:
    column = columns.get(name, np.zeros(0))
    return column[~np.isnan(column)]


def _flags(columns: Mapping[str, Column], name: str) -> NDArray[np.bool_]:
    return np.nan_to_num(columns.get(name, np.zeros(0))) > 0


def visible(count: int, limits: Thresholds = DEFAULTS, *, chance: float = 0.95) -> float:
    """The smallest share of samples that, masked, would show at least ``limits.floor`` of ``count`` samples, (0, 1].

    With probability ``chance`` a fault of that share is met often enough to be told; 1 where the samples are too few.
    """
    if count < limits.floor:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        missed = sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(limits.floor))
        low, high = (low, share) if 1 - missed >= chance else (share, high)
    return high
