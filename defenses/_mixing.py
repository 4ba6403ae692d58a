"""Augmentations that mix two images of the batch and their labels."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from robench.defenses._cutting import boxes
from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1)
def mixup(x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each image and its one-hot label averaged with those of another image of the batch.

    The weight is drawn for every image, from Beta(alpha, alpha).

    Args:
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        num_classes: Number of classes K.
        draws: Randomness of the batch's images; partners come from the same batch.
        step: Step of the training; each has its own draws.
        alpha: Positive; 1 is uniform.

    Returns:
        Images (N, C, H, W) in [0, 1], and labels float32 (N, K) that sum to 1.

    Raises:
        ConfigError: ``alpha`` is not positive.

    Source: Zhang et al., ICLR 2018, section 2; alpha = 1 on CIFAR: section 3.2.
    """
    weight = _beta(draws, "mixup/weight", alpha, step)
    other = partners(draws, "mixup/partner", step)
    one_hot = F.one_hot(y, num_classes).to(x.dtype)
    share = weight[:, None, None, None]
    return share * x + (1 - share) * x[other], weight[:, None] * one_hot + (1 - weight[:, None]) * one_hot[other]


@facts(version=1)
def cutmix(
    x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, alpha: float = 1.0, p: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Each image with a box pasted in from another image of the batch; the label shares follow the pixels.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        num_classes: Number of classes K.
        draws: Randomness of the batch's images; partners come from the same batch.
        step: Step of the training; each has its own draws.
        alpha: Positive; the share that is kept is drawn from Beta(alpha, alpha).
        p: Probability in [0, 1] that an image gets a box at all.

    Returns:
        Images (N, C, H, W), and labels float32 (N, K): the shares of pixels that each image has in the end.

    Raises:
        ConfigError: ``alpha`` is not positive, or ``p`` no probability.

    Source: Yun et al., ICCV 2019, section 3.1 and algorithm 1; p = 0.5 on CIFAR: their code.
    """
    if not 0 <= p <= 1:
        raise ConfigError(must("p of cutmix", "in [0, 1]", p, "e.g. cutmix(p=0.5)"))
    height, width = x.shape[-2:]
    cut = (1 - _beta(draws, "cutmix/weight", alpha, step)).sqrt()
    cut = cut * (draws.uniform("cutmix/p", (1,), step=step)[:, 0] < p)
    size = torch.tensor([height, width], device=x.device)
    centre = (draws.uniform("cutmix/place", (2,), step=step) * size).long()
    box = boxes(centre, ((height * cut).long(), (width * cut).long()), (height, width))
    other = partners(draws, "cutmix/partner", step)
    kept = 1 - box.to(x.dtype).mean((1, 2))[:, None]
    one_hot = F.one_hot(y, num_classes).to(x.dtype)
    return torch.where(box[:, None], x[other], x), kept * one_hot + (1 - kept) * one_hot[other]


def partners(draws: Draws, stage: str, step: int) -> Tensor:
    """A permutation of the batch, int64 (N,): whom each image is mixed with, possibly itself."""
    return torch.argsort(draws.bits(stage, (1,), step=step)[:, 0], stable=True)


def _beta(draws: Draws, stage: str, alpha: float, step: int) -> Tensor:
    """Draws from Beta(alpha, alpha), float32 (N,), by the inverse distribution function."""
    if not alpha > 0:
        raise ConfigError(must("alpha", "positive", alpha, "e.g. 1.0, which is uniform, or 0.2"))
    uniform = draws.uniform(stage, (1,), step=step)[:, 0]
    if alpha == 1:
        return uniform
    values = stats.beta.ppf(uniform.double().cpu().numpy(), alpha, alpha)
    return torch.as_tensor(values, dtype=uniform.dtype, device=uniform.device)
