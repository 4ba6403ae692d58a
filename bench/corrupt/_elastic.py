"""Stretching of the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robench.corrupt.fixed import gaussian
from robench.corrupt.words import around_zero
from robench.ops.random import Draws
from robench.registry import facts


@facts(
    version=2, level="(strength, smoothness, shift of the corners) in shares of the side", harder="table", family="digital"
)
def elastic_transform(x: Tensor, level: tuple[float, float, float], *, draws: Draws) -> Tensor:
    """Images under a random affine map, then under a smooth random displacement of every pixel; (N, C, H, W).

    Bilinear twice, as published; mirrored at the border first about the edge pixels, then about the edges.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1; Simard et al., ICDAR 2003; ``make_cifar_c.py``.
    """
    strength, smoothness, shift = (part * x.shape[-1] for part in level)
    height, width = x.shape[-2:]
    turned = sampled(x, _affine(draws, (height, width), shift), aligned=True)
    if strength == 0:
        return turned.clamp_(0, 1)
    moved = gaussian(around_zero(draws, "displacement", (2, height, width)), smoothness, truncate=3.0, border="reflect")
    for axis, size in ((0, width), (1, height)):
        middles = (2 * torch.arange(size, dtype=torch.float64, device=x.device) + 1) / size - 1
        moved[:, axis].mul_(2 * strength / size).add_(middles[None, :] if axis == 0 else middles[:, None])
    return sampled(turned, moved, aligned=False).clamp_(0, 1)


def sampled(x: Tensor, places: Tensor, *, aligned: bool) -> Tensor:
    """x (N, C, H, W) at places (N, 2, H, W), bilinear; mirrored about edge pixels (``aligned``) or edges.

    Places are columns and rows, -1 and 1 being the middles of the first and last pixel (``aligned``) or their outer edges.
    """
    grid = places.permute(0, 2, 3, 1).float()
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=aligned)


def _affine(draws: Draws, size: tuple[int, int], shift: float) -> Tensor:
    """Where each pixel of the turned image comes from, float64 (N, 2, H, W) as for ``sampled`` with edge pixels aligned.

    Three points about the centre are moved by up to ``shift`` pixels; the map that moves them so is inverted.
    """
    height, width = size
    x, y, third = width // 2, height // 2, min(size) // 3
    old = torch.tensor([[x + third, y + third], [x + third, y - third], [x - third, y - third]], dtype=torch.float64)
    noise = around_zero(draws, "corners", (3, 2)).double().cpu()
    matrix, offset = affine(old + noise * shift, old)
    unit = 2 / torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=torch.float64)
    matrix, offset = matrix * unit[:, None], offset * unit - 1
    rows, cols = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    along = matrix[:, :, 0, None] * cols
    down = matrix[:, :, 1, None] * rows + offset[:, :, None]
    return (along[:, :, None] + down[..., None]).to(draws.ids.device)


def affine(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The affine maps that take three points (N, 3, 2) to three others (3, 2): matrices (N, 2, 2), offsets (N, 2)."""
    a, b = start[:, 1] - start[:, 0], start[:, 2] - start[:, 0]
    c, d = end[1] - end[0], end[2] - end[0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])[:, None]
    of_c, of_d = torch.stack([b[:, 1], -b[:, 0]], 1) / area, torch.stack([-a[:, 1], a[:, 0]], 1) / area
    matrix = c[None, :, None] * of_c[:, None] + d[None, :, None] * of_d[:, None]
    first = start[:, 0]
    return matrix, end[0] - (matrix[:, :, 0] * first[:, :1] + matrix[:, :, 1] * first[:, 1:])
