"""Common corruptions: what weather, sensors and file formats do to images, at five severities."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "gaussian_noise": "robench.corrupt._noise:gaussian_noise",
    "shot_noise": "robench.corrupt._noise:shot_noise",
    "gaussian_blur": "robench.corrupt._blur:gaussian_blur",
    "contrast": "robench.corrupt._light:contrast",
    "brightness": "robench.corrupt._light:brightness",
    "pixelate": "robench.corrupt._digital:pixelate",
    "pixelate_uneven": "robench.corrupt._digital:pixelate_uneven",
    "jpeg": "robench.corrupt._digital:jpeg",
    "jpeg_thumbnail": "robench.corrupt._digital:jpeg_thumbnail",
    "rotation": "robench.corrupt._geometry:rotation",
}
"""Corruption → function ``f(x, level, *, draws) -> x``; severities are levels in ``robench.corrupt.tables``."""
