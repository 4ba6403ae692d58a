"""Weighted sums of an image's pixels, for corruptions whose every pixel is made of many.

They are looked up and added bag by bag (``embedding_bag``), each in the order of its taps, whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from robench.corrupt.fixed import Floats

PORTION = 2**21
"""Numbers that are prepared at a time: they are many beside an image's pixels."""
_LANES = 16
"""Planes are filled up to a multiple of so many: fewer may be added with another rounding (a single one is, by fbgemm)."""


def mixed(x: Tensor, portions: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Images of which every pixel is a weighted sum of pixels, the same for all images; float32 (N, C, H, W).

    Args:
        x: float32 (N, C, H, W).
        portions: For some pixels after others, row by row: places of the pixels to add, int32 (pixels, T), and their
            weights, float32 (pixels, T).
    """
    planes = x.flatten(0, 1).flatten(1)
    pixels = x.new_zeros(planes.shape[1], _LANES * math.ceil(len(planes) / _LANES))
    pixels[:, : len(planes)] = planes.T
    found = torch.empty_like(planes, memory_format=torch.contiguous_format)
    done = 0
    for places, parts in portions:
        weights = parts.to(x.device)
        some = functional.embedding_bag(places.to(x.device), pixels, mode="sum", per_sample_weights=weights)
        found[:, done : done + len(some)] = some[:, : len(planes)].T
        done += len(some)
    return found.reshape(x.shape)


def taps(matrix: sparse.csr_matrix) -> tuple[Tensor, Tensor]:
    """A matrix of weights (output from input pixels) as places and parts for ``mixed``; short rows end in zeros."""
    counts = np.diff(matrix.indptr)
    filled = np.arange(counts.max())[None, :] < counts[:, None]
    places, parts = np.zeros(filled.shape, np.int32), np.zeros(filled.shape, np.float32)
    places[filled], parts[filled] = matrix.indices, matrix.data
    return torch.from_numpy(places), torch.from_numpy(parts)


def trailed(x: Tensor, down: NDArray[np.int64], right: NDArray[np.int64], parts: Floats) -> Tensor:
    """Images plus shifted copies of themselves, each with steps of its own, edges repeated; float32 (N, C, H, W).

    Args:
        x: float32 (N, C, H, W).
        down: Rows to the pixel that each step adds, (N, S).
        right: Columns, (N, S).
        parts: Weights of the steps, (S,).
    """
    right = right.clip(-x.shape[-1], x.shape[-1])
    least, most = min(0, int(right.min(initial=0))), max(0, int(right.max(initial=0)))
    shifts = most - least + 1
    images = max(1, PORTION // (shifts * max(1, x[:1].numel())))
    weights = torch.from_numpy(parts.astype(np.float32)).to(x.device)
    portions = []
    for start in range(0, len(x), images):
        here = slice(start, start + images)
        rows = functional.pad(x[here], (-least, most, 0, 0), mode="replicate").unfold(-1, x.shape[-1], 1)
        places = _row_places(x[here].shape, down[here], right[here] - least, shifts).to(x.device)
        table, shares = rows.reshape(-1, x.shape[-1]), weights.expand(len(places), -1)
        found = functional.embedding_bag(places, table, mode="sum", per_sample_weights=shares)
        portions.append(found.reshape(x[here].shape))
    return torch.cat(portions) if portions else x


def _row_places(shape: torch.Size, down: NDArray[np.int64], shift: NDArray[np.int64], shifts: int) -> Tensor:
    """Which of the shifted rows of (N, C, H) each row adds, int32 (N * C * H, S), of ``shifts`` each."""
    count, channels, height, _ = shape
    rows = (np.arange(height)[:, None] + down[:, None]).clip(0, height - 1) * shifts + shift[:, None]
    planes = np.arange(count * channels).reshape(count, channels, 1, 1) * (height * shifts)
    return torch.from_numpy((planes + rows[:, None]).astype(np.int32).reshape(count * channels * height, -1))
