"""Edges and what lies how far from them, as OpenCV finds them, for batches: what ``spatter`` is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_TAN = 13573
"""tan(22.5 degrees) in units of 2^-15, as in OpenCV's ``canny.cpp``."""
_STEPS = (
    (0, 1, 1.0),
    (1, 0, 1.0),
    (1, 1, 1.4),
    (1, -1, 1.4),
    (1, 2, 2.1969),
    (2, 1, 2.1969),
    (1, -2, 2.1969),
    (2, -1, 2.1969),
)
"""(rows, columns, length) of half of the steps of the 5 x 5 chamfer metric (Borgefors 1986), as in ``distransform.cpp``."""


def shifted(x: Tensor, rows: int, cols: int, *, fill: float) -> Tensor:
    """x (N, H, W) moved so that out[i, j] = x[i + rows, j + cols]; ``fill`` where that lies outside."""
    reach = max(abs(rows), abs(cols))
    padded = functional.pad(x, (reach,) * 4, value=fill)
    height, width = x.shape[-2:]
    return padded[:, reach + rows : reach + rows + height, reach + cols : reach + cols + width]


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
    diagonal = torch.where((across ^ down) < 0, 1, 0).bool()
    near = {(r, c): shifted(size, r, c, fill=0) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    along = torch.where(diagonal, near[-1, 1], near[-1, -1]), torch.where(diagonal, near[1, -1], near[1, 1])
    peak = torch.where(
        level,
        (size > near[0, -1]) & (size >= near[0, 1]),
        torch.where(upright, (size > near[-1, 0]) & (size >= near[1, 0]), (size > along[0]) & (size > along[1])),
    )
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
        grown = (functional.max_pool2d(start[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0) & allowed
        if torch.equal(grown, start):
            return start
        start = grown


def distance(edges: Tensor, *, most: float) -> Tensor:
    """Chamfer distance to the nearest edge, float32 (N, H, W), at most ``most``.

    Source: Borgefors, CVGIP 1986, the 5 x 5 mask; ``cv2.distanceTransform(..., cv2.DIST_L2, 5)``.
    """
    found = torch.where(edges, 0.0, most).float()
    while True:
        nearer = found
        for rows, cols, length in _STEPS:
            for sign in (1, -1):
                nearer = torch.minimum(nearer, shifted(found, sign * rows, sign * cols, fill=most) + length)
        if torch.equal(nearer, found):
            return found
        found = nearer


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
