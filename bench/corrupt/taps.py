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

PORTION = 2**19
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
    padded = functional.pad(x, (-least, most, 0, 0), mode="replicate") if len(x) else x
    shifted = x.new_empty(min(images, len(x)), *x.shape[1:3], shifts, x.shape[3])
    places = _row_places(down, right - least, (images, *shifted.shape[1:4])).to(x.device)
    found = torch.empty_like(x, memory_format=torch.contiguous_format)
    for some, view, out in zip(places.split(images), padded.split(images), found.split(images), strict=True):
        rows = shifted[: len(view)].copy_(view.unfold(-1, x.shape[3], 1)).flatten(0, 3)
        some = some.flatten(0, 2)
        shares = weights.expand(len(some), -1)
        out.copy_(functional.embedding_bag(some, rows, mode="sum", per_sample_weights=shares).reshape(out.shape))
    return found


def _row_places(down: NDArray[np.int64], shift: NDArray[np.int64], size: tuple[int, ...]) -> Tensor:
    """Which shifted rows each row of some images adds, int32 (N, C, H, S).

    Args:
        down: Rows from it, (N, S).
        shift: Which of their shifts, (N, S).
        size: Images at a time, channels, height and shifts: rows are counted anew after so many images.
    """
    images, channels, height, shifts = size
    planes = (np.arange(len(down))[:, None] % images * channels + np.arange(channels)) * (height * shifts)
    rows = (np.arange(height, dtype=np.int32)[:, None] + down.astype(np.int32)[:, None]).clip(0, height - 1)
    rows = rows * np.int32(shifts) + shift.astype(np.int32)[:, None]
    return torch.from_numpy(rows[:, None] + planes.astype(np.int32)[..., None, None])
