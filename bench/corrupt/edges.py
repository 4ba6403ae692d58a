"""Edges and what lies how far from them, as OpenCV finds them, for batches: what ``spatter`` is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_TAN = 13573
"""tan(22.5 degrees) in units of 2^-15, as in OpenCV's ``canny.cpp``."""
_STRAIGHT, _DIAGONAL, _KNIGHT = 1.0, round(1.4 * 2**16) / 2**16, round(2.1969 * 2**16) / 2**16
"""Lengths of the steps of the 5 x 5 chamfer metric (Borgefors 1986), in OpenCV's 16 fractional bits."""


def canny(x: Tensor, low: int, high: int) -> Tensor:
    """Edges of 8-bit images, bool (N, H, W).

    Args:
        x: Whole numbers 0..255, int32 (N, H, W).
        low: Threshold of an edge's continuation, on the sum of the two absolute Sobel slopes.
        high: Threshold of its start.

    Source: Canny, PAMI 1986; the suppression's whole-number angles and ties are those of ``cv2.Canny``.
    """
    across, down = _sobel(x)
    size = across.abs() + down.abs()
    flat, steep = across.abs() * _TAN, down.abs() << 15
    level, upright = steep < flat, steep > flat + (across.abs() << 16)
    rising = (across ^ down) < 0
    framed, (height, width) = functional.pad(size, (1, 1, 1, 1)), size.shape[-2:]
    near = {(r, c): framed[:, r + 1 : r + 1 + height, c + 1 : c + 1 + width] for r in (-1, 0, 1) for c in (-1, 0, 1)}
    aslant = rising & (size > near[-1, 1]) & (size > near[1, -1]) | ~rising & (size > near[-1, -1]) & (size > near[1, 1])
    beside = (size > near[0, -1]) & (size >= near[0, 1])
    above = (size > near[-1, 0]) & (size >= near[1, 0])
    peak = level & beside | ~level & (upright & above | ~upright & aslant)
    weak = peak & (size > low)
    return _connected(weak & (size > high), weak)


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes across and down, whole numbers (N, H, W); edges repeated."""
    padded = functional.pad(x[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0].to(x.dtype)
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:] - padded[:, :-2]
    return (
        across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:],
        down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:],
    )


def _connected(start: Tensor, allowed: Tensor) -> Tensor:
    """Pixels of ``allowed`` that ``start`` reaches by steps to any of eight neighbours."""
    while True:
        wide = functional.pad(start, (1, 1, 1, 1))
        wide = wide[:, :, :-2] | wide[:, :, 1:-1] | wide[:, :, 2:]
        grown = (wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]) & allowed
        if torch.equal(grown, start):
            return start
        start = grown


def distance(edges: Tensor, *, most: int) -> Tensor:
    """Chamfer distance to the nearest edge, float32 (N, H, W), at most ``most``.

    The nearest edge of every row is the nearest one along it, since distances grow with the columns in between.

    Source: Borgefors, CVGIP 1986, the 5 x 5 mask; ``cv2.distanceTransform(..., cv2.DIST_L2, 5)``.
    """
    _, height, width = edges.shape
    cols = torch.arange(width, device=edges.device)
    left = cols - torch.where(edges, cols, -width - most).cummax(-1).values
    right = torch.where(edges, cols, 2 * width + most).flip(-1).cummin(-1).values.flip(-1) - cols
    along = torch.minimum(left, right).clamp_(max=most).int()
    found = torch.full(edges.shape, float(most), device=edges.device)
    for away in range(min(height, most)):
        nearer = chamfer(away, most).to(edges.device).index_select(0, along.flatten()).reshape(edges.shape)
        for into, of in ((slice(away, None), slice(None, height - away)), (slice(None, height - away), slice(away, None))):
            torch.minimum(found[:, into], nearer[:, of], out=found[:, into])
    return found


def chamfer(rows: int, most: int) -> Tensor:
    """Distances of 0..most columns and some rows, float32 (most + 1,), at most ``most``."""
    cols = torch.arange(most + 1)
    small, large = cols.clamp(max=rows), cols.clamp(min=rows)
    steep = (large - small) * _KNIGHT + (2 * small - large) * _DIAGONAL
    flat = small * _KNIGHT + (large - 2 * small) * _STRAIGHT
    return torch.where(large >= 2 * small, flat, steep).clamp(max=most).float()


def box(x: Tensor) -> Tensor:
    """Sum over 3 x 3 pixels, mirrored at the border; (N, H, W)."""
    padded = functional.pad(x[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]


def equalised(x: Tensor, *, levels: int) -> Tensor:
    """Whole numbers 0..levels-1 (float32, N, H, W) spread over 0..255 by their ranks, as ``cv2.equalizeHist`` does."""
    flat = x.flatten(1).long()
    counts = torch.zeros(len(x), levels, dtype=torch.int64, device=x.device).scatter_add_(1, flat, torch.ones_like(flat))
    total = flat.shape[1]
    first = (counts > 0).to(torch.int64).argmax(1, keepdim=True)
    lowest = counts.gather(1, first)
    scale = torch.tensor(255.0, device=x.device) / (total - lowest).float()
    table = ((counts.cumsum(1) - lowest).float() * scale).round().clamp(0, 255)
    table = torch.where(lowest == total, first.float(), table)
    return table.gather(1, flat).reshape(x.shape)
