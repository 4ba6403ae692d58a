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


@facts(version=2, level="quality", harder="down", family="digital")
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
        return _coded(pixels[:, 0], bright)[:, None] / 255
    y, cb, cr = _to_ycc(pixels)
    size = (x.shape[-2], x.shape[-1])
    halves = torch.cat([_halved(cb), _halved(cr)])
    halves = _doubled(_coded(halves, colour), size)
    return _to_rgb(_coded(y, bright), *halves.split(len(x))) / 255


@lru_cache(maxsize=32)
def quantisation(quality: int) -> tuple[Tensor, Tensor]:
    """The steps of brightness and of colour at a quality, float64 (8, 8) each, as Pillow writes them into a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization  # type: ignore[attr-defined]
    first, second = (torch.tensor(tables[i], dtype=torch.float64).reshape(_SIDE, _SIDE) for i in (0, 1))
    return first, second


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brightness and colours, whole float32 (N, H, W) each, in libjpeg's fixed point; float32 holds every sum."""
    planes = rgb.transpose(0, 1).flatten(1)
    parts = torch.tensor([[19595.0, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]], device=rgb.device)
    half = torch.tensor([[_HALF], [_HALF - 1], [_HALF - 1]], device=rgb.device)
    whole = (parts @ planes).add_(half).mul_(_UNIT).floor_()
    whole[1:] += 128
    y, cb, cr = whole.reshape(3, len(rgb), *rgb.shape[2:])
    return y, cb, cr


def _to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """Colour again, whole float32 (N, 3, H, W) in 0..255."""
    cb, cr = cb - 128, cr - 128
    found = torch.stack([cr * 91881, (cb * -22554).sub_(cr * 46802), cb * 116130], dim=1)
    return found.add_(_HALF).mul_(_UNIT).floor_().add_(y[:, None]).clamp_(0, 255)


def _halved(plane: Tensor) -> Tensor:
    """A colour at half the size, means of 2 x 2 pixels rounded down and up in turn along a row."""
    height, width = plane.shape[-2:]
    blocks = 2 * _SIDE * math.ceil(width / (2 * _SIDE))
    plane = _grown(plane, height + height % 2, blocks)
    sums = plane[:, ::2, ::2] + plane[:, 1::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, 1::2]
    bias = torch.arange(blocks // 2, device=plane.device) % 2 + 1
    return ((sums + bias) / 4).floor_()


def _grown(plane: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W) with its last row and column repeated."""
    return functional.pad(plane[:, None], (0, width - plane.shape[-1], 0, height - plane.shape[-2]), mode="replicate")[:, 0]


def _doubled(half: Tensor, size: tuple[int, int]) -> Tensor:
    """Colours at full size: three parts of the nearest, one of the next, first along columns, then along rows.

    Source: libjpeg, ``h2v2_fancy_upsample`` (what lies outside the halved image repeats its edge).
    """
    rows, cols = ((extent + 1) // 2 for extent in size)
    half = half[:, :rows, :cols]
    if cols <= 2:  # libjpeg repeats the pixels of so narrow an image
        return half.repeat_interleave(2, -2).repeat_interleave(2, -1)[:, : size[0], : size[1]]
    sums = _mixed(half, dim=-2)
    full = _mixed(sums, dim=-1)
    full[..., ::2] += 8
    full[..., 1::2] += 7
    return full.mul_(1 / 16).floor_()[:, : size[0], : size[1]]


def _mixed(plane: Tensor, *, dim: int) -> Tensor:
    """Twice as many rows or columns: 3 * own + the one before, and 3 * own + the one after; (N, H, W)."""
    count = plane.shape[dim]
    here = torch.arange(count, device=plane.device)
    parts = [plane.index_select(dim, (here + away).clamp(0, count - 1)).add_(plane, alpha=3) for away in (-1, 1)]
    wide = plane.shape[-1] * (2 if dim == -1 else 1)
    return torch.stack(parts, dim=dim).reshape(len(plane), -1, wide)


def _coded(plane: Tensor, steps: Tensor) -> Tensor:
    """A plane (N, H, W) of 0..255 with its cosine coefficients rounded to multiples of ``steps``, whole float32."""
    height, width = plane.shape[-2:]
    plane = _grown(plane, _SIDE * math.ceil(height / _SIDE), _SIDE * math.ceil(width / _SIDE))
    count, tall, wide = plane.shape
    blocks = plane.reshape(count, tall // _SIDE, _SIDE, wide // _SIDE, _SIDE).permute(2, 4, 0, 1, 3).double().sub_(128)
    shape = blocks.shape
    found = _twice(blocks.reshape(_SIDE, _SIDE, -1), _forward(), _CONST - _PASS1, _CONST + _PASS1)
    steps = steps[..., None] * _SIDE
    levels = ((found.abs() + steps / 2) / steps).floor_().mul_(found.sign())
    back = _twice(levels.mul_(steps / _SIDE), _backward(), _CONST - _PASS1, _CONST + _PASS1 + 3, columns_first=True)
    back = back.add_(128).clamp_(0, 255).float().reshape(shape)
    return back.permute(2, 3, 0, 4, 1).reshape(count, tall, wide)[:, :height, :width]


def _twice(blocks: Tensor, matrix: Tensor, first: int, second: int, *, columns_first: bool = False) -> Tensor:
    """Blocks (8 rows, 8 columns, B) through a matrix along each side, rounded half up to 2^first, then to 2^second."""
    matrix = matrix.to(blocks.device)
    for i, bits in enumerate((first, second)):
        along_rows = (i == 0) == columns_first
        turned = blocks if along_rows else blocks.transpose(0, 1)
        done = (matrix @ turned.reshape(_SIDE, -1)).mul_(2.0**-bits).add_(0.5).floor_().reshape(turned.shape)
        blocks = done if along_rows else done.transpose(0, 1)
    return blocks


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
