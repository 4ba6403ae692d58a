"""Rotations and translations: the worst of a grid, or of some random ones, per image.

No Lp distance measures these, so the functions stand beside the table of attacks: they look at images, whatever their
distance, and return which transformation was the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.errors import ConfigError, must, suggestion
from robench.inference import predict
from robench.ops.norms import per_sample
from robench.ops.random import Draws
from robench.task import CLASSIFICATION, Task

ANGLES = tuple(-30.0 + 2 * k for k in range(31))
"""Degrees of the paper's grid."""
SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""Parts of the image's side of the paper's grid, near its 3 of 28 and 3 of 32 pixels."""

PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class Worst:
    """Per image the transformation of the lowest margin among those that were looked at."""

    images: Tensor
    """(N, C, H, W), in [0, 1]."""
    margin: Tensor
    """(N,); at or below 0 the image is misclassified."""
    setting: Tensor
    """Degrees, and shifts down and right as parts of the side, float64 (N, 3)."""
    forwards: Tensor
    """Forward passes charged, int64 (N,)."""

    @property
    def broken(self) -> Tensor:
        """Whether each image is misclassified, bool (N,)."""
        return self.margin <= 0


def transformed(x: Tensor, setting: Tensor, *, padding: str = "zeros") -> Tensor:
    """Images (N, C, H, W) turned about their middle, then shifted, bilinearly.

    Args:
        x: In [0, 1].
        setting: Degrees anticlockwise, and shifts down and right as parts of the side, (N, 3). Images at (0, 0, 0)
            come back as they are.
        padding: What comes in from outside: ``zeros``, ``border`` (the outermost pixels) or ``reflection``.

    Raises:
        ConfigError: x is not (N, C, H, W) or setting not (N, 3), or unknown padding.
    """
    if padding not in PADDINGS:
        raise ConfigError(must("padding", "one of " + ", ".join(PADDINGS), padding, suggestion(padding, PADDINGS)))
    if x.dim() != 4 or setting.shape != (len(x), 3):
        got = (tuple(x.shape), tuple(setting.shape))
        raise ConfigError(must("images and settings", "(N, C, H, W) and (N, 3)", got, "give one row for each image"))
    height, width = x.shape[2:]
    angle, down, right = (column.double() for column in (setting[:, 0] * math.pi / 180, setting[:, 1], setting[:, 2]))
    cos, sin, ratio = angle.cos(), angle.sin(), height / width
    first = torch.stack([cos, -sin * ratio, -2 * (cos * right - sin * ratio * down)], 1)
    second = torch.stack([sin / ratio, cos, -2 * (sin / ratio * right + cos * down)], 1)
    grid = functional.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False).to(x.dtype)
    moved = functional.grid_sample(x, grid, padding_mode=padding, align_corners=False).clamp(0, 1)
    return torch.where(per_sample((setting == 0).all(1), x), x, moved)


def spatial_grid(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    angles: Sequence[float] = ANGLES,
    shifts: Sequence[float] = SHIFTS,
    task: Task = CLASSIFICATION,
    width: int = 64,
) -> Worst:
    """The worst of all rotations times shifts down times shifts right, per image; a broken one leaves.

    Args:
        model: In eval mode.
        x: Clean images (N, C, H, W), in [0, 1].
        y: Labels (N,).
        angles: Degrees.
        shifts: Parts of the side, for both directions.
        task: Margin.
        width: Padded batch width.

    Raises:
        ConfigError: No angle or no shift, or one that is not finite.

    Source: Engstrom et al., ICML 2019, section 3 (grid search).
    """
    require_grid(angles, shifts)
    settings = torch.tensor([(a, d, r) for a in angles for d in shifts for r in shifts], dtype=torch.float64)
    return _worst(model, x, y, settings=settings.to(x.device)[:, None].expand(-1, len(x), 3), task=task, width=width)


def spatial_random(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seeds: Draws,
    draws: int = 10,
    angle: float = 30.0,
    shift: float = 0.1,
    task: Task = CLASSIFICATION,
    width: int = 64,
) -> Worst:
    """The worst of ``draws`` random rotations and shifts, per image; a broken one leaves.

    Args:
        model: In eval mode.
        x: Clean images (N, C, H, W), in [0, 1].
        y: Labels (N,).
        seeds: Per-sample randomness.
        draws: Transformations looked at per image.
        angle: Largest rotation either way, in degrees.
        shift: Largest shift either way, as a part of the side.
        task: Margin.
        width: Padded batch width.

    Raises:
        ConfigError: Fewer than one draw, or a reach that is negative or not finite.

    Source: Engstrom et al., ICML 2019, section 3 (worst-of-k).
    """
    if draws < 1 or not 0 <= angle < math.inf or not 0 <= shift < math.inf:
        got = (draws, angle, shift)
        raise ConfigError(must("draws, angle and shift", "at least 1, 0 and 0", got, "e.g. 10, 30 and 0.1"))
    reach = torch.tensor([angle, shift, shift], dtype=torch.float64, device=x.device)
    drawn = torch.stack([seeds.uniform("spatial", (3,), step=k).double() for k in range(draws)])
    return _worst(model, x, y, settings=(drawn * 2 - 1) * reach, task=task, width=width)


def require_grid(angles: Sequence[float], shifts: Sequence[float], padding: str = "zeros") -> None:
    """Refuse a grid that looks at nothing, or an unknown padding.

    Raises:
        ConfigError: No angle or no shift, one that is not finite, or unknown padding.
    """
    if padding not in PADDINGS:
        raise ConfigError(must("padding", "one of " + ", ".join(PADDINGS), padding, suggestion(padding, PADDINGS)))
    if not len(angles) or not len(shifts) or not all(map(math.isfinite, [*angles, *shifts])):
        got = (tuple(angles), tuple(shifts))
        raise ConfigError(
            must("angles and shifts", "at least one finite number each", got, "leave them out for the paper's")
        )


def _worst(model: nn.Module, x: Tensor, y: Tensor, *, settings: Tensor, task: Task, width: int) -> Worst:
    """The lowest margin over settings (T, N, 3), in their order."""
    images, chosen = x.clone(), torch.zeros(len(x), 3, dtype=torch.float64, device=x.device)
    lowest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for setting in settings:
        rows = (~(lowest <= 0)).nonzero()[:, 0]
        if not len(rows):
            break
        points = transformed(x[rows], setting[rows])
        margin = task.margin(predict(model, points, width=width), y[rows])
        forwards[rows] += 1
        better = margin < lowest[rows]
        kept = rows[better]
        images[kept], chosen[kept], lowest[kept] = points[better], setting[kept], margin[better].to(x.dtype)
    return Worst(images, lowest, chosen, forwards)
