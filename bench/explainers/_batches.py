"""Fixed batch widths, blurring and checks that explainers and their measures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, NoGradientError, must

_ELEMENTS = 2**18
_MOST_ROWS = 256


def batch_rows(x: Tensor) -> int:
    """How many images like x's one pass may hold, in [1, 256]; depends on the shape alone.

    Args:
        x: Images (N, C, H, W).
    """
    return max(1, min(_MOST_ROWS, _ELEMENTS // math.prod(x.shape[1:])))


def in_batches(f: Callable[[Tensor], Tensor], n: int, *, width: int) -> Tensor:
    """``f(rows)`` for all n rows in batches of exactly ``width``, the last padded with its final row.

    The padding keeps kernels the same however many images there are; an image's place in its batch may still move
    the last bits.

    Args:
        f: Takes int64 positions (width,) and returns (width, ...).
        n: Number of rows, at least 1.
    """
    parts = []
    for start in range(0, n, width):
        rows = torch.arange(start, start + width).clamp(max=n - 1)
        parts.append(f(rows)[: n - start])
    return torch.cat(parts)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), without a graph, in batches of fixed width."""
    with torch.no_grad():
        return in_batches(lambda rows: model(x[rows.to(x.device)]), len(x), width=batch_rows(x))


def blurred(x: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1] blurred until little detail is left, of the same shape.

    Gaussian of standard deviation 3 pixels at size 32 and proportional below, at most 10 pixels; edges are repeated.

    Source: Petsiuk et al., BMVC 2018 (RISE), section 4.2 (a blurred canvas for insertion).
    """
    sigma = min(3 * min(x.shape[-2:]) / 32, 10.0)
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    taps = (weights / weights.sum()).tolist()
    padded = nn.functional.pad(x, (radius,) * 4, mode="replicate")
    return _smoothed(_smoothed(padded, taps, 2), taps, 3)


def _smoothed(x: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    """Weighted sum of shifted copies along ``dim``; a convolution's last bits would depend on the number of images."""
    size = x.shape[dim] - len(taps) + 1
    total = torch.zeros_like(x.narrow(dim, 0, size))
    for shift, weight in enumerate(taps):
        total = total + x.narrow(dim, shift, size) * weight
    return total


def baseline_of(x: Tensor, kind: str) -> Tensor:
    """The image without evidence, shaped as x: ``black`` or ``blur``.

    Raises:
        ConfigError: Another kind.
    """
    if kind == "black":
        return torch.zeros_like(x)
    if kind == "blur":
        return blurred(x)
    raise ConfigError(must("baseline", "'black' or 'blur'", kind, "choose one of the two"))


def require_gradient(model: nn.Module, x: Tensor) -> None:
    """Check on the first image that the model's output depends differentiably on its input.

    Raises:
        NoGradientError: The input gets no gradient.
    """
    probe = x[:1].detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(probe)
        gradient = torch.autograd.grad(logits.sum(), probe, allow_unused=True)[0] if logits.requires_grad else None
    if gradient is None:
        raise NoGradientError(must("the input gradient", "a tensor", None, "use occlusion, which needs forward passes only"))


def at_least(what: str, value: int, least: int) -> None:
    """Check a whole number.

    Raises:
        ConfigError: The value is below ``least``.
    """
    if value < least:
        raise ConfigError(must(what, f"at least {least}", value, "raise it"))
