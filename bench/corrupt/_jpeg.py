"""Losses of JPEG files: what a file would lose, bit for bit as libjpeg, without writing one."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from robench.corrupt._noise import to_grey
from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import facts

_SIDE = 8
_UNIT, _HALF = 2.0**-16, 2.0**15
"""Unit of libjpeg's colour conversion, and half of one in that unit."""
_CONST, _PASS1 = 13, 2
"""Fractional bits of the transform's constants, and of what its first pass hands on (``jfdctint.c``, ``jidctint.c``)."""

_TO_AWAY = 1 + 2.0**-30
"""Turns a quotient that lies half way from zero, and no other one of a coefficient (below 2^18) by a step."""


@facts(version=2, level="quality", harder="down", family="digital", grid=True)
def jpeg(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images as a JPEG file of quality ``level`` gives them back, bit-equal to Pillow; (N, C, H, W) with 1 or 3 channels.

    What a file loses is lost in colour conversion, halved colours and rounded cosine coefficients; what comes after loses
    nothing and is left out. All in whole numbers, on the images' device.

    Raises:
        DataError: Neither one nor three channels.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4.1 and ``make_cifar_c.py``; ITU-T T.81; libjpeg's slow transform.
    """
    if x.shape[1] not in (1, 3):
        raise DataError(must("images for jpeg", "of 1 or 3 channels", x.shape[1], "leave jpeg out of this suite"))
    if not len(x):
        return x
    pixels = to_grey(x)
    bright, colour = (table.to(x.device) for table in quantisation(math.floor(level)))
    if x.shape[1] == 1:
        return _coded(pixels.sub_(128), bright).add_(128).div_(255)
    planes = _to_ycc(pixels)
    halves = _doubled(_coded(_halved(planes[:, 1:]), colour), x.shape[-2], x.shape[-1])
    return _to_rgb(_coded(planes[:, :1], bright), halves).div_(255)


@lru_cache(maxsize=32)
def quantisation(quality: int) -> tuple[Tensor, Tensor]:
    """The steps of brightness and of colour at a quality, float64 (8, 8) each, as Pillow writes them into a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization  # type: ignore[attr-defined]
    first, second = (torch.tensor(tables[i], dtype=torch.float64).reshape(_SIDE, _SIDE) for i in (0, 1))
    return first, second


def _to_ycc(rgb: Tensor) -> Tensor:
    """Brightness and colours less 128, whole float32 (N, 3, H, W), in libjpeg's fixed point; float32 holds every sum."""
    parts = rgb.new_tensor([[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]) * _UNIT
    half = rgb.new_tensor([[_HALF * _UNIT - 128], [(_HALF - 1) * _UNIT], [(_HALF - 1) * _UNIT]])
    return (parts @ rgb.flatten(2)).add_(half).floor_().reshape(rgb.shape)


def _to_rgb(y: Tensor, colours: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) and colours (N, 2, H, W), less 128, as whole float32 (N, 3, H, W) in 0..255."""
    parts = y.new_tensor([[0, 91881], [-22554, -46802], [116130, 0]]) * _UNIT
    found = (parts @ colours.flatten(2)).add_(_HALF * _UNIT).floor_()
    return found.add_((y + 128).flatten(2)).clamp_(0, 255).reshape(len(y), 3, *y.shape[2:])


def _halved(colours: Tensor) -> Tensor:
    """Colours at half the size, means of 2 x 2 pixels rounded down and up in turn along a row."""
    height, width = colours.shape[-2:]
    blocks = 2 * _SIDE * math.ceil(width / (2 * _SIDE))
    colours = _grown(colours, height + height % 2, blocks)
    rows = colours[..., ::2, :] + colours[..., 1::2, :]
    bias = torch.arange(blocks // 2, device=colours.device) % 2 + 1
    return (rows[..., ::2] + rows[..., 1::2]).add_(bias).mul_(0.25).floor_()


def _grown(planes: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) with its last row and column repeated."""
    more = (0, width - planes.shape[-1], 0, height - planes.shape[-2])
    return functional.pad(planes, more, mode="replicate") if any(more) else planes


def _doubled(half: Tensor, height: int, width: int) -> Tensor:
    """Colours at full size, (N, C, height, width).

    Source: libjpeg, ``h2v2_fancy_upsample``.
    """
    narrow = width <= 4  # libjpeg repeats the pixels of so narrow an image
    rows, cols = (_spread((size + 1) // 2, narrow).to(half.device) for size in (height, width))
    bias = (8 - torch.arange(2 * cols.shape[1], device=half.device) % 2) / 16
    full = rows @ (half[..., : rows.shape[1], : cols.shape[1]] @ cols.T)
    return full.add_(bias).floor_()[..., :height, :width]


@lru_cache(maxsize=16)
def _spread(size: int, narrow: bool) -> Tensor:
    """The matrix (2 * size, size) that doubles an axis: three parts of the nearest pixel, one of the next, or the nearest.

    What lies outside repeats the edge.
    """
    here = torch.arange(2 * size)
    own = here // 2
    matrix = torch.zeros(2 * size, size)
    matrix[here, own] += 0.75
    matrix[here, own if narrow else (own + 2 * (here % 2) - 1).clamp(0, size - 1)] += 0.25
    return matrix


def _coded(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes (N, C, H, W) of -128..127 with their cosine coefficients rounded to multiples of ``steps``, whole float32.

    The forward transform goes along rows first, the backward one along columns.
    """
    height, width = planes.shape[-2:]
    planes = _grown(planes, _SIDE * math.ceil(height / _SIDE), _SIDE * math.ceil(width / _SIDE))
    shape, wide = planes.shape, planes.shape[-1]
    ahead, back = (matrix().to(planes.device) for matrix in (_forward, _backward))
    found = _rounded(planes.double().reshape(-1, _SIDE) @ ahead.T, _CONST - _PASS1).reshape(-1, _SIDE, wide)
    found = _rounded(ahead @ found, _CONST + _PASS1)
    steps = steps.repeat(1, wide // _SIDE)
    found.mul_(_TO_AWAY / (_SIDE * steps)).round_().mul_(steps)
    found = _rounded(back @ found, _CONST - _PASS1).reshape(-1, _SIDE)
    found = _rounded(found @ back.T, _CONST + _PASS1 + 3)
    return found.clamp_(-128, 127).float().reshape(shape)[..., :height, :width]


def _rounded(x: Tensor, bits: int) -> Tensor:
    """Whole numbers over 2^bits, half up, in place."""
    return x.mul_(2.0**-bits).add_(0.5).floor_()


_C: Mapping[str, int] = {
    name: round(float(f"{name[0]}.{name[1:]}") * 2**_CONST)
    for name in (
        "0298631336", "0390180644", "0541196100", "0765366865", "0899976223", "1175875602", "1501321110", "1847759065",
        "1961570560", "2053119869", "2562915447", "3072711026",
    )
}  # fmt: skip
"""Constants of Loeffler, Ligtenberg & Moschytz (ICASSP 1989) in 13 fractional bits, each rounded by itself as in libjpeg."""


def _odd(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """The odd half, which both directions share: from (7, 5, 3, 1) or their differences, in whole numbers."""
    z1, z2, z3, z4 = a + d, b + c, a + c, b + d
    z5 = (z3 + z4) * _C["1175875602"]
    z1, z2 = -z1 * _C["0899976223"], -z2 * _C["2562915447"]
    z3, z4 = z5 - z3 * _C["1961570560"], z5 - z4 * _C["0390180644"]
    return (
        a * _C["0298631336"] + z1 + z3,
        b * _C["2053119869"] + z2 + z4,
        c * _C["3072711026"] + z2 + z3,
        d * _C["1501321110"] + z1 + z4,
    )


def _forward_line(d: list[int]) -> list[int]:
    """Coefficients of eight samples, in units of 2^-13."""
    s, t = [d[i] + d[7 - i] for i in range(4)], [d[i] - d[7 - i] for i in range(4)]
    outer, inner = s[0] - s[3], s[1] - s[2]
    z = (outer + inner) * _C["0541196100"]
    seven, five, three, one = _odd(t[3], t[2], t[1], t[0])
    even = [(s[0] + s[3] + s[1] + s[2]) << _CONST, z + outer * _C["0765366865"], (s[0] + s[3] - s[1] - s[2]) << _CONST]
    return [even[0], one, even[1], three, even[2], five, z - inner * _C["1847759065"], seven]


def _backward_line(c: list[int]) -> list[int]:
    """Samples of eight coefficients, in units of 2^-13."""
    z = (c[2] + c[6]) * _C["0541196100"]
    low, high = z - c[6] * _C["1847759065"], z + c[2] * _C["0765366865"]
    plus, minus = (c[0] + c[4]) << _CONST, (c[0] - c[4]) << _CONST
    even = [plus + high, minus + low, minus - low, plus - high]
    seven, five, three, one = _odd(c[7], c[5], c[3], c[1])
    odd = [one, three, five, seven]
    return [e + o for e, o in zip(even, odd, strict=True)] + [e - o for e, o in zip(even[::-1], odd[::-1], strict=True)]


def _matrix(line: Callable[[list[int]], list[int]]) -> Tensor:
    """What a line does to each of eight unit vectors, float64 (8, 8): out from in."""
    columns = [line([int(i == j) for j in range(_SIDE)]) for i in range(_SIDE)]
    return torch.tensor(columns, dtype=torch.float64).T


@lru_cache(maxsize=1)
def _forward() -> Tensor:
    return _matrix(_forward_line)


@lru_cache(maxsize=1)
def _backward() -> Tensor:
    return _matrix(_backward_line)


@facts(version=2, level="quality", harder="down", family="digital", own=True)
def jpeg_thumbnail(x: Tensor, level: float, *, draws: Draws) -> Tensor:
    """Images shrunk to a quarter of their side, written as JPEG of quality ``level``, and enlarged again; (N, C, H, W).

    For the enlarged 8 x 8 digits, on whose smooth 32 x 32 pictures JPEG itself costs next to nothing.

    Raises:
        DataError: Neither one nor three channels.
    """
    if not len(x):
        return x
    small = functional.interpolate(x, size=(max(1, x.shape[2] // 4), max(1, x.shape[3] // 4)), mode="area")
    stored = jpeg(small, level, draws=draws)
    return functional.interpolate(stored, size=x.shape[2:], mode="bilinear", align_corners=False).clamp(0, 1)
