"""What an attack left, judged once more by a copy of the model that has met no image of the data set.

A model that remembers the images it met first, and answers alike near them, looks robust to whoever judges with the same
instance. A copy that meets the attack's images first has nothing to remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robench.devices import is_out_of_memory
from robench.errors import NoGradientError, one_line
from robench.inference import predict, untouched
from robench.ops.norms import steepest
from robench.ops.random import Draws
from robench.scenarios.objects import Hold
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import Victim

SURVIVORS, FALLEN = 256, 32
"""Images judged again: of samples that stayed right (the number rests on them), and of some that were broken."""

CLIMBED, STEPS = 64, 10
"""Survivors that a short ascent leads away besides, and its steps: a model that answers alike near what it remembers gives
every point of the ball the same margin, so that an attack's best point may be the clean image itself."""

MOST = 160
"""Most characters of an error in a row's note."""

TOLERANCE = 0.02
"""Difference of two margins, over the size of the logits, that rounding in another batch may make: a model that computes
in bfloat16 has 8 bits (0.004) a layer."""

Row = dict[str, Any]


class _Kept(NamedTuple):
    x: Tensor
    x_adv: Tensor
    label: Tensor
    sample: Tensor
    row: Row


@dataclass
class FreshCopy:
    """Collects images and verdicts while a cell is measured, and holds them against a fresh copy at its end."""

    make: Callable[[], nn.Module] | None
    """Builds the copy, on the device of the images; None where there is no way to get one."""
    model: nn.Module
    """The instance that was attacked."""
    threat: ThreatModel
    task: Task = CLASSIFICATION
    survivors: list[_Kept] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Rows that a copy could vouch for: attacked without a failure, judged alike in both batches, and not random."""
    fallen: list[_Kept] = field(default_factory=list)
    width: int = 64

    def add(self, hold: Hold, x_adv: Tensor, rows: list[Row]) -> None:
        """Keep some of a batch's images; their rows get ``fresh_copy_agrees`` and ``fresh_copy_note`` at the end."""
        self.width = hold.width
        for row, x, last, label, sample in zip(rows, hold.x, x_adv, hold.y, hold.ids, strict=True):
            if row["status"] != "ok" or row["draws"] or row["unstable"] or not row["score_clean"]:
                continue
            self.rows.append(row)
            kept, most = (self.survivors, SURVIVORS) if row["score_adv"] else (self.fallen, FALLEN)
            if len(kept) < most:
                x, last, label, sample = (image.detach().clone() for image in (x, last, label, sample))
                kept.append(_Kept(x, last, label, sample, row))

    def judge(self) -> None:
        """Write into the rows whether the copy decides as the model did: 1, or 0 where it clearly does not.

        Where there is no copy that answers, no row gets a value, and every row says why.
        """
        left = [*self.survivors[::-1], *self.fallen]
        if not left:
            return
        if self.make is None:
            self._note(self.rows, "no copy of the model can be built")
            return
        climbed = self.survivors[:CLIMBED]
        last = self._climb(climbed)
        points = torch.stack([*last, *(kept.x_adv for kept in left)])
        judged = [*climbed[: len(last)], *left]
        y = torch.stack([kept.label for kept in judged])
        own = self.task.margin(predict(self.model, points, width=self.width), y)
        outputs = self._copied(self.make, points)
        if outputs is None:
            return
        apart = self._apart(own, outputs, y).tolist()
        for kept in judged:
            kept.row["fresh_copy_agrees"] = 1.0
        for kept, differs in zip(judged, apart, strict=True):
            if differs:
                kept.row["fresh_copy_agrees"] = 0.0

    def _copied(self, make: Callable[[], nn.Module], points: Tensor) -> Tensor | None:
        """What a copy answers; None where there is none, which the rows are told."""
        try:
            copied = make()
            with untouched(copied):
                return predict(copied, points, width=self.width)
        except Exception as error:  # building and asking it is a user's code
            if is_out_of_memory(error):
                raise
            self._note(self.rows, f"no copy of the model answers ({_why(error)})")
            return None

    def _note(self, rows: list[Row], why: str) -> None:
        for row in rows:
            row["fresh_copy_note"] = why

    def _apart(self, own: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        """Where a margin and that of other outputs decide differently and are further apart than rounding, bool (n,)."""
        margin, size = self.task.margin(outputs, y), outputs.flatten(1).norm(dim=1)
        return ((margin > 0) != (own > 0)) & ~((margin - own).abs() <= TOLERANCE * size)

    def _climb(self, chosen: list[_Kept]) -> Tensor:
        """The last points of a short projected ascent from random starts, (n, ...); none where there is no gradient."""
        if not chosen or self.threat.eps == 0 or math.isinf(self.threat.eps):
            return torch.zeros(0)
        x, y, ids = (torch.stack(each) for each in zip(*((k.x, k.label, k.sample) for k in chosen), strict=True))
        victim = Victim(self.model, x, y, threat=self.threat, task=self.task, width=self.width)
        rows, draws = torch.arange(len(y), device=y.device), Draws(0, ids)
        points = victim.ball.random(draws, "fresh_copy")
        loss = "margin" if "margin" in self.task.losses else next(iter(self.task.losses))
        size = 2.5 / STEPS * radius(self.threat, x)  # so that a start on one side of the ball reaches the other
        try:
            for _ in range(STEPS):
                gradient = victim.gradient(points, rows, loss).gradient.nan_to_num(0.0, 0.0, 0.0)
                points = victim.ball.project(points + size * steepest(gradient, self.threat.norm))
        except (NoGradientError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            self._note([kept.row for kept in chosen], f"no ascent led away from the attack's images ({_why(error)})")
            return torch.zeros(0)
        return points


def _why(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", MOST)


def radius(threat: ThreatModel, x: Tensor) -> float:
    """The ball's radius in the norm that ``steepest`` has unit steps in, at most what crosses the box."""
    if threat.norm == "linf":
        return min(threat.eps, 1.0)
    side = math.sqrt(x[0].numel())
    return side if threat.norm == "l0" else min(threat.eps, side)
