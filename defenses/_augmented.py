"""Training on rotated, shifted and noisy images; no flips, since they turn digits into other signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.ops.random import Draws
from robench.registry import facts


def moved(x: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Images rotated about their centre and shifted, bilinear, black outside; shape and range as ``x``.

    Args:
        x: Images (N, C, H, W).
        degrees: Angle of each image in degrees, (N,); positive turns counter-clockwise on the screen.
        shift: Shift of each image in pixels, (N, 2): to the right and down.
    """
    height, width = x.shape[-2:]
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    right, down = shift[:, 0] * (2 / width), shift[:, 1] * (2 / height)
    # grid_sample asks where each output pixel comes from: the inverse turn, after taking the shift back.
    # In its unit coordinates a turn of a non-square image needs the side ratio.
    ratio = height / width
    top = torch.stack([cos, -sin * ratio, -(cos * right - sin * ratio * down)], dim=1)
    bottom = torch.stack([sin / ratio, cos, -(sin / ratio * right + cos * down)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@facts(version=1)
def augmented(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    draws: Draws,
    step: int,
    rotation: float = 15.0,
    shift: float = 2.0,
    noise: float = 0.1,
) -> Tensor:
    """Mean cross-entropy of the batch after a random rotation, shift and Gaussian noise, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        rotation: Largest angle in degrees, to either side.
        shift: Largest shift in pixels, in each direction.
        noise: Largest standard deviation of the noise in units of [0, 1]; each image draws its own between 0 and this.
    """
    place = 2 * draws.uniform("augmented/place", (3,), step=step) - 1
    sigma = noise * draws.uniform("augmented/sigma", (1, 1, 1), step=step)
    grain = draws.normal("augmented/noise", tuple(x.shape[1:]), step=step)
    x = moved(x, rotation * place[:, 0], shift * place[:, 1:])
    return F.cross_entropy(model((x + sigma * grain).clamp(0, 1)), y)
