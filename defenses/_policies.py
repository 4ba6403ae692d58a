"""RandAugment and TrivialAugment of the library kornia, seeded; both need ``pip install 'robench[augment]'``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robench.errors import ConfigError, must
from robench.ops.chance import seeded
from robench.ops.random import Draws
from robench.registry import facts

_GROUPS = 8
"""Parts of a batch that draw their operations apart: kornia draws them for a whole batch, the papers for each image."""


@facts(
    version=1,
    needs="kornia",
    overlaps=(
        "rotation",
        "brightness",
        "contrast",
        "saturate",
        "defocus_blur",
        "gaussian_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
    ),
)
def randaugment(
    x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, n: int = 2, m: int = 9
) -> tuple[Tensor, Tensor]:
    """Images after ``n`` operations of strength ``m`` out of kornia's fifteen; the labels as they are.

    The batch is cut into eight groups that draw their operations apart (kornia: one choice for a whole batch).

    Args:
        x: Images (N, C, H, W) in [0, 1], with one or three channels.
        y: Labels, int64 (N,).
        num_classes: Not used.
        draws: Its seed is used; kornia draws from the global generators, which are seeded by (seed, step, group).
        step: Step of the training; each has its own draws.
        n: Operations for each image, 1 to 15.
        m: Strength, 1 to 29.

    Raises:
        ConfigError: kornia is not installed, ``n`` or ``m`` is out of range, or the images have two channels or more than 3.

    Source: Cubuk et al., NeurIPS 2020, section 3; as implemented by kornia.
    """
    if n not in range(1, 16) or m not in range(1, 30):
        raise ConfigError(must("n and m of randaugment", "in 1..15 and 1..29", (n, m), "e.g. randaugment(n=2, m=9)"))
    return _by_groups(_auto().RandAugment(n=n, m=m), x, draws.seed, f"randaugment/{step}"), y


@facts(
    version=1,
    needs="kornia",
    overlaps=(
        "rotation",
        "brightness",
        "contrast",
        "saturate",
        "defocus_blur",
        "gaussian_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
    ),
)
def trivialaugment(x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
    """Images after one operation of random strength out of kornia's list; the labels as they are.

    Groups, arguments, errors: as ``randaugment``.

    Source: Müller & Hutter, ICCV 2021, section 3; as implemented by kornia.
    """
    return _by_groups(_auto().TrivialAugment(), x, draws.seed, f"trivialaugment/{step}"), y


def _auto() -> Any:
    try:
        from kornia.augmentation import auto
    except ImportError as error:
        remedy = "pip install 'robench[augment]', or choose another augmentation"
        raise ConfigError(must("kornia", "installed for this augmentation", str(error), remedy)) from error
    return auto


def _by_groups(policy: Any, x: Tensor, seed: int, stage: str) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise ConfigError(must("the images of this augmentation", "of 1 or 3 channels", x.shape[1], "choose another"))
    colour = x.expand(-1, 3, -1, -1)
    parts = []
    for group, part in enumerate(colour.tensor_split(min(_GROUPS, len(x)))):
        with seeded(seed, stage, draw=group, device=x.device), torch.no_grad():
            parts.append(policy(part.contiguous()))
    changed = torch.cat(parts).clamp(0, 1).to(x.dtype)
    return changed.mean(1, keepdim=True) if x.shape[1] == 1 else changed
