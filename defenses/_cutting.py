"""Augmentations that turn images or cut squares out of them."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.defenses._augmented import moved
from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, overlaps=("rotation",))
def rotation(
    x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, degrees: float = 15.0
) -> tuple[Tensor, Tensor]:
    """Each image turned about its centre by its own angle, bilinear, black outside; the labels as they are.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        num_classes: Not used.
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        degrees: Largest angle to either side.
    """
    turns = 2 * draws.uniform("rotation", (1,), step=step)[:, 0] - 1
    return moved(x, degrees * turns, torch.zeros(len(x), 2, device=x.device)), y


@facts(version=1)
def cutout(x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Each image with one black square about a point of its own, cut off at the borders; the labels as they are.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        num_classes: Not used.
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        size: Side of the square in pixels.

    Raises:
        ConfigError: The side is not positive.

    Source: DeVries & Taylor, 2017, section 3.2; 16 pixels: section 4.1 (CIFAR-10).
    """
    if size < 1:
        raise ConfigError(must("size of cutout", "at least 1 pixel", size, "e.g. cutout(size=8)"))
    height, width = x.shape[-2:]
    place = draws.uniform("cutout", (2,), step=step)
    centre = (place * torch.tensor([height, width], device=x.device)).long()
    return x.masked_fill(boxes(centre, (size, size), (height, width))[:, None], 0.0), y


def boxes(centre: Tensor, side: tuple[int | Tensor, int | Tensor], shape: tuple[int, int]) -> Tensor:
    """Which pixels lie in each image's box, bool (N, H, W).

    Args:
        centre: Row and column of each box's centre, int64 (N, 2).
        side: Height and width in pixels, one for all or int64 (N,) each.
        shape: Height and width of the images.
    """
    inside = []
    for axis in (0, 1):
        start = centre[:, axis] - torch.as_tensor(side[axis], device=centre.device) // 2
        pixel = torch.arange(shape[axis], device=centre.device)
        inside.append((pixel >= start[:, None]) & (pixel < (start + side[axis])[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
