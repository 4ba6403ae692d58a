"""Severity tables: the level of each corruption at severities 1 to 5. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from robench.errors import ConfigError, must, suggestion

SEVERITIES = (1, 2, 3, 4, 5)

CIFAR: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg": (80, 65, 58, 50, 40),
        "rotation": (5, 10, 15, 20, 30),
    }
)
"""For 32 x 32 natural images: ``make_cifar_c.py`` of hendrycks/robustness; rotation is not in it and is our choice."""

IMAGENET: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "gaussian_blur": (1, 2, 3, 4, 6),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg": (25, 18, 15, 10, 7),
        "rotation": (5, 10, 15, 20, 30),
    }
)
"""For 224 x 224 natural images: ``make_imagenet_c.py`` of hendrycks/robustness; rotation is not in it and is our choice."""

DIGITS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian_noise": (0.108, 0.428, 0.498, 0.708, 0.933),
        "shot_noise": (4.11, 1.15, 0.648, 0.438, 0.324),
        "gaussian_blur": (2.1, 3.65, 4.62, 5.22, 6.0),
        "contrast": (0.638, 0.406, 0.322, 0.181, 0.109),
        "brightness": (0.143, 0.317, 0.401, 0.553, 0.686),
        "pixelate_uneven": (7 / 32, 6 / 32, 5 / 32, 4 / 32, 3.5 / 32),
        "jpeg_thumbnail": (50, 15, 6, 4, 2),
        "rotation": (7.53, 11.4, 16.2, 21.1, 26.3),
    }
)
"""For the enlarged 8 x 8 digits: ``calibrate`` on the validation split, for the zoo's ``digits-standard`` as first shipped.

The severities cost that net about 1.5, 8, 17, 29 and 42 of its 98.4 points. Two are chosen by hand so that the cost never
falls: pixelation has whole numbers of pixels only (2.8, 3.2, 6.0, 23.6, 53.2 points; the last is 3 x 4 pixels), and JPEG
works on thumbnails (2.0, 9.6, 21.2, 32.4, 40.8 points), because on the enlarged pictures, smooth as they are, its worst
quality costs 2.4 points.
"""

TABLES: Mapping[str, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {"cifar-v1": CIFAR, "imagenet-v1": IMAGENET, "digits-v1": DIGITS}
)
"""Every severity table by name; a table's numbers never change, a better one gets a new name."""


def table_of(table: str | Mapping[str, Sequence[float]]) -> Mapping[str, Sequence[float]]:
    """The severity table of that name; a mapping is returned as it is.

    Raises:
        ConfigError: Unknown name.
    """
    if not isinstance(table, str):
        return table
    if table not in TABLES:
        raise ConfigError(must("a severity table", "a known one", table, suggestion(table, TABLES)))
    return TABLES[table]


def level_of(table: str | Mapping[str, Sequence[float]], name: str, severity: int) -> float:
    """The level of a corruption at a severity, in the corruption's own unit.

    Raises:
        ConfigError: Unknown table, a corruption the table lacks, or a severity outside 1..5.
    """
    levels = table_of(table)
    if name not in levels:
        raise ConfigError(must("a corruption of the severity table", "a known one", name, suggestion(name, levels)))
    if severity not in SEVERITIES or isinstance(severity, bool):
        raise ConfigError(must("severity", "1, 2, 3, 4 or 5", severity, "choose one of them"))
    return float(levels[name][severity - 1])
