"""What a scenario is given, and how it walks over samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.data.dataset import Dataset
from robench.devices import is_out_of_memory
from robench.spec import Cell, Context
from robench.workshop import Model, fresh_model, load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hold:
    """Samples held at once, on the device."""

    x: Tensor
    """(N, C, H, W), in [0, 1]."""
    y: Tensor
    """Labels (N,)."""
    ids: Tensor
    """Sample ids (N,)."""
    width: int
    """Padded width of every forward."""


@dataclass(frozen=True)
class Objects:
    """A cell's live objects."""

    cell: Cell
    context: Context
    model: Model
    data: Dataset
    fresh: Callable[[], nn.Module] | None = None
    """Builds another copy of the network, which has met no image; None where there is no way to get one."""

    @property
    def net(self) -> nn.Module:
        """The network under test."""
        return self.model.net

    def extra(self, position: int) -> Any:
        """One of the cell's further artifacts, loaded."""
        return load(self.cell.extra[position], self.context)

    def sharded(self, whole: Any) -> Any:
        """The cell's slice of something that has the cell's samples in order, and ``take``."""
        index, count = self.cell.shard
        return whole.take(torch.arange(index, len(whole), count)) if count > 1 else whole

    def shard(self) -> Dataset:
        """The cell's slice of the samples."""
        part: Dataset = self.sharded(self.data)
        return part

    def holds(self, data: Dataset | None = None, *, size: int | None = None) -> Iterator[Hold]:
        """The samples, ``batch_size`` at a time, or ``size`` where the numbers would depend on their company."""
        device = self.context.device
        for x, y, ids in (self.shard() if data is None else data).batches(size or self.context.batch_size):
            yield Hold(x.to(device), y.to(device), ids.to(device), self.cell.settings.width)


def open_cell(cell: Cell, context: Context) -> Objects:
    """Load what a cell needs."""
    return Objects(
        cell,
        context,
        load(cell.model, context),
        load(cell.data, context),
        fresh=lambda: fresh_model(cell.model, context).net,
    )


def walk(holds: Iterator[Hold], measure: Callable[[Hold], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of every hold; when memory runs out, the hold is halved and the walk goes on."""
    rows: list[dict[str, Any]] = []
    for hold in holds:
        rows.extend(_halving(hold, measure))
    return rows


def _halving(hold: Hold, measure: Callable[[Hold], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return measure(hold)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(hold.y) == 1:
            raise
    middle = len(hold.y) // 2
    log.warning("out of memory: the batch of %d is halved", len(hold.y))
    parts = (slice(0, middle), slice(middle, None))
    halves = [Hold(hold.x[p], hold.y[p], hold.ids[p], hold.width) for p in parts]
    return [row for half in halves for row in _halving(half, measure)]


def columns(**values: Any) -> list[dict[str, Any]]:
    """One dictionary per sample from columns of tensors (N,) and constants."""
    count = max(len(v) for v in values.values() if isinstance(v, Tensor | list))
    lists = {
        k: v.detach().cpu().tolist() if isinstance(v, Tensor) else v if isinstance(v, list) else [v] * count
        for k, v in values.items()
    }
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
