"""Do labels and predictions speak of the same classes? A pure function of both, for clean images. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

LEVEL = 0.05
"""One-sided level at which accuracy must be above chance: that of the 95 % intervals shown beside it."""
REORDERED = 0.001
"""Level at which another order of classes is said to fit better: rarer, since an honest model must not be told so."""
_MOST = 4096
"""Classes at most for which an order is looked for: the table of all pairs then takes 128 MiB."""
_REASONS = "class order, labels counted from 1, mean and std, RGB or BGR, input range"
"""What public trouble reports name most often when a good model scores at chance."""


def label_warnings(labels: Sequence[int] | np.ndarray, predictions: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """What is wrong between labels and predictions on clean images, one line each, without ``"; "``; empty where nothing is.

    Three checks: accuracy is not above chance (one-sided binomial test against guessing among the classes that occur);
    one answer for all images; another order of the classes fits significantly better.

    Args:
        labels: Class index per image, (N,).
        predictions: Predicted index per image, (N,).
    """
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if not len(y):
        return ()
    order = _another_order(y, p)
    found = [line for line in (_at_chance(y, p, order), _one_answer(y, p)) if line]
    return tuple(found or ([order.text] if order else []))


@dataclass(frozen=True)
class _Order:
    """An order of the classes that fits better than the labels' own."""

    text: str
    expected: np.ndarray
    """The answer that it holds for right, per image, (N,)."""
    tested: np.ndarray
    """Images that had no part in its choice, bool (N,)."""


def chance(labels: np.ndarray) -> float:
    """Accuracy of guessing among the classes that occur; one class alone is held against a coin."""
    return 1 / max(2, len(np.unique(labels)))


def _at_chance(y: np.ndarray, p: np.ndarray, order: _Order | None) -> str:
    """Accuracy that guessing reaches too with a probability above ``LEVEL``.

    Where even a perfect model could not be told from guessing (few images), only accuracy at or below chance counts.
    """
    right, n, level = int((y == p).sum()), len(y), chance(y)
    by_chance = float(binom.sf(right - 1, n, level))
    small = level**n > LEVEL
    if (right > level * n) if small else (by_chance <= LEVEL):
        return ""
    reason = _explanation(y, p, order) or f"likely reasons: {_REASONS}"
    told = (
        f"{right} of {n} images right, not above chance ({level:.1%} by guessing among the {len(np.unique(y))} classes seen)"
    )
    return f"{told}: {reason}"


def _one_answer(y: np.ndarray, p: np.ndarray) -> str:
    """One class for all images, although enough images of other classes were shown that a model would know one of them."""
    others = int((y != p[0]).sum())
    if len(np.unique(p)) > 1 or (1 - chance(y)) ** others > LEVEL:
        return ""
    return (
        f"the model answers class {p[0]} for all {len(y)} images: likely reasons: mean and std, input range, wrong weights"
    )


def _explanation(y: np.ndarray, p: np.ndarray, order: _Order | None) -> str:
    """The explanation that makes most images right, a shift of the labels or another order; both where they are close.

    An order includes every shift and so is never behind it on the images that it was chosen by: the two are compared on
    the others, by a sign test where only one of them is right.
    """
    shift, shifted = _shifted(y, p)
    if not order or not shifted:
        return shifted or (order.text if order else "")
    ordered, moved = (order.expected == p)[order.tested], (y - shift == p)[order.tested]
    better, worse = int((ordered & ~moved).sum()), int((moved & ~ordered).sum())
    if better <= worse:
        return shifted
    if binom.sf(better - 1, better + worse, 0.5) <= REORDERED:
        return order.text
    return f"{shifted}, or {order.text}"


def _shifted(y: np.ndarray, p: np.ndarray) -> tuple[int, str]:
    """By how much labels are too high where that explains predictions, of 1 and -1 the better, and its text; else empty."""
    right, shift = max((int((y - shift == p).sum()), shift) for shift in (1, -1))
    if binom.sf(right - 1, len(y), chance(y)) > REORDERED:
        return 0, ""
    remedy = {
        1: "labels seem to count from 1",
        -1: "the model seems to count from 1, or to have a class 'background'",
    }[shift]
    return shift, f"{remedy}: {right} of {len(y)} would be right with labels shifted by {-shift}"


def _another_order(y: np.ndarray, p: np.ndarray) -> _Order | None:
    """An order of the classes that fits better: found on half of the images and tested on the other half.

    A model that is honestly bad mixes classes up, but does not answer most of one class by another one-to-one; so the test
    on images that had no part in the choice is passed by mislabelled classes only (sign test where the two orders differ).
    """
    names, index = np.unique(np.concatenate([y, p]), return_inverse=True)
    own, told = index[: len(y)], index[len(y) :]
    first = _halves(own)
    if not 2 <= len(names) <= _MOST or first.all():
        return None
    order = _best_order(own[first], told[first], len(names))
    rest_own, rest_told = own[~first], told[~first]
    better = int(((order[rest_own] == rest_told) & (rest_own != rest_told)).sum())
    worse = int(((order[rest_own] != rest_told) & (rest_own == rest_told)).sum())
    if better <= worse or binom.sf(better - 1, better + worse, 0.5) > REORDERED:
        return None
    moved = [i for i in np.unique(own) if order[i] != i]
    example = ", ".join(f"label {names[i]} is answered by {names[order[i]]}" for i in moved[:3])
    right = int((order[own] == told).sum())
    told_right = f"{right} instead of {int((own == told).sum())} of {len(y)} right"
    text = f"another order of the classes fits better ({told_right}: {example})"
    return _Order(text, names[order[own]], ~first)


def _halves(labels: np.ndarray) -> np.ndarray:
    """Every second image of each class, as a mask (N,)."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[::2]] = True
    return mask


def _best_order(y: np.ndarray, p: np.ndarray, count: int) -> np.ndarray:
    """Per class the answer that stands for it when as many images as possible are right, each answer once; ties keep it."""
    table = np.zeros((count, count))
    np.add.at(table, (y, p), 1.0)
    rows, columns = linear_sum_assignment(table + 1e-6 * np.eye(count), maximize=True)
    order = np.arange(count)
    order[rows] = columns
    return order
