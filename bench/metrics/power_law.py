"""How error falls with the number of training images: err(n) = a n^-b + c."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from robench.metrics import crossed, stats
from robench.metrics.stats import Floats
from robench.spec import Estimate

EXPONENTS = (0.02, 4.0)
"""Smallest and largest exponent that is looked for."""
POINTS = 4
"""Fewest sizes that are fitted: three numbers of a law pass through any three."""
_GRID = 60
_REFINEMENTS = 30
_UNTOLD = 0.025
"""Share of replicates without a law above which there is no interval."""


@dataclass(frozen=True)
class Law:
    """Fitted numbers, each (R,); NaN where the curve does not fall."""

    a: Floats
    """Error above the floor for one image, not negative."""
    b: Floats
    """Exponent, in ``EXPONENTS``."""
    c: Floats
    """Error that no number of images removes, not negative."""


def fit(n: Any, errors: Any) -> Law:
    """Least squares of err = a n^-b + c with a, c >= 0 for every row of errors.

    For one b the best a and c are closed forms; b is searched on a grid and then by golden section.

    Args:
        n: Numbers of training images, (P,), positive.
        errors: Error rates in [0, 1], (R, P).

    Source: Hestness et al., 2017, section 3 (form); Golub & Pereyra, SIAM J. Numerical Analysis 1973 (variable projection).
    """
    sizes, rows = np.asarray(n, dtype=np.float64), np.atleast_2d(np.asarray(errors, dtype=np.float64))
    logs = np.log(sizes / sizes.min())
    grid = np.geomspace(*EXPONENTS, _GRID)
    losses = np.stack([_best(np.full(len(rows), b), logs, rows)[2] for b in grid])
    at = losses.argmin(0)
    low, high = grid[np.maximum(at - 1, 0)], grid[np.minimum(at + 1, _GRID - 1)]
    b = _golden(low, high, logs, rows)
    a, c, _ = _best(b, logs, rows)
    flat = a <= 1e-9
    with np.errstate(over="ignore"):
        whole = a * sizes.min() ** b
    return Law(np.where(flat, np.nan, whole), np.where(flat, np.nan, b), np.where(flat, np.nan, c))


def _best(b: Floats, logs: Floats, rows: Floats) -> tuple[Floats, Floats, Floats]:
    """For given exponents (R,): slope on (n / n_min)^-b, floor and sum of squares, each (R,), slope and floor >= 0."""
    u = np.exp(-b[:, None] * logs[None])
    du, dy = u - u.mean(1, keepdims=True), rows - rows.mean(1, keepdims=True)
    a = (du * dy).sum(1) / (du * du).sum(1)
    c = rows.mean(1) - a * u.mean(1)
    through = (u * rows).sum(1) / (u * u).sum(1)
    a, c = np.where(c < 0, through, a), np.where(c < 0, 0.0, c)
    a, c = np.where(a < 0, 0.0, a), np.where(a < 0, rows.mean(1), c)
    return a, c, ((a[:, None] * u + c[:, None] - rows) ** 2).sum(1)


def _golden(low: Floats, high: Floats, logs: Floats, rows: Floats) -> Floats:
    share = (math.sqrt(5) - 1) / 2
    for _ in range(_REFINEMENTS):
        left, right = high - share * (high - low), low + share * (high - low)
        keep = _best(left, logs, rows)[2] <= _best(right, logs, rows)[2]
        low, high = np.where(keep, low, left), np.where(keep, right, high)
    return (low + high) / 2


def estimates(n: Any, cube: Floats) -> dict[str, Estimate]:
    """Exponent and floor of the mean curve, with intervals over trainings and images.

    Args:
        n: Numbers of training images, (P,).
        cube: Scores in [0, 1], (P, S, N).

    Returns:
        ``exponent`` and ``floor``; empty below ``POINTS`` sizes and where the error does not fall. Without interval where
        more than 2.5 % of the replicates do not fall.
    """
    sizes = np.asarray(n, dtype=np.float64)
    if len(np.unique(sizes)) < POINTS:
        return {"exponent": stats.EMPTY, "floor": stats.EMPTY}
    law = fit(sizes, 1 - cube.mean((1, 2)))
    again = fit(sizes, 1 - crossed.resampled_means(cube))
    count = cube.shape[2]
    return {"exponent": _told(law.b, again.b, count), "floor": _told(law.c, again.c, count)}


def _told(value: Floats, replicates: Floats, n: int) -> Estimate:
    if math.isnan(value[0]):
        return stats.EMPTY
    if n == 1 or np.isnan(replicates).mean() > _UNTOLD:
        return Estimate(float(value[0]), math.nan, math.nan, n)
    low, high = np.nanquantile(replicates, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
    return Estimate(float(value[0]), min(float(low), float(value[0])), max(float(high), float(value[0])), n)


def needed(n: Any, accuracy: Any, target: float) -> Floats:
    """Images at which accuracy first reaches the target, (R,), linear in log n between the sizes; never beyond them.

    Args:
        n: Increasing numbers of training images, (P,).
        accuracy: (R, P).
        target: Accuracy in (0, 1].

    Returns:
        The smallest size where it is reached there already, infinity where it is not reached at the largest size or before.
    """
    logs, rows = np.log(np.asarray(n, dtype=np.float64)), np.atleast_2d(np.asarray(accuracy, dtype=np.float64))
    reached = rows >= target
    first = reached.argmax(1)
    at, before = np.arange(len(rows)), np.maximum(first - 1, 0)
    rise = rows[at, first] - rows[at, before]
    share = np.where(rise > 0, (target - rows[at, before]) / np.where(rise > 0, rise, 1.0), 0.0)
    found = np.exp(logs[before] + share * (logs[first] - logs[before]))
    found = np.where(first == 0, float(np.asarray(n)[0]), found)
    return np.where(reached.any(1), found, np.inf)
