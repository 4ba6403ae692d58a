"""AugMix: a mixture of chains of simple operations, none of which is a corruption that robench tests with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] and strengths (N,) in [-1, 1] → images of the same shape and range."""


def _grid(x: Tensor, rows: Tensor) -> Tensor:
    """Images read at an affine map of their unit coordinates, (N, 2, 3); bilinear, black outside."""
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _affine(x: Tensor, row: int, column: int, amount: Tensor) -> Tensor:
    """Unit map with ``amount`` (N,) added at one place of its 2 x 3 matrix."""
    rows = torch.eye(2, 3, dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
    rows[:, row, column] += amount
    return _grid(x, rows)


def shear_x(x: Tensor, strength: Tensor) -> Tensor:
    """Rows shifted in proportion to their height, at full strength by 0.3 of it."""
    return _affine(x, 0, 1, 0.3 * strength)


def shear_y(x: Tensor, strength: Tensor) -> Tensor:
    """Columns likewise."""
    return _affine(x, 1, 0, 0.3 * strength)


def translate_x(x: Tensor, strength: Tensor) -> Tensor:
    """A shift to the side, at full strength by a third of the width."""
    return _affine(x, 0, 2, 2 / 3 * strength)


def translate_y(x: Tensor, strength: Tensor) -> Tensor:
    """A shift up or down, at full strength by a third of the height."""
    return _affine(x, 1, 2, 2 / 3 * strength)


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Fewer bits per pixel: 8 at strength 0, 4 at full strength."""
    bits = (8 - 4 * strength.abs()).round()[:, None, None, None]
    step = 2.0 ** (8 - bits)
    return ((x * 255).round() / step).floor() * step / 255


def solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Pixels at or above a threshold inverted; the threshold falls from 1 to 0 with the strength."""
    threshold = (1 - strength.abs())[:, None, None, None]
    return torch.where((x >= threshold) & (threshold < 1), 1 - x, x)


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; a constant one stays as it is."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-12), x)


def equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Each channel's 8-bit histogram made even (as Pillow does); a constant one stays as it is."""
    levels = (x * 255).round().long().flatten(2).flatten(0, 1)
    counts = torch.zeros(len(levels), 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    top = levels.amax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, top)) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp_min(1)).clamp(0, 255)
    even = torch.where(step > 0, table.gather(1, levels), levels)
    return (even.to(x.dtype) / 255).reshape(x.shape)


OPERATIONS: dict[str, Operation] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "posterize": posterize,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "solarize": solarize,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
"""The published list without ``rotate``, because robench tests with rotation too. Source: AugMix, section 3 (its list
leaves out contrast, color, brightness, sharpness and Cutout)."""


@facts(version=1)
def augmix(
    x: Tensor, y: Tensor, *, num_classes: int, draws: Draws, step: int, severity: int = 3, width: int = 3, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Each image mixed with ``width`` chains of one to three operations; the labels as they are.

    Without the paper's consistency loss, which is the recipe ``augmix_jsd``.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        num_classes: Not used.
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        severity: Strength of the operations, 1 to 10.
        width: Number of chains, at least 1.
        alpha: Parameter of the Dirichlet weights of the chains and of the Beta weight of the original; only 1 is built in.

    Raises:
        ConfigError: A value out of range.

    Source: Hendrycks et al., ICLR 2020, section 3 and algorithm 1.
    """
    if severity not in range(1, 11) or width < 1 or alpha != 1:
        got = (severity, width, alpha)
        raise ConfigError(must("severity, width and alpha of augmix", "1..10, 1.. and 1", got, "e.g. augmix(severity=3)"))
    return mixed(x, draws, step=step, severity=severity, width=width), y


def mixed(x: Tensor, draws: Draws, *, step: int, severity: int = 3, width: int = 3, view: str = "") -> Tensor:
    """One AugMix view of each image, (N, C, H, W) in [0, 1]; another ``view`` draws anew."""
    # Dirichlet(1, ..., 1) is exponential draws over their sum; Beta(1, 1) is uniform.
    waits = -torch.log1p(-draws.uniform(f"augmix/weights{view}", (width,), step=step))
    weights = waits / waits.sum(1, keepdim=True).clamp_min(1e-12)
    mixture = torch.zeros_like(x)
    for chain in range(width):
        mixture += weights[:, chain, None, None, None] * _chain(x, draws, step, severity, f"{view}/{chain}")
    share = draws.uniform(f"augmix/share{view}", (1, 1, 1), step=step)
    return ((1 - share) * x + share * mixture).clamp(0, 1)


def _chain(x: Tensor, draws: Draws, step: int, severity: int, name: str) -> Tensor:
    """One to three operations, each drawn for each image."""
    depth = 1 + draws.integers(f"augmix/depth{name}", (1,), 3, step=step)[:, 0]
    which = draws.integers(f"augmix/operation{name}", (3,), len(OPERATIONS), step=step)
    amount = draws.uniform(f"augmix/strength{name}", (3, 2), step=step)
    for link in range(3):
        # The paper draws a level between 0.1 and the severity, out of ten, and a sign.
        level = (0.1 + (severity - 0.1) * amount[:, link, 0]) / 10
        strength = torch.where(amount[:, link, 1] < 0.5, -level, level)
        for index, operation in enumerate(OPERATIONS.values()):
            rows = ((which[:, link] == index) & (depth > link)).nonzero().flatten()
            if len(rows):
                x = x.index_copy(0, rows, operation(x[rows], strength[rows]))
    return x


@facts(version=1)
def augmix_jsd(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, step: int, severity: int = 3, weight: float = 12.0
) -> Tensor:
    """Mean cross-entropy on the images plus the Jensen-Shannon divergence of them and two AugMix views, a scalar.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,).
        draws: Randomness of the batch's images.
        step: Step of the training; each has its own draws.
        severity: Strength of the operations, 1 to 10.
        weight: Factor of the divergence.

    Source: Hendrycks et al., ICLR 2020, section 3 (equation 2); weight 12: their section 4.1.
    """
    views = [x, *(mixed(x, draws, step=step, severity=severity, view=v) for v in ("a", "b"))]
    logits = model(torch.cat(views)).chunk(3)
    return F.cross_entropy(logits[0], y) + weight * jensen_shannon(logits)


def jensen_shannon(logits: tuple[Tensor, ...]) -> Tensor:
    """Mean over the batch of the divergence of the softmaxes of several logits (N, K) from their mean, in nats."""
    logs = [one.log_softmax(1) for one in logits]
    centre = torch.logsumexp(torch.stack(logs), 0) - torch.log(torch.tensor(float(len(logs))))
    return torch.stack([F.kl_div(centre, log, reduction="batchmean", log_target=True) for log in logs]).mean()
