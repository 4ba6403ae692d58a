"""How often predictions change along sequences of slight perturbations."""

from __future__ import annotations

from typing import Any

import torch

from robench.corrupt.perturbations import compared_with
from robench.registry import facts
from robench.scenarios.objects import Objects, columns

SOURCE = "robench-P (regenerated)"
"""What the sequences are called: they are not the published ones."""


@facts(version=1)
def flips(objects: Objects, *, perturbation: str = "") -> list[dict[str, Any]]:
    """One row per sample: the share of frames whose prediction differs from the frame that it is compared with.

    The cell's first further artifact holds the model's predictions on all frames. A frame without a finite prediction
    counts as a change.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (flip probability).
    """
    frames = [objects.sharded(frame) for frame in objects.extra(0)]
    seen = torch.stack([frame.logits.argmax(1) for frame in frames])
    broken = torch.stack([~frame.logits.isfinite().all(1) for frame in frames])
    compared = compared_with(perturbation)
    before = seen[:1].expand(len(seen) - 1, -1) if compared == "first" else seen[:-1]
    changed = (seen[1:] != before) | broken[1:]
    return columns(
        sample=frames[0].ids,
        label=frames[0].labels,
        perturbation=perturbation,
        compared=compared,
        frames=len(frames),
        flips=changed.double().mean(0),
        source=SOURCE,
    )
