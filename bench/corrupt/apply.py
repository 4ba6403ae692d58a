"""One corruption at one severity, the same for an image whatever its company."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.corrupt import TABLE
from robench.corrupt.tables import Level, level_of
from robench.errors import DataError, must
from robench.ops.random import Draws
from robench.registry import Table

CORRUPTIONS = Table("corruptions", TABLE)
_GUARD = 2.0**-10
"""Part of a grey value that rounding may have cost a pixel that lies on the 8-bit grid."""
_ONE = 0x3F800000
"""The bits of 1.0; those of larger numbers and of NaN are more, and negative numbers' are negative."""


@dataclass(frozen=True)
class StageDraws(Draws):
    """Draws whose every stage carries a prefix, so that each corruption and severity has its own."""

    prefix: str = ""

    def __getitem__(self, rows: Tensor | slice) -> StageDraws:
        return StageDraws(self.seed, self.ids[rows], self.prefix)

    def shorts(self, stage: str, shape: Sequence[int]) -> Tensor:
        """Uniform 16-bit words of the prefixed stage, int32 (N, *shape)."""
        return super().shorts(f"{self.prefix}/{stage}", shape)

    def bits(self, stage: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniform 32-bit words of the prefixed stage, int64 (N, *shape)."""
        return super().bits(f"{self.prefix}/{stage}", shape, step=step)


def corrupt(
    x: Tensor,
    name: str,
    *,
    severity: int,
    table: str | Mapping[str, Sequence[Level]],
    ids: Tensor,
    seed: int = 0,
) -> Tensor:
    """Corrupted images on the 8-bit grid, float32 (N, C, H, W) in [0, 1].

    An image's result depends on its id, the corruption, the severity and the seed only. Random corruptions draw anew at
    every severity, as the published data sets do.

    Args:
        x: Clean images, float32 (N, C, H, W) in [0, 1].
        name: Entry of ``robench.corrupt.TABLE``, or a third party's.
        severity: 1 (mild) to 5.
        table: Name of a severity table (``robench.corrupt.tables.TABLES``), or one's content.
        ids: Sample ids, int64 (N,).
        seed: Seed of the noise.

    Raises:
        ConfigError: Unknown corruption or table, a corruption the table lacks, or a severity outside 1..5.
        DataError: Images that are not float32 (N, C, H, W) in [0, 1], or ids that do not match them.

    Source: Hendrycks & Dietterich, ICLR 2019; truncation to 8 bits as in ``make_cifar_c.py``.
    """
    CORRUPTIONS[name]
    return corrupt_at(x, name, level_of(table, name, severity), severity=severity, ids=ids, seed=seed)


def corrupt_at(x: Tensor, name: str, level: Level, *, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
    """Images corrupted at any level, with the random draws of ``severity``; shapes and errors as in ``corrupt``."""
    _check(x, ids)
    draws = StageDraws(seed, ids.to(x.device), f"{name}/{severity}")
    entry = CORRUPTIONS[name]
    found: Tensor = entry.load()(x, level, draws=draws)
    if entry.facts.get("grid"):
        return found
    return _cut(found) if name in TABLE else truncated(found)  # ours are new tensors


def truncated(x: Tensor) -> Tensor:
    """Pixels clipped to [0, 1] and cut (not rounded) to multiples of 1/255, as ``numpy.uint8`` does."""
    return _cut(x.float().clamp(0, 1))


def _cut(x: Tensor) -> Tensor:
    """``truncated``, in place."""
    return x.clamp_(0, 1).mul_(255).add_(_GUARD).floor_().div_(255)


def _check(x: Tensor, ids: Tensor) -> None:
    if x.dim() != 4 or x.dtype != torch.float32:
        raise DataError(must("images", "float32 (N, C, H, W)", (str(x.dtype), tuple(x.shape)), "convert them first"))
    if ids.shape != x.shape[:1]:
        raise DataError(must("ids", f"of shape ({len(x)},)", tuple(ids.shape), "give one id per image"))
    if x.numel() and not _surely_in_range(x):
        low, high = torch.aminmax(x)
        if not (low >= 0 and high <= 1):
            raise DataError(must("pixels", "in [0, 1]", (low.item(), high.item()), "divide 8-bit images by 255"))


def _surely_in_range(x: Tensor) -> bool:
    """Whether float32 pixels are in [0, 1] and none is -0: in the order of their bits, three times as fast to tell."""
    low, high = torch.aminmax(x.view(torch.int32))
    return bool(low >= 0 and high <= _ONE)
