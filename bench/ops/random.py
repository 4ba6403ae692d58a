"""Counter-based randomness: a draw depends on (seed, sample id, stage, step, element) and on nothing else.

Philox4x32-10 in torch integers, so that a sample's draws do not depend on its batch, its order or the device.

Source: Salmon et al., SC 2011 (Random123), section 3.3 and its known-answer tests.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_PER_BLOCK = 16
"""16-bit words of a Philox4x64 block."""


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten Philox rounds on four int64 tensors that hold 32-bit words; returns four of the same shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # int64 wraps modulo 2^64, which keeps all 64 bits of the product
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """Random draws for a batch of samples."""

    seed: int
    ids: Tensor
    """Sample ids, int64 (N,)."""

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        return Draws(self.seed, self.ids[rows])

    def bits(self, stage: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniform 32-bit words, int64 (N, *shape); ``step`` may differ by sample, int64 (N,)."""
        size = math.prod(shape)
        blocks = torch.arange((size + 3) // 4, device=self.ids.device)
        ids = self.ids[:, None]
        zero = torch.zeros_like(ids + blocks)
        step = step[:, None] if isinstance(step, Tensor) else step
        counter = (zero + blocks, zero + step, (zero + ids) & _MASK, ((zero + ids) >> 32) & _MASK)
        words = torch.stack(philox(counter, (self.seed & _MASK, zlib.crc32(stage.encode()))), dim=-1)
        return words.flatten(1)[:, :size].reshape(len(self.ids), *shape)

    def uniform(self, stage: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniform float32 in [0, 1), (N, *shape); bit-equal on every device."""
        return (self.bits(stage, shape, step=step) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, stage: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normal float32, (N, *shape): the inverse distribution function in float64, then rounded."""
        middle = ((self.bits(stage, shape, step=step) >> 8).to(torch.float64) + 0.5) * 2.0**-24
        return torch.special.ndtri(middle).to(torch.float32)

    def integers(self, stage: str, shape: Sequence[int], high: int, *, step: int | Tensor = 0) -> Tensor:
        """Uniform integers in [0, high), int64 (N, *shape)."""
        return (self.bits(stage, shape, step=step) * high) >> 32

    def shorts(self, stage: str, shape: Sequence[int]) -> Tensor:
        """Uniform 16-bit words, int32 (N, *shape), for noise on 8-bit images: many, and some 15 times as fast as ``bits``.

        Always drawn on the CPU by numpy's Philox4x64-10, whose raw stream is stable across versions and machines. The draws
        belong to (seed, id, stage, number of elements); sample i owns the counters from i times its number of blocks on.
        """
        size = math.prod(shape)
        blocks = (size + _PER_BLOCK - 1) // _PER_BLOCK
        source = np.random.Philox(key=[self.seed & (2**64 - 1), zlib.crc32(f"{stage}/{size}".encode())])
        found = np.empty((len(self.ids), size), np.int32)
        place = row = 0
        for start, count in _runs(self.ids.tolist()):
            source.advance(((start - place) * blocks) % 2**256)
            words = source.random_raw(count * blocks * 4).astype("<u8", copy=False)
            found[row : row + count] = words.view("<u2").reshape(count, -1)[:, :size]
            place, row = start + count, row + count
        return torch.from_numpy(found).to(self.ids.device).reshape(len(self.ids), *shape)


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of consecutive ids, in the given order."""
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[stop - 1] + 1:
            yield ids[start], stop - start
            start = stop


def permutation(seed: int, stage: str, n: int, *, step: int = 0) -> Tensor:
    """A permutation of 0..n-1 that depends on (seed, stage, step) only."""
    draws = Draws(seed, torch.zeros(1, dtype=torch.int64))
    return torch.argsort(draws.bits(stage, (n,), step=step)[0], stable=True)
