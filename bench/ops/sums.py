"""Sums whose order of adding no batch size changes."""

from __future__ import annotations

import torch
from torch import Tensor


def row_sums(values: Tensor) -> Tensor:
    """Sums (N,) of the rows of (N, ...), float64, by halving: a library's order of adding may depend on N.

    Args:
        values: Any shape with N rows, at least one value in each.
    """
    flat = values.double().flatten(1)
    while flat.shape[1] > 1:
        half, odd = divmod(flat.shape[1], 2)
        added = flat[:, :half] + flat[:, half : 2 * half]
        flat = torch.cat([added, flat[:, 2 * half :]], 1) if odd else added
    return flat[:, 0]
