"""How far an explanation says what the model does, and how steady it is.

Every number is per image; the target is the class predicted on the clean image and stays fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench.explainers import TABLE
from robench.explainers._batches import at_least, batch_rows, blurred, in_batches, logits_of
from robench.explainers._control import random_map
from robench.ops.random import Draws
from robench.ops.sums import row_sums
from robench.registry import Table
from robench.spec import Ref

UNRELATED = math.sqrt(2.0)
"""Relative distance of two independent zero-mean maps of equal size: what an absent explanation is charged."""


def insertion_deletion(
    model: nn.Module, x: Tensor, target: Tensor, maps: Tensor, *, steps: int = 16, patch: int = 4
) -> tuple[Tensor, Tensor]:
    """Areas under the insertion and the deletion curve of the target's probability, two float64 (N,) in [0, 1].

    Insertion restores the best-marked patches into the blurred image (higher is better), deletion blurs them away
    (lower is better). A random map's expected gap between the two is 0.

    Args:
        model: Takes x and returns logits (N, K).
        x: Images (N, C, H, W) in [0, 1].
        target: Class whose probability is followed, int64 (N,).
        maps: Evidence (N, H, W); patches go by descending mean, ties in reading order.
        steps: Points of the curve after the first, at least 1; no more than there are patches are used.
        patch: Side of a square patch in pixels, at least 1; those at the far edges may be smaller.

    Raises:
        ConfigError: steps or patch below 1.

    Source: Petsiuk et al., BMVC 2018 (RISE), section 4.2.
    """
    at_least("steps", steps, 1)
    at_least("patch", patch, 1)
    rank, patches = _pixel_ranks(maps, patch)
    points = min(steps, patches)
    shown = (torch.arange(points + 1, device=x.device) * patches + points // 2) // points
    blur = blurred(x)

    def areas(rows: Tensor) -> Tensor:
        rows = rows.to(x.device)
        marked = (rank[rows, None] < shown[:, None, None])[:, :, None]
        sharp, soft = x[rows, None], blur[rows, None]
        both = torch.stack([torch.where(marked, sharp, soft), torch.where(marked, soft, sharp)], 1)
        curve = _probability(model, both.flatten(0, 2), target[rows].repeat_interleave(2 * (points + 1)))
        return torch.trapezoid(curve.view(len(rows), 2, points + 1), dx=1 / points)

    both = in_batches(areas, len(x), width=max(1, 2 * batch_rows(x) // (points + 1)))
    return both[:, 0], both[:, 1]


def infidelity(
    model: nn.Module, x: Tensor, target: Tensor, maps: Tensor, *, draws: Draws, n: int = 16, std: float = 0.1
) -> Tensor:
    """Share of the logit's reaction to noise that the map does not account for, float64 (N,) in [0, 1].

    The map is scaled by the best factor for its image, and the squared error divided by the mean squared reaction,
    so that methods and models compare. The factor is fitted to the same n draws: a random map expects 1 - 1/n.
    The same noise goes to all channels, since maps are summed over them. No reaction at all counts as 1.

    Args:
        model: Takes x and returns logits (N, K).
        x: Images (N, C, H, W) in [0, 1]; noisy ones may leave the box.
        target: Class whose logit is followed, int64 (N,).
        maps: Evidence (N, H, W); a zero map gets 1.
        draws: Counter-based draws for the N samples.
        n: Noise images per image, at least 1.
        std: Standard deviation of the noise, in pixel units.

    Raises:
        ConfigError: n below 1.

    Source: Yeh et al., NeurIPS 2019, definition 2.1 and section 2 (optimal scale).
    """
    at_least("n", n, 1)
    clean = _logit(model, x, target)
    predicted, reaction = [], []
    for step in range(n):
        noise = std * draws.normal("infidelity", x.shape[-2:], step=step).to(x.device)
        predicted.append(row_sums(noise.double() * maps.double()))
        reaction.append(clean - _logit(model, x - noise[:, None], target))
    a, b = torch.stack(predicted, 1), torch.stack(reaction, 1)
    size = row_sums(a * a) * row_sums(b * b)
    explained = row_sums(a * b) ** 2 / torch.where(size > 0, size, 1.0)
    return (1 - explained).clamp(0, 1)


def max_sensitivity(
    explain: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    draws: Draws,
    radius: float = 0.02,
    n: int = 4,
    maps: Tensor | None = None,
) -> Tensor:
    """Largest relative change of the map among n random neighbours of the image, float64 (N,), at least 0.

    A sample of the ball, not its worst case; a map that ignores the image gets 0, so read it beside faithfulness.

    Args:
        explain: Images (N, C, H, W) to maps (N, H, W).
        x: Images (N, C, H, W) in [0, 1]; neighbours may leave the box.
        draws: Counter-based draws for the N samples.
        radius: Half-width of the uniform noise (an L-inf ball), in pixel units.
        n: Neighbours per image, at least 1.
        maps: ``explain(x)``, where it is known already.

    Raises:
        ConfigError: n below 1.

    Source: Yeh et al., NeurIPS 2019, definition 3.1, divided by the map's own Euclidean norm.
    """
    at_least("n", n, 1)
    maps = explain(x) if maps is None else maps
    norm = _norm(maps)
    worst = torch.zeros_like(norm)
    for step in range(n):
        noise = radius * (2 * draws.uniform("sensitivity", x.shape[1:], step=step).to(x.device) - 1)
        worst = torch.maximum(worst, _norm(explain(x + noise) - maps))
    return worst / torch.where(norm > 0, norm, 1.0)


def explain_rows(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, *, explainers: Sequence[Ref | str], seed: int
) -> list[dict[str, Any]]:
    """Rows of the ``explanation`` frame, one per explainer and image; those of one explainer stand together.

    The gap is insertion minus deletion; ``gap_random`` is that of a random map on the same image. A map that is
    constant or not finite is ``degenerate``: it is scored as the random map, infidelity 1 and sensitivity sqrt(2),
    and never dropped.

    Args:
        model: Takes x and returns logits (N, K); in eval mode.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        ids: Sample ids, int64 (N,).
        explainers: References to entries of the explainer table.
        seed: Of all random draws.

    Raises:
        ConfigError: An unknown explainer or argument.
        NoGradientError: An explainer needs the input gradient and the model gives none.

    Source: robench's panel, after Petsiuk et al. 2018 and Yeh et al. 2019.
    """
    table = Table("explainers", TABLE)
    named = [(str(ref), table.resolve(ref)) for ref in explainers]
    target = logits_of(model, x).argmax(1)
    draws = Draws(seed, ids)
    faithful = partial(insertion_deletion, model, x, target, patch=patch_for(x))
    control = faithful(random_map(model, x, target, draws=draws, stage="control"))
    rows = []
    for name, ref in named:
        explain = partial(table[ref.name].load(), model, target=target, draws=draws, **ref.kwargs)
        columns = _columns(explain, faithful, partial(infidelity, model, x, target, draws=draws), x, draws, control)
        rows += _rows(name, ids, y, columns)
    return rows


def patch_for(x: Tensor) -> int:
    """Side of a patch in pixels: an eighth of the image, in [1, 16]; 4 at sizes 28 and 32.

    Args:
        x: Images (N, C, H, W).
    """
    return min(16, max(1, (min(x.shape[-2:]) + 4) // 8))


def _columns(
    explain: Callable[[Tensor], Tensor],
    faithful: Callable[[Tensor], tuple[Tensor, Tensor]],
    unfaithful: Callable[[Tensor], Tensor],
    x: Tensor,
    draws: Draws,
    control: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """All measures of one explainer as columns (N,); degenerate maps take the control's numbers."""
    maps = explain(x)
    bad = degenerate(maps)
    maps = torch.where(bad[:, None, None], 0.0, maps)
    insertion, deletion = (torch.where(bad, c, own) for own, c in zip(faithful(maps), control, strict=True))
    sensitivity = max_sensitivity(explain, x, draws=draws, maps=maps)
    return {
        "insertion": insertion,
        "deletion": deletion,
        "gap": insertion - deletion,
        "gap_random": control[0] - control[1],
        "infidelity": unfaithful(maps),
        "max_sensitivity": torch.where(bad | ~sensitivity.isfinite(), UNRELATED, sensitivity),
        "degenerate": bad,
    }


def _rows(name: str, ids: Tensor, y: Tensor, columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    lists = {"sample": ids.tolist(), "label": y.tolist(), **{key: value.tolist() for key, value in columns.items()}}
    return [
        {"sample": s, "label": label, "explainer": name, **dict(zip(columns, rest, strict=True))}
        for s, label, *rest in zip(*lists.values(), strict=True)
    ]


def degenerate(maps: Tensor) -> Tensor:
    """Whether each map orders no pixels, bool (N,): constant (so all-zero too), or not finite somewhere.

    Args:
        maps: Evidence (N, H, W).
    """
    flat = maps.flatten(1)
    return ~flat.isfinite().all(1) | (flat.amax(1) == flat.amin(1))


def _pixel_ranks(maps: Tensor, patch: int) -> tuple[Tensor, int]:
    """Rank of each pixel's patch by descending mean, int64 (N, H, W), 0 the best; and the number of patches."""
    means = nn.functional.avg_pool2d(maps[:, None], patch, ceil_mode=True, count_include_pad=False)[:, 0]
    order = means.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(means.shape)
    pixels = rank.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return pixels[:, : maps.shape[1], : maps.shape[2]], order.shape[1]


def _probability(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return logits_of(model, x).double().softmax(1).gather(1, target[:, None])[:, 0]


def _logit(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return logits_of(model, x).double().gather(1, target[:, None])[:, 0]


def _norm(maps: Tensor) -> Tensor:
    return row_sums(maps.double() ** 2).sqrt()
