"""Common corruptions: what weather, sensors and file formats do to images, at five severities."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "gaussian_noise": "robench.corrupt._noise:gaussian_noise",
    "shot_noise": "robench.corrupt._noise:shot_noise",
    "impulse_noise": "robench.corrupt._noise:impulse_noise",
    "defocus_blur": "robench.corrupt._blur:defocus_blur",
    "glass_blur": "robench.corrupt._blur:glass_blur",
    "motion_blur": "robench.corrupt._motion:motion_blur",
    "zoom_blur": "robench.corrupt._motion:zoom_blur",
    "snow": "robench.corrupt._weather:snow",
    "frost": "robench.corrupt._weather:frost",
    "fog": "robench.corrupt._weather:fog",
    "brightness": "robench.corrupt._light:brightness",
    "contrast": "robench.corrupt._light:contrast",
    "elastic_transform": "robench.corrupt._elastic:elastic_transform",
    "pixelate": "robench.corrupt._digital:pixelate",
    "jpeg_compression": "robench.corrupt._jpeg:jpeg",
    "speckle_noise": "robench.corrupt._noise:speckle_noise",
    "gaussian_blur": "robench.corrupt._blur:gaussian_blur",
    "spatter": "robench.corrupt._spatter:spatter",
    "saturate": "robench.corrupt._light:saturate",
    "jpeg": "robench.corrupt._jpeg:jpeg",
    "jpeg_thumbnail": "robench.corrupt._jpeg:jpeg_thumbnail",
    "pixelate_uneven": "robench.corrupt._digital:pixelate_uneven",
    "rotation": "robench.corrupt._geometry:rotation",
}
"""Corruption → function ``f(x, level, *, draws) -> x``; severities are levels in ``robench.corrupt.tables``.

``jpeg`` is ``jpeg_compression`` under the name of earlier suites. What these make is called robench-C (regenerated), never
by the name of a published data set, whose files differ."""
