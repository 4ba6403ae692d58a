"""Mirrored and shifted images: the customary augmentation of small natural images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, flips=True)
def flip_crop(x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, pad: int = 4) -> tuple[Tensor, Tensor]:
    """Images mirrored left to right by a fair coin and cut at random from their zero-padded selves; labels as they were.

    Args:
        x: Images (N, C, H, W).
        y: Labels, returned unchanged.
        num_classes: Not used.
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        pad: Zeros at every side, in pixels; the shift is uniform in -pad..pad both ways.

    Source: Krizhevsky, 2012 (mirrored crops); He et al., CVPR 2016, section 4.2 (padding of 4 for CIFAR-10).
    """
    coin = draws.bits("flip_crop/flip", (1,), step=step)[:, 0] % 2 == 0
    corner = draws.integers("flip_crop/corner", (2,), 2 * pad + 1, step=step)
    return cut(torch.where(coin[:, None, None, None], x.flip(-1), x), corner, pad), y


@facts(version=1)
def crop(x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, pad: int = 4) -> tuple[Tensor, Tensor]:
    """Images cut at random from their zero-padded selves, never mirrored, so that digits and letters stay what they are.

    Arguments: as ``flip_crop``.
    """
    return cut(x, draws.integers("crop/corner", (2,), 2 * pad + 1, step=step), pad), y


def cut(x: Tensor, corner: Tensor, pad: int) -> Tensor:
    """Images (N, C, H, W) of the given size, cut from their zero-padded selves at a row and column each, int64 (N, 2)."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (pad, pad, pad, pad))
    rows = corner[:, :1] + torch.arange(height, device=x.device)
    cols = corner[:, 1:] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
