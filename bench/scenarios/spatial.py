"""Rotations and translations of each image: the worst and the mean of a whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks._spatial import require_grid, transformed
from robench.inference import predict, untouched
from robench.registry import facts
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.task import CLASSIFICATION


@facts(version=1)
def spatial(
    objects: Objects,
    *,
    angles: tuple[float, ...] = (-30.0, -15.0, 0.0, 15.0, 30.0),
    shifts: tuple[float, ...] = (-0.1, 0.0, 0.1),
    padding: str = "zeros",
) -> list[dict[str, Any]]:
    """One row per sample: its worst and mean score over all rotations x shifts down x shifts right, and the worst of them.

    The image as it is always belongs to the worst case, so that a clean mistake is never robust.

    Args:
        objects: The cell's.
        angles: Degrees anticlockwise; the paper's are 31 from -30 to 30.
        shifts: Parts of the side, for both directions; the paper's are 5 to about 0.1.
        padding: What comes in from outside: ``zeros``, ``border`` or ``reflection``; another one gives other numbers.

    Raises:
        ConfigError: No angle or shift, one that is not finite, or unknown padding.

    Source: Engstrom et al., ICML 2019, section 3 (grid search; the mean over the grid).
    """
    require_grid(angles, shifts, padding)
    settings = [(a, d, r) for a in angles for d in shifts for r in shifts]
    told = {"grid": grid_name(angles, shifts, padding), "padding": padding, "transformations": len(settings)}

    def measure(hold: Hold) -> list[dict[str, Any]]:
        found = over_grid(objects.net, hold, settings, padding=padding)
        return columns(sample=hold.ids, label=hold.y, **found, **told)

    with untouched(objects.net):
        return walk(objects.holds(), measure)


def grid_name(angles: Sequence[float], shifts: Sequence[float], padding: str) -> str:
    """A grid in a few words: how many angles and shifts up to where, and the padding."""
    reach = [f"{len(set(values))} to {max(map(abs, values)):g}" for values in (angles, shifts)]
    return f"grid(angles={reach[0]}, shifts={reach[1]}, padding={padding})"


def over_grid(
    net: nn.Module, hold: Hold, settings: Sequence[tuple[float, float, float]], *, padding: str
) -> dict[str, Tensor]:
    """Columns (N,) of one hold: scores clean, worst and mean, the worst setting and its margin; NaN margins are the worst.

    Args:
        net: In eval mode.
        hold: Samples.
        settings: Degrees, and shifts down and right as parts of the side.
        padding: As of ``spatial``.
    """
    n = len(hold.y)
    clean = CLASSIFICATION.score(predict(net, hold.x, width=hold.width), hold.y)
    total, worst = torch.zeros(n, dtype=torch.float64, device=hold.x.device), clean.clone()
    lowest = torch.full((n,), math.inf, device=hold.x.device)
    chosen = torch.zeros(n, 3, dtype=torch.float64, device=hold.x.device)
    for setting in torch.tensor(settings, dtype=torch.float64, device=hold.x.device):
        points = transformed(hold.x, setting.expand(n, 3), padding=padding)
        logits = predict(net, points, width=hold.width)
        score, margin = CLASSIFICATION.score(logits, hold.y), CLASSIFICATION.margin(logits, hold.y).float()
        margin = margin.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        total, worst = total + score, torch.minimum(worst, score)
        better = margin < lowest
        lowest, chosen[better] = torch.where(better, margin, lowest), setting
    return {
        "score_clean": clean, "score_worst": worst, "score_mean": total / len(settings), "broken": worst < clean,
        "margin_worst": lowest, "angle": chosen[:, 0], "down": chosen[:, 1], "right": chosen[:, 2],
    }  # fmt: skip
