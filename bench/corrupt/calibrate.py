"""How the levels of a severity table are found: by what they cost one reference model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from robench.corrupt.apply import corrupt_at
from robench.errors import ConfigError, must, suggestion
from robench.inference import predict, untouched

TARGETS = (1.5, 8.0, 17.0, 29.0, 42.0)
"""Points of accuracy that severities 1 to 5 shall cost the reference model."""


def _steps(mild: float, hard: float, count: int = 400) -> tuple[float, ...]:
    """Levels from mild to hard in equal ratios, three significant digits each."""
    return tuple(dict.fromkeys(float(f"{mild * (hard / mild) ** (i / (count - 1)):.3g}") for i in range(count)))


LADDERS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian_noise": _steps(0.02, 3.0),
        "shot_noise": _steps(500.0, 0.05),
        "gaussian_blur": _steps(0.5, 16.0),
        "contrast": _steps(0.95, 0.004),
        "brightness": _steps(0.02, 0.996),
        "pixelate": tuple(side / 32 for side in range(31, 0, -1)),
        "pixelate_uneven": tuple(side / 64 for side in range(63, 0, -1)),
        "jpeg": tuple(float(quality) for quality in range(95, 0, -1)),
        "jpeg_thumbnail": tuple(float(quality) for quality in range(95, 0, -1)),
        "rotation": _steps(2.0, 90.0),
    }
)
"""Levels that are tried, from mild to hard, for images of 32 x 32 pixels."""


def calibrate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ids: Tensor,
    name: str,
    targets: Sequence[float] = TARGETS,
    ladder: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """One level per target: the first step of the ladder, by bisection, that costs at least so many points.

    Severity s is searched with the random draws that ``corrupt`` gives to severity s, so that the table measures what the
    search saw. Where the damage does not rise along the ladder, the step is *a* crossing, so check with ``cost``. A level
    is never milder than the previous severity's.

    Args:
        model: Reference model, images in [0, 1] to logits (N, K).
        x: Clean images, float32 (N, C, H, W) in [0, 1]; validation images, never the test split.
        y: Labels, int64 (N,).
        ids: Sample ids, int64 (N,).
        name: Entry of ``robench.corrupt.TABLE``.
        targets: Points of accuracy, rising, one per severity.
        ladder: Levels to try, from mild to hard; ``LADDERS[name]`` if None.

    Raises:
        ConfigError: No ladder for this corruption, or its hardest step costs less than a target.
    """
    steps = _ladder(name) if ladder is None else tuple(ladder)
    levels: list[float] = []
    low = 0
    for severity, target in enumerate(targets, start=1):
        low = _first(model, x, y, ids=ids, name=name, severity=severity, steps=steps, low=low, target=target)
        levels.append(steps[low])
    return tuple(levels)


def cost(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, name: str, level: float, severity: int) -> float:
    """Points of accuracy (0 to 100) that a corruption at this level takes from the model; may be negative."""
    bad = corrupt_at(x, name, level, severity=severity, ids=ids)
    with untouched(model):
        clean, hurt = ((predict(model, images, width=64).argmax(1) == y).double().mean() for images in (x, bad))
    return 100 * (clean - hurt).item()


def _ladder(name: str) -> tuple[float, ...]:
    if name not in LADDERS:
        raise ConfigError(must("a corruption to calibrate", "one with a ladder", name, suggestion(name, LADDERS)))
    return LADDERS[name]


def _first(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ids: Tensor,
    name: str,
    severity: int,
    steps: Sequence[float],
    low: int,
    target: float,
) -> int:
    """Position of the first step from ``low`` on that costs ``target`` points, if costs rise along the ladder."""
    high = len(steps) - 1
    worst = cost(model, x, y, ids=ids, name=name, level=steps[high], severity=severity)
    if worst < target:
        raise ConfigError(must(f"the hardest {name}", f"worth {target} points", round(worst, 2), "extend the ladder"))
    while low < high:
        middle = (low + high) // 2
        if cost(model, x, y, ids=ids, name=name, level=steps[middle], severity=severity) >= target:
            high = middle
        else:
            low = middle + 1
    return low
