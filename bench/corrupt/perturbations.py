"""Names of the perturbation sequences, and what their frames are compared with. No torch."""

from __future__ import annotations

PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "spatter", "brightness", "translate",
    "rotate", "tilt", "scale",
)  # fmt: skip
"""The ten perturbations of CIFAR-10-P's means, in the order of ``cifar-p-eval.py``."""


def compared_with(name: str) -> str:
    """``first`` for noise, whose frames are independent draws, else ``previous``: the frame that a flip is counted from."""
    return "first" if "noise" in name else "previous"
