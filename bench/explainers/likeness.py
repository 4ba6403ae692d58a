"""How alike two maps of one image are."""

from __future__ import annotations

import torch
from torch import Tensor

_SHARE = 0.1


def likeness(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rank correlation in [-1, 1], share of common top pixels in [0, 1], and whether a map is degenerate; each (N,).

    Equal maps have exactly 1 and 1. Of others, one that is constant or not finite explains nothing: it counts as 0 and 0.
    The top pixels are the tenth of highest value, rounded up; of equal values the first in reading order.

    Args:
        one: Maps (N, H, W).
        other: Maps of the same images (N, H, W).

    Source: Spearman, 1904 (ties share their mean rank); Ghorbani et al., AAAI 2019, section 2 (top-k intersection).
    """
    a, b = one.detach().double().flatten(1), other.detach().double().flatten(1)
    degenerate = _is_degenerate(a) | _is_degenerate(b)
    equal = (a == b).all(1)
    correlation = _correlation(_ranks(a), _ranks(b))
    common = _common(a, b)
    for found in (correlation, common):
        found[degenerate] = 0.0
        found[equal] = 1.0
    return correlation, common, degenerate


def _is_degenerate(maps: Tensor) -> Tensor:
    return ~maps.isfinite().all(1) | (maps.amax(1) == maps.amin(1))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 of every row's values, equal values sharing the mean of their ranks; float64 as shaped."""
    ordered = values.sort(dim=1).values
    first = torch.searchsorted(ordered, values.contiguous())
    last = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (first + last - 1).double() / 2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of rows; NaN where one is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()).clamp(-1.0, 1.0)


def _common(a: Tensor, b: Tensor) -> Tensor:
    count = -(-a.shape[1] // round(1 / _SHARE))
    first, second = _top(a, count), _top(b, count)
    return (first & second).double().sum(1) / count


def _top(maps: Tensor, count: int) -> Tensor:
    """Which values of every row are among its highest."""
    order = maps.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, order[:, :count], True)
