"""Explanation by covering parts of the image, computed by Captum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.explainers._batches import at_least, baseline_of, batch_rows, in_batches
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, randomness="none", gradient=False)
def occlusion(
    model: nn.Module, x: Tensor, target: Tensor, *,
    draws: Draws | None, window: int = 8, stride: int = 4, baseline: str = "blur",
) -> Tensor:  # fmt: skip
    """Drop of the target logit when a window is replaced by the baseline, averaged per pixel, float32 (N, H, W).

    Args:
        model: Takes x and returns logits (N, K); in eval mode. No gradient is needed.
        x: Images (N, C, H, W) in [0, 1].
        target: Class to explain, int64 (N,).
        draws: Not used.
        window: Side of the square in pixels; at most half the image is used.
        stride: Step between windows in pixels, at most ``window``; at most half the window used.
        baseline: ``blur`` or ``black``.

    Raises:
        ConfigError: window or stride below 1, stride above window, or an unknown baseline.

    Source: Zeiler & Fergus, ECCV 2014, section 4.2.
    """
    from captum.attr import Occlusion

    side, step = _sizes(x, window, stride)
    cover = baseline_of(x, baseline)
    method, at_once = Occlusion(model), batch_rows(x)
    width = max(1, min(16, at_once // 16))

    def maps(rows: Tensor) -> Tensor:
        rows = rows.to(x.device)
        evidence = method.attribute(
            x[rows].detach(), sliding_window_shapes=(x.shape[1], side, side), strides=(x.shape[1], step, step),
            baselines=cover[rows], target=target[rows], perturbations_per_eval=max(1, at_once // width),
        )  # fmt: skip
        return evidence.mean(1)  # one window covers all channels, so each of them carries the whole drop

    with torch.no_grad():
        return in_batches(maps, len(x), width=width).float()


def _sizes(x: Tensor, window: int, stride: int) -> tuple[int, int]:
    """Window and stride in pixels, shrunk for images smaller than two windows."""
    at_least("window", window, 1)
    at_least("stride", stride, 1)
    if stride > window:
        raise ConfigError(must("stride", f"at most window={window}", stride, "lower it, or pixels are left out"))
    side = min(window, max(1, min(x.shape[-2:]) // 2))
    return side, stride if side == window else min(stride, max(1, side // 2))
