"""Edges and what lies how far from them, as OpenCV finds them, for batches: what ``spatter`` is made of."""

from __future__ import annotations

from functools import lru_cache

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
    across, down = _sobel(x.short())
    wide, tall = across.abs(), down.abs()
    size, flat, steep = wide + tall, wide.int() * _TAN, tall.int() << 15
    framed, (height, width) = functional.pad(size, (1, 1, 1, 1)), size.shape[-2:]
    near = {(r, c): framed[:, r + 1 : r + 1 + height, c + 1 : c + 1 + width] for r in (-1, 0, 1) for c in (-1, 0, 1)}
    falling, rising = torch.maximum(near[-1, -1], near[1, 1]), torch.maximum(near[-1, 1], near[1, -1])
    rival = _chosen((across ^ down) >> 15, rising, falling)
    upright = (wide.int() << 16).add_(flat).sub_(steep).bitwise_right_shift_(31).short()
    rival = _chosen(upright, torch.maximum(near[-1, 0], near[1, 0] - 1), rival)
    level = (steep - flat).bitwise_right_shift_(31).short()
    rival = _chosen(level, torch.maximum(near[0, -1], near[0, 1] - 1), rival)
    weak = size > rival.clamp_min_(low)
    return _connected(weak & (size > high), weak)


def _chosen(mask: Tensor, those: Tensor, others: Tensor) -> Tensor:
    """Whole numbers: ``those`` where the mask is -1, ``others`` where it is 0; many times as fast as ``torch.where``."""
    return (those ^ others).bitwise_and_(mask).bitwise_xor_(others)


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes across and down, whole numbers (N, H, W); edges repeated."""
    padded = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
    padded = torch.cat([padded[..., :1], padded, padded[..., -1:]], dim=2)
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:] - padded[:, :-2]
    return (
        across[:, :-2] + across[:, 2:] + 2 * across[:, 1:-1],
        down[:, :, :-2] + down[:, :, 2:] + 2 * down[:, :, 1:-1],
    )


def _connected(start: Tensor, allowed: Tensor) -> Tensor:
    """Pixels of ``allowed`` that ``start`` reaches by steps to any of eight neighbours.

    The rows lie one after the other, with a pixel between them that is not allowed, and so do the images.
    """
    count, height, width = start.shape
    allowed = functional.pad(allowed, (0, 1, 0, 1))
    line = width + 1
    reached, free = functional.pad(start, (0, 1, 0, 1)).flatten(), allowed.flatten()
    while True:
        wide = reached.clone()
        wide[1:] |= reached[:-1]
        wide[:-1] |= reached[1:]
        grown = wide.clone()
        grown[line:] |= wide[:-line]
        grown[:-line] |= wide[line:]
        grown &= free
        if torch.equal(grown, reached):
            return reached.reshape(count, height + 1, line)[:, :height, :width]
        reached = grown


def distance(edges: Tensor, *, most: int) -> Tensor:
    """Chamfer distance to the nearest edge, float32 (N, H, W), at most ``most``.

    The nearest edge of every row is the nearest one along it, since distances grow with the columns in between. Distances
    are compared by their ranks among all that there are.

    Source: Borgefors, CVGIP 1986, the 5 x 5 mask; ``cv2.distanceTransform(..., cv2.DIST_L2, 5)``.
    """
    height = edges.shape[1]
    along = _along(edges, most).flatten().int()
    lengths, ranks = (part.to(edges.device) for part in _lengths(most))
    found = torch.full(edges.shape, len(lengths) - 1, dtype=ranks.dtype, device=edges.device)
    for away in range(min(height, most)):
        nearer = ranks[away].index_select(0, along).reshape(edges.shape)
        for into, of in ((slice(away, None), slice(None, height - away)), (slice(None, height - away), slice(away, None))):
            torch.minimum(found[:, into], nearer[:, of], out=found[:, into])
    return lengths.index_select(0, found.flatten().int()).reshape(edges.shape)


def _along(edges: Tensor, most: int) -> Tensor:
    """Columns to the nearest edge of the same row, int16 (N, H, W), at most ``most``: by steps of 1, 2, 4, ... columns."""
    found = (~edges).transpose(1, 2).to(torch.int16, memory_format=torch.contiguous_format).mul_(most)
    step = 1
    while step < min(most, found.shape[1]):
        for into, of in ((slice(step, None), slice(None, -step)), (slice(None, -step), slice(step, None))):
            torch.minimum(found[:, into], found[:, of] + step, out=found[:, into])
        step *= 2
    return found.transpose(1, 2)


@lru_cache(maxsize=2)
def _lengths(most: int) -> tuple[Tensor, Tensor]:
    """All distances up to ``most``, float32 in order, and the ranks of those of rows and columns, int16 (most, most + 1)."""
    lengths, ranks = torch.stack([chamfer(away, most) for away in range(most)]).unique(return_inverse=True)
    return lengths, ranks.to(torch.int16)


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
    flat = x.flatten(1).int()
    total = flat.shape[1]
    places = flat.add_(torch.arange(len(x), device=x.device, dtype=torch.int32)[:, None] * levels).flatten()
    counts = torch.bincount(places, minlength=len(x) * levels).reshape(len(x), levels)
    first = (counts > 0).to(torch.int64).argmax(1, keepdim=True)
    lowest = counts.gather(1, first)
    scale = torch.tensor(255.0, device=x.device) / (total - lowest).float()
    table = ((counts.cumsum(1) - lowest).float() * scale).round().clamp(0, 255)
    table = torch.where(lowest == total, first.float(), table)
    return table.flatten().index_select(0, places).reshape(x.shape)
