"""Poisson counts from one uniform each, so that shot noise is counter-based like every other draw."""

from __future__ import annotations

import torch
from torch import Tensor


def poisson_inverse(rate: Tensor, u: Tensor) -> Tensor:
    """Poisson counts by the inverse distribution function: the smallest k with P(X <= k) >= u.

    A Cornish-Fisher guess is walked to the exact answer, so the guess costs time, never correctness.

    Args:
        rate: Expected counts, at least 0, any shape.
        u: Uniforms in (0, 1), same shape.

    Returns:
        Counts as float64, same shape; 0 where the rate is 0.

    Source: Devroye, Non-Uniform Random Variate Generation (1986), section III.2; P(X <= k) = Q(k + 1, rate).
    """
    shape, rate, u = rate.shape, rate.double().flatten(), u.double().flatten()
    z = torch.special.ndtri(u)
    k = (rate + rate.sqrt() * z + (z * z - 1) / 6).ceil().clamp(min=0)
    k[rate == 0] = 0
    k = _walk(k, rate, u, up=True)
    return _walk(k, rate, u, up=False).reshape(shape)


def _walk(k: Tensor, rate: Tensor, u: Tensor, *, up: bool) -> Tensor:
    """Step the counts whose distribution function is still below u (up), or not yet below it one lower (down)."""
    rows = torch.arange(len(k), device=k.device)
    while len(rows):
        rows = rows[_below(k[rows], rate[rows], u[rows]) if up else _lower_does(k[rows], rate[rows], u[rows])]
        k[rows] += 1 if up else -1
    return k


def _below(k: Tensor, rate: Tensor, u: Tensor) -> Tensor:
    return torch.special.gammaincc(k + 1, rate) < u


def _lower_does(k: Tensor, rate: Tensor, u: Tensor) -> Tensor:
    return (k > 0) & (torch.special.gammaincc(k.clamp(min=1), rate) >= u)
