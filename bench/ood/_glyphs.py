"""Letters and signs that are no digits, drawn stroke by stroke, so that they are the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.errors import ConfigError, must
from robench.ood.drawing import drawable, eight_bit
from robench.ops.random import Draws
from robench.registry import facts

_L, _R, _T, _B, _M = 0.1, 0.9, 0.0, 1.0, 0.5
STROKES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "A": ((_L, _B, _M, _T), (_M, _T, _R, _B), (0.28, 0.6, 0.72, 0.6)),
    "E": ((_L, _T, _L, _B), (_L, _T, _R, _T), (_L, _M, 0.75, _M), (_L, _B, _R, _B)),
    "F": ((_L, _T, _L, _B), (_L, _T, _R, _T), (_L, _M, 0.75, _M)),
    "H": ((_L, _T, _L, _B), (_R, _T, _R, _B), (_L, _M, _R, _M)),
    "K": ((_L, _T, _L, _B), (_L, _M, _R, _T), (_L, _M, _R, _B)),
    "M": ((_L, _B, _L, _T), (_L, _T, _M, 0.6), (_M, 0.6, _R, _T), (_R, _T, _R, _B)),
    "N": ((_L, _B, _L, _T), (_L, _T, _R, _B), (_R, _B, _R, _T)),
    "T": ((_L, _T, _R, _T), (_M, _T, _M, _B)),
    "V": ((_L, _T, _M, _B), (_M, _B, _R, _T)),
    "W": ((_L, _T, 0.3, _B), (0.3, _B, _M, 0.4), (_M, 0.4, 0.7, _B), (0.7, _B, _R, _T)),
    "X": ((_L, _T, _R, _B), (_R, _T, _L, _B)),
    "Y": ((_L, _T, _M, _M), (_R, _T, _M, _M), (_M, _M, _M, _B)),
    "plus": ((_L, _M, _R, _M), (_M, 0.15, _M, 0.85)),
    "triangle": ((_M, _T, _R, _B), (_R, _B, _L, _B), (_L, _B, _M, _T)),
    "arrow": ((_M, _B, _M, _T), (_M, _T, _L, 0.4), (_M, _T, _R, 0.4)),
    "hash": ((0.3, _T, 0.3, _B), (0.7, _T, 0.7, _B), (_L, 0.33, _R, 0.33), (_L, 0.67, _R, 0.67)),
}
"""Sign → strokes (x0, y0, x1, y1) in a unit square, y downwards."""


@facts(version=1)
def glyphs(x: Tensor, *, draws: Draws, detail: int = 0) -> Tensor:
    """One letter or sign per image, (N, C, H, W): light on black in grey images, two random colours in others.

    Sign, tilt, size, place and stroke width are drawn per image id.

    Args:
        x: The data set's own images, for their shape.
        draws: Of the images' ids.
        detail: Pixels a side that the sign is sampled on, in 17 grey values, before it is enlarged (8 is how the bundled
            digits were made); 0 draws at the images' own size.

    Raises:
        ConfigError: A negative detail.
    """
    if detail < 0:
        raise ConfigError(must("detail of glyphs", "at least 0", detail, "e.g. detail=8 for the bundled digits"))
    drawable(x, draws)
    height, width = x.shape[2:]
    fine = (4 * detail, 4 * detail) if detail else (height, width)
    ink = _ink(_strokes(draws), 0.09 + 0.07 * draws.uniform("glyphs/pen", ()), fine)[:, None]
    if detail:
        coarse = (torch.nn.functional.avg_pool2d(ink, 4) * 16).round() / 16
        ink = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    if x.shape[1] == 1:
        return eight_bit(ink)
    paper = draws.uniform("glyphs/paper", (x.shape[1], 1, 1))
    return eight_bit(paper + ink * ((paper + 0.5) % 1.0 - paper))


def _strokes(draws: Draws) -> Tensor:
    """Ends of every stroke, (N, S, 2 ends, 2 coordinates), tilted, scaled and placed in the unit square of the image."""
    longest = max(len(s) for s in STROKES.values())
    table = torch.tensor([[*s, *[s[-1]] * (longest - len(s))] for s in STROKES.values()])
    chosen = table[draws.integers("glyphs/sign", (), len(STROKES))].reshape(len(draws.ids), longest, 2, 2) - 0.5
    u = draws.uniform("glyphs/pose", (5,))
    tilt, tall = (u[:, 0] - 0.5) * 0.5, 0.7 + 0.2 * u[:, 1]
    wide = tall * (0.65 + 0.3 * u[:, 2])
    sized = chosen * torch.stack([wide, tall], dim=1)[:, None, None, :]
    sin, cos = tilt.sin()[:, None, None], tilt.cos()[:, None, None]
    turned = torch.stack([cos * sized[..., 0] - sin * sized[..., 1], sin * sized[..., 0] + cos * sized[..., 1]], dim=-1)
    return turned + 0.5 + (u[:, None, None, 3:] - 0.5) * 0.12


def _ink(strokes: Tensor, pen: Tensor, size: tuple[int, int]) -> Tensor:
    """Ink in [0, 1], (N, H, W): 1 within half a pen of a stroke, falling to 0 over one pixel."""
    height, width = size
    ys = (torch.arange(height) + 0.5) / height
    xs = (torch.arange(width) + 0.5) / width
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(1, -1, 2)
    nearest = torch.full((len(strokes), height * width), torch.inf)
    for stroke in strokes.unbind(1):
        start, along = stroke[:, None, 0], (stroke[:, 1] - stroke[:, 0])[:, None]
        offset = points - start
        place = ((offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - place[..., None] * along).square().sum(-1))
    reach = (pen[:, None] / 2 - nearest.sqrt()) * min(height, width) + 0.5
    return reach.clamp(0, 1).reshape(-1, height, width)
