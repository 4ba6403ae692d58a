"""What a model's outputs and gradients are worth, measured: shared by the sentinel and by attacks that escalate."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from robench.ops.norms import per_sample, steepest
from robench.ops.random import Draws
from robench.victim import Victim

VERSION = 2
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

EDGE = 0.04
"""Pixels nearer than this to 0 or 1 are not moved, since both ends of a difference should lie in the box: four times
``RANDOM_REACH``, which a normal draw exceeds once in 16000. Not tuned."""

RANDOM_REACH, GRADIENT_REACH = 1e-2, 5e-4
"""Root mean square change of a pixel in a finite difference: along random directions, where logits change little, long
enough to step over the plateaus of 8-bit activations; along the gradient short enough for curved networks."""

FORWARDS = 5
"""Passes over the same batch that must agree."""


def differ(first: Tensor, other: Tensor) -> Tensor:
    """Whether two looks at the same images disagree by more than rounding, bool (N,)."""
    return (first - other).abs().amax(1) > 1e-4 * first.norm(dim=1).clamp_min(1e-6)


def slopes(victim: Victim, points: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Slopes of the margin as differences measure them and as the gradient claims them, along four directions.

    Returns:
        ``gradient_error``, the relative error in [0, 1] over the gradient's and two random directions; ``slope`` and
        ``slope_claimed`` along the first random one; ``hidden``, the estimated share of the squared gradient that lies on
        pixels where it is claimed to be zero, in [0, 1]; ``evenness`` of the classes' gradients, in [0, 1]; (N,) each.
    """
    rows = torch.arange(len(points), device=points.device)
    gradient = victim.gradient(points, rows, "margin").gradient
    inside = (points > EDGE) & (points < 1 - EDGE)
    first, second = (draws.normal("sentinel.slope", tuple(points.shape[1:]), step=i).to(points) for i in range(2))
    pairs = []
    for direction, reach in ((first, RANDOM_REACH), (second, RANDOM_REACH), (gradient, GRADIENT_REACH)):
        unit = steepest(direction * inside, "l2")
        pairs.append((_measured(victim, points, unit, reach), (gradient * unit).flatten(1).sum(1)))
    a, b = (torch.stack(side).double().nan_to_num() for side in zip(*pairs, strict=True))
    total = (a.norm(dim=0) + b.norm(dim=0)).clamp_min(1e-12)
    hidden = _hidden(victim, points, gradient, first * inside)
    found = {"gradient_error": (a - b).norm(dim=0) / total, "slope": a[0], "slope_claimed": b[0], "hidden": hidden}
    return {**found, "evenness": _evenness(victim, points)}


def _measured(victim: Victim, points: Tensor, unit: Tensor, reach: float) -> Tensor:
    """Slope of the loss (minus the margin) along unit vectors, from differences ``reach`` per pixel to either side, (N,)."""
    rows, length = torch.arange(len(points), device=points.device), reach * points[0].numel() ** 0.5
    ahead, behind = (victim.margins(points + sign * length * unit, rows) for sign in (1, -1))
    return (behind - ahead) / (2 * length)


def _hidden(victim: Victim, points: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
    """Share of the squared gradient that lies on pixels where it is claimed to be zero, in [0, 1], (N,).

    Along a random unit vector u of d pixels the mean of (g·u)² is |g|²/d, so one measured slope estimates |g|².
    """
    flat = gradient.flatten(1)
    blank = (gradient.abs() <= 1e-6 * per_sample(flat.abs().amax(1), gradient)) & (direction != 0)
    slope = _measured(victim, points, steepest(direction * blank, "l2"), RANDOM_REACH).double().nan_to_num()
    power = slope**2 * blank.flatten(1).sum(1)
    return power / (power + flat.double().square().sum(1)).clamp_min(1e-24)


def _evenness(victim: Victim, points: Tensor) -> Tensor:
    """How far the gradients of two gaps to the label, the highest and the middle class's, differ in size, in [0, 1], (N,).

    The smaller over the larger norm. Outputs that saturate (a tanh, a sigmoid) lose the gradient of some classes and keep
    that of others, which then lead every search astray. Gaps do not feel what is added to all logits, as log-softmax does.
    The lowest class would not do: logarithms of probabilities that are kept above a floor lose its gradient honestly.
    """
    rows = torch.arange(len(points), device=points.device)
    logits = victim.clean_logits()
    others = logits.scatter(1, victim.y[:, None], -torch.inf).argsort(dim=1, descending=True)
    middle = min((logits.shape[1] - 1) // 2, logits.shape[1] - 2)
    _, gradients = victim.class_gradients(points, rows, others[:, [0, middle]])
    sizes = gradients.flatten(2).double().norm(dim=2)
    even = sizes.amin(1) / sizes.amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(sizes.amax(1) > 0, even, 1.0)


REACH = 5e-4
"""Change of a pixel in the differences that are taken in the threat's own geometry: hundreds of float32 units of a logit,
and short beside the distance to the next kink of nets with max-pooling, which have the most."""

GROUPS = (0.5, 0.8, 1.0)
"""Where the groups of pixels end, which are ordered by the size of their claimed gradient: under linf the lower half, which
holds a few percent of the squared gradient, moves the loss as far as a quarter of all pixels do."""

DIRECTIONS = 2
"""Random sign vectors that each group is stepped along; what is told are sums over groups, and verdicts are over samples."""

TOP = 0.05
"""Share of the coordinates, those of the largest claimed gradient, that a step of l1 or l0 is taken along."""


def geometry(victim: Victim, points: Tensor, rows: Tensor, draws: Draws, stage: str) -> dict[str, Tensor]:
    """How far the gradient of the margin is true at points of the samples ``rows``, as the threat's norm counts.

    Returns:
        ``mass_error``: the slopes' error along random signs of pixel groups, as a share of the gradient's dual norm (linf:
        l1 mass; else length): 0 for a true gradient, about 1 where it is lost, up to 2 where its sign is wrong.
        ``mass_noise``: the same of the differences among themselves, with another step: what rounding explains.
        ``steep``: the slope along the claimed steepest direction as measured over what is claimed: 1 for a true gradient.
        (n,) each, from 20 forward passes and one forward and backward pass.
    """
    gradient = victim.gradient(points, rows, "margin").gradient  # at pixels of exactly 0 and 1, too, where searches end
    points = points.clamp(REACH, 1 - REACH)  # the differences need room to either side
    flat, norm = gradient.flatten(1).double().nan_to_num(), victim.threat.norm
    place = flat.abs().argsort(dim=1, stable=True).argsort(dim=1, stable=True) / flat.shape[1]
    sums = torch.stack([
        _group(victim, points, rows, flat, (place >= start) & (place < end), (draws, stage, DIRECTIONS * number))
        for number, (start, end) in enumerate(pairwise((0.0, *GROUPS)))
    ])  # fmt: skip
    wrong, noise, whole = sums.sum(0).unbind(0)
    shares = [part / whole.clamp_min(1e-30) for part in (wrong, noise)]
    error, noise = shares if norm == "linf" else [share.sqrt() for share in shares]
    direction = {"linf": flat.sign(), "l2": flat}.get(norm, flat.sign() * (place >= 1 - TOP))
    unit = direction / direction.abs().amax(1, keepdim=True).clamp_min(1e-30)
    claimed = (flat * unit).sum(1)
    measured = _difference(victim, points, rows, unit.to(points).view_as(points))
    steep = torch.where(claimed > 0, measured / claimed.clamp_min(1e-30), torch.where(measured.abs() > 0, 0.0, 1.0))
    return {"mass_error": error, "mass_noise": noise, "steep": steep}


def _group(
    victim: Victim, points: Tensor, rows: Tensor, flat: Tensor, inside: Tensor, luck: tuple[Draws, str, int]
) -> Tensor:
    """Error, noise and size of the gradient on a group of pixels, bool (n, d): (3, n), which sum up over groups.

    Along random signs u of m pixels the mean of (e·u)² is |e|²; under linf sqrt(m)·|e| stands for the l1 mass of e.
    """
    draws, stage, first = luck
    error, noise, power = (torch.zeros(len(points), dtype=torch.float64, device=points.device) for _ in range(3))
    for number in range(first, first + DIRECTIONS):
        signs = draws.normal(stage, tuple(points.shape[1:]), step=number).flatten(1).to(points).sign() * inside
        claimed, step = (flat * signs).sum(1), signs.view_as(points)
        measured = _difference(victim, points, rows, step)
        error += (measured - claimed) ** 2 / DIRECTIONS
        power += torch.maximum(measured**2, claimed**2) / DIRECTIONS
        if number == first:
            noise = (measured - _difference(victim, points, rows, step, REACH / 1.3)) ** 2
            noise = torch.where((measured == 0) & (claimed != 0), claimed**2, noise)  # a step below the outputs' resolution
    told = torch.stack([error, noise, power])
    return (told * inside.sum(1)).sqrt() if victim.threat.norm == "linf" else told


def _difference(victim: Victim, points: Tensor, rows: Tensor, step: Tensor, reach: float = REACH) -> Tensor:
    """Slope of the loss (minus the margin) along a step of at most 1 per pixel, from differences to either side, (n,)."""
    ahead, behind = (victim.margins(points + sign * reach * step, rows) for sign in (1, -1))
    return ((behind - ahead) / (2 * reach)).double().nan_to_num()


SEGMENTS = 16
"""Parts of a line from the image to where an attack ended; its gradients must add up to what the margin changed in each."""


def along(victim: Victim, ends: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Whether the gradients on the line from each image to a point account for the margin's changes along it.

    Returns:
        ``line_error``: how far claimed and actual changes of the segments differ, over the sum of both, in [0, 1];
        ``line_noise``: how far actual changes differ from their neighbours' mean, over the same: what rounding explains;
        ``line_turns``: claimed changes, all counted upwards, over the actual change of the whole line: 1 where the margin
        falls steadily, large where the search goes up and down and gets nowhere. (n,) each, NaN for lines without length;
        17 passes.
    """
    x = victim.x[rows]
    step = ends - x
    margins, slopes_ = [], []
    for k in range(SEGMENTS + 1):
        found = victim.gradient((x + step * (k / SEGMENTS)).clamp(0, 1), rows, "margin")
        margins.append(found.margin.double())
        slopes_.append((found.gradient * step).flatten(1).sum(1).double().nan_to_num() / SEGMENTS)
    margin, slope = torch.stack(margins).nan_to_num(), torch.stack(slopes_)
    actual, claimed = margin[:-1] - margin[1:], (slope[:-1] + slope[1:]) / 2
    size = (actual.abs().sum(0) + claimed.abs().sum(0)).clamp_min(1e-30)
    moved = step.flatten(1).abs().amax(1) > 0
    error = (actual - claimed).abs().sum(0) / size
    turns = claimed.abs().sum(0) / (margin[0] - margin[-1]).abs().clamp_min(1e-30)
    noise = (actual[1:-1] - (actual[:-2] + actual[2:]) / 2).abs().sum(0) / size
    told = {"line_error": error, "line_noise": noise, "line_turns": turns}
    return {name: column.masked_fill(~moved, torch.nan) for name, column in told.items()}
