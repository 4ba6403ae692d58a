"""Adversarial patches: a square of free pixels, one for each image or one for all.

No Lp distance measures these, so the functions stand beside the table of attacks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim


def pasted(x: Tensor, patch: Tensor, corner: Tensor) -> Tensor:
    """Images (N, C, H, W) with patches (N, C, s, s) over them; ``corner`` is the top left, int64 (N, 2)."""
    out, size = x.clone(), patch.shape[-1]
    rows, across = _places(corner, size)
    out[torch.arange(len(x), device=x.device)[:, None, None], :, rows, across] = patch.permute(0, 2, 3, 1)
    return out


def patch_images(
    model: nn.Module, x: Tensor, y: Tensor, *, seeds: Draws, size: int, steps: int = 100, rate: float = 0.05
) -> Tensor:
    """Images (N, C, H, W) in [0, 1], each with a patch of its own at a random place, the worst of all steps.

    Sign steps on the margin from a random patch; an image leaves when it is misclassified.

    Args:
        model: In eval mode.
        x: Clean images (N, C, H, W), in [0, 1].
        y: Labels (N,).
        seeds: Per-sample randomness of places and starts.
        size: Side of the patch, in pixels.
        steps: Gradient steps.
        rate: Step of every pixel, in pixel units.

    Raises:
        ConfigError: A patch that does not fit, or no step.

    Source: Brown et al., 2017, with one image instead of a distribution.
    """
    _require(x, size, steps, rate)
    corner = _corners(x, seeds, size, step=0)
    patch = seeds.uniform("patch.start", (x.shape[1], size, size)).to(x.dtype)
    victim = Victim(model, x, y, threat=ThreatModel.parse("linf(inf)"))
    for _ in range(steps):
        rows = victim.alive()
        if not len(rows):
            break
        found = victim.gradient(pasted(x[rows], patch[rows], corner[rows]), rows, "margin")
        patch[rows] = (patch[rows] + rate * _cut(found.gradient, corner[rows], size).sign()).clamp(0, 1)
    rows = victim.alive()
    if len(rows):
        victim.margins(pasted(x[rows], patch[rows], corner[rows]), rows)
    return victim.result()


def patch_universal(
    model: nn.Module, x: Tensor, y: Tensor, *, seeds: Draws, size: int, steps: int = 100, rate: float = 0.05
) -> Tensor:
    """One patch (C, s, s) in [0, 1], made on these images at places drawn anew in every step.

    Sign steps on the mean cross-entropy from grey. By its nature it depends on all images together: judge it on others,
    with ``pasted``.

    Raises:
        ConfigError: A patch that does not fit, or no step.

    Source: Brown et al., 2017, section 2 (expectation over images and places).
    """
    _require(x, size, steps, rate)
    patch = torch.full((x.shape[1], size, size), 0.5, dtype=x.dtype, device=x.device)
    victim, rows = Victim(model, x, y, threat=ThreatModel.parse("linf(inf)")), torch.arange(len(x), device=x.device)
    for step in range(steps):
        corner = _corners(x, seeds, size, step=step)
        found = victim.gradient(pasted(x, patch.expand(len(x), -1, -1, -1), corner), rows, "ce")
        patch = (patch + rate * _cut(found.gradient, corner, size).mean(0).sign()).clamp(0, 1)
    return patch


def _require(x: Tensor, size: int, steps: int, rate: float) -> None:
    if x.dim() != 4 or not 1 <= size <= min(x.shape[2:]):
        raise ConfigError(must("a patch's side", "within the image (N, C, H, W)", (size, tuple(x.shape)), "make it smaller"))
    if steps < 1 or not rate > 0:
        raise ConfigError(must("steps and rate", "at least 1 and above 0", (steps, rate), "defaults are 100 and 0.05"))


def _corners(x: Tensor, seeds: Draws, size: int, *, step: int) -> Tensor:
    return torch.cat([seeds.integers(f"patch.{k}", (1,), x.shape[k] - size + 1, step=step) for k in (2, 3)], 1)


def _places(corner: Tensor, size: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(size, device=corner.device)
    return corner[:, :1, None] + line[:, None], corner[:, 1:, None] + line


def _cut(images: Tensor, corner: Tensor, size: int) -> Tensor:
    """What of the images (N, C, H, W) lies under the patches, (N, C, s, s)."""
    rows, across = _places(corner, size)
    at = torch.arange(len(images), device=images.device)[:, None, None]
    return images[at, :, rows, across].permute(0, 3, 1, 2)
