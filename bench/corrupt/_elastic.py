"""Stretching of the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robench.corrupt.fixed import gaussian
from robench.ops.random import Draws
from robench.registry import facts


@facts(
    version=1, level="(strength, smoothness, shift of the corners) in shares of the side", harder="table", family="digital"
)
def elastic_transform(x: Tensor, level: tuple[float, float, float], *, draws: Draws) -> Tensor:
    """Images under a random affine map, then under a smooth random displacement of every pixel; (N, C, H, W).

    Bilinear twice, as published; mirrored at the border first about the edge pixels, then about the edges.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1; Simard et al., ICDAR 2003; ``make_cifar_c.py``.
    """
    strength, smoothness, shift = (part * x.shape[-1] for part in level)
    height, width = x.shape[-2:]
    turned = sampled(x, *_affine(draws, (height, width), shift), aligned=True)
    if strength == 0:
        return turned.clamp_(0, 1)
    noise = draws.shorts("displacement", (2, height, width)).double().add_(0.5).mul_(2.0**-15).sub_(1.0)
    moved = gaussian(noise, smoothness, truncate=3.0, border="reflect") * strength
    rows = torch.arange(height, device=x.device)[:, None] + moved[:, 1]
    cols = torch.arange(width, device=x.device)[None, :] + moved[:, 0]
    return sampled(turned, rows, cols, aligned=False).clamp_(0, 1)


def sampled(x: Tensor, rows: Tensor, cols: Tensor, *, aligned: bool) -> Tensor:
    """x (N, C, H, W) at positions (N, H, W) in pixels, bilinear; mirrored about edge pixels (``aligned``) or edges."""
    height, width = x.shape[-2:]
    if aligned:
        grid = [2 * cols / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1]
    else:
        grid = [(2 * cols + 1) / width - 1, (2 * rows + 1) / height - 1]
    places = torch.stack(grid, dim=-1).float()
    return functional.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=aligned)


def _affine(draws: Draws, size: tuple[int, int], shift: float) -> tuple[Tensor, Tensor]:
    """Where each pixel of the turned image comes from, rows and columns, float64 (N, H, W) each.

    Three points about the centre are moved by up to ``shift`` pixels; the map that moves them so is inverted.
    """
    height, width = size
    x, y, third = width // 2, height // 2, min(size) // 3
    old = torch.tensor([[x + third, y + third], [x + third, y - third], [x - third, y - third]], dtype=torch.float64)
    noise = draws.shorts("corners", (3, 2)).double().cpu().add_(0.5).mul_(2.0**-15).sub_(1.0)
    matrix, offset = affine(old + noise * shift, old)
    rows, cols = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    across, down = (
        matrix[:, i, 0, None, None] * cols + matrix[:, i, 1, None, None] * rows + offset[:, i, None, None] for i in (0, 1)
    )
    return down.to(draws.ids.device), across.to(draws.ids.device)


def affine(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The affine maps that take three points (N, 3, 2) to three others (3, 2): matrices (N, 2, 2), offsets (N, 2)."""
    a, b = start[:, 1] - start[:, 0], start[:, 2] - start[:, 0]
    c, d = end[1] - end[0], end[2] - end[0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])[:, None]
    of_c, of_d = torch.stack([b[:, 1], -b[:, 0]], 1) / area, torch.stack([-a[:, 1], a[:, 0]], 1) / area
    matrix = c[None, :, None] * of_c[:, None] + d[None, :, None] * of_d[:, None]
    first = start[:, 0]
    return matrix, end[0] - (matrix[:, :, 0] * first[:, :1] + matrix[:, :, 1] * first[:, 1:])
