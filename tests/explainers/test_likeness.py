"""Rank correlation and common pixels of maps, against scipy and a loop."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from robench.explainers.likeness import likeness

G = torch.Generator().manual_seed(0)


def test_rank_correlation_is_scipys_with_and_without_ties():
    for decimals in (8, 1, 0):
        a, b = torch.randn(2, 12, 7, 6, generator=G).round(decimals=decimals)
        b = a + b
        found, _, degenerate = likeness(a, b)
        for mine, one, other in zip(found.tolist(), a, b, strict=True):
            assert mine == pytest.approx(spearmanr(one.flatten(), other.flatten()).statistic, abs=1e-12)
        assert not degenerate.any()


def test_common_top_pixels_are_those_of_a_loop():
    a, b = torch.randn(2, 9, 5, 9, generator=G).round(decimals=1)
    _, found, _ = likeness(a, b)
    for mine, one, other in zip(found.tolist(), a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True):
        best = [set(sorted(range(45), key=lambda i, v=v: (-v[i], i))[:5]) for v in (one, other)]
        assert mine == len(best[0] & best[1]) / 5


def test_equal_maps_are_exactly_alike_and_degenerate_ones_count_as_nothing():
    a = torch.randn(4, 3, 3, generator=G)
    assert [v.tolist() for v in likeness(a, a.clone())] == [[1.0] * 4, [1.0] * 4, [False] * 4]
    flat, broken = torch.zeros(4, 3, 3), torch.full((4, 3, 3), math.nan)
    for bad in (flat, broken):
        correlation, common, degenerate = likeness(a, bad)
        assert correlation.tolist() == common.tolist() == [0.0] * 4 and degenerate.all()
    correlation, common, degenerate = likeness(flat, flat)
    assert correlation.tolist() == common.tolist() == [1.0] * 4 and degenerate.all()
    assert not likeness(broken, broken)[0].any()
    assert likeness(a, -a)[0].tolist() == pytest.approx([-1.0] * 4)
    one = torch.ones(1, 1, 1)
    assert [v.tolist() for v in likeness(one, 2 * one)] == [[0.0], [0.0], [True]]


def test_numbers_do_not_depend_on_company():
    a, b = torch.randn(2, 6, 8, 8, generator=G)
    whole = likeness(a, b)
    parts = [likeness(a[i : i + 1], b[i : i + 1]) for i in range(6)]
    assert all(torch.equal(w, torch.cat([p[k] for p in parts])) for k, w in enumerate(whole))
