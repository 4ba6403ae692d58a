"""How the levels of a severity table are found: by what they cost one reference model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from robench.corrupt.apply import corrupt_at
from robench.corrupt.tables import Level
from robench.errors import ConfigError, must, suggestion
from robench.inference import predict, untouched

TARGETS = (1.5, 8.0, 17.0, 29.0, 42.0)
"""Points of accuracy that severities 1 to 5 shall cost the reference model."""


def _steps(mild: float, hard: float, count: int = 400) -> tuple[float, ...]:
    """Levels from mild to hard in equal ratios, three significant digits each."""
    return tuple(dict.fromkeys(float(f"{mild * (hard / mild) ** (i / (count - 1)):.3g}") for i in range(count)))


LADDERS: Mapping[str, tuple[Level, ...]] = MappingProxyType(
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
        "impulse_noise": _steps(0.002, 0.9),
        "speckle_noise": _steps(0.1, 100.0),
        "defocus_blur": tuple((radius, 0.5) for radius in _steps(0.5, 12.0)),
        "glass_blur": tuple((sigma, 1 + i // 40, 2) for i, sigma in enumerate(_steps(0.3, 3.0, 200))),
        "motion_blur": tuple((round(min(3 * sigma, 25.0), 2), sigma) for sigma in _steps(0.5, 30.0)),
        "zoom_blur": tuple((round(1 + end, 4), 0.02) for end in _steps(0.04, 3.0)),
        "snow": tuple((mean, 0.3, 1.5, 0.6, 12, 4, 0.85) for mean in _steps(0.02, 1.8)),
        "frost": tuple((round(1 - min(rest, 1.9) / 2, 4), rest) for rest in _steps(0.05, 1.9)),
        "fog": tuple((thickness, 2.0) for thickness in _steps(0.1, 40.0)),
        "elastic_transform": tuple((strength, 0.05, 0.04) for strength in _steps(0.01, 3.0)),
        "spatter": tuple((0.65, 0.3, 1.5, round(1.0 - rest, 4), 0.6, 1) for rest in _steps(0.05, 0.9)),
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
    ladder: Sequence[Level] | None = None,
) -> tuple[Level, ...]:
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
    levels: list[Level] = []
    low = 0
    for severity, target in enumerate(targets, start=1):
        low = _first(model, x, y, ids=ids, name=name, severity=severity, steps=steps, low=low, target=target)
        levels.append(steps[low])
    return tuple(levels)


def cost(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, name: str, level: Level, severity: int) -> float:
    """Points of accuracy (0 to 100) that a corruption at this level takes from the model; may be negative."""
    bad = corrupt_at(x, name, level, severity=severity, ids=ids)
    with untouched(model):
        clean, hurt = ((predict(model, images, width=64).argmax(1) == y).double().mean() for images in (x, bad))
    return 100 * (clean - hurt).item()


def _ladder(name: str) -> tuple[Level, ...]:
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
    steps: Sequence[Level],
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
