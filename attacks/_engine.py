"""The cascade's bookkeeping: stages over whole sets of samples, each stage's finds confirmed before they count.

What a stage attacks is decided from the state of *all* samples, between stages. So results depend neither on how many
samples are held at once nor on which worker holds them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robench.devices import is_out_of_memory, tf32
from robench.inference import predict
from robench.judge import judge
from robench.ops.norms import dual_size
from robench.ops.precision import bears_channels_last, lowered
from robench.ops.random import Draws
from robench.progress import Progress, silent
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import BOOKS, Victim

VERSION = 1
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

log = logging.getLogger(__name__)

Attack = Callable[[Victim, Draws], None]
"""What a stage does to a victim's unbroken samples."""

WIDTHS = (8, 16, 24, 32, 48)
"""Batches narrower than the run's, for stages that few samples meet: a pass over a deep net costs what it is wide."""


@dataclass(frozen=True)
class Stage:
    """One line of the waterfall."""

    name: str
    access: str
    """What the stage saw: ``white``, ``score``, ``decision`` or ``transfer``."""
    given: int
    broken: int
    remaining: int
    seconds: float
    forwards: int
    backwards: int


@dataclass
class Engine:
    """N samples under attack; what is stored between stages lies on the CPU, what is searched on the device."""

    model: nn.Module
    """Already in eval mode and float32."""
    x: Tensor
    """(N, ...), float32 in [0, 1]."""
    y: Tensor
    """Labels (N,)."""
    ids: Tensor
    """Sample ids (N,)."""
    threat: ThreatModel
    seed: int = 0
    device: str = "cpu"
    width: int = 64
    hold: int = 1024
    """Samples searched at once; bounds the memory of a stage."""
    precision: str = "float32"
    """Precision of the search after ``lower``."""
    task: Task = CLASSIFICATION
    waterfall: list[Stage] = field(default_factory=list)
    escalated: list[str] = field(default_factory=list)
    """Why the protocol went beyond its ordinary stages."""
    draws: int = 0
    """How many draws a find of a randomised model is judged by; 0 for the two looks that any other is judged by."""
    source: nn.Module | None = None
    """Another model that stages search on instead; what they find counts only as the model itself sees it."""
    rough: bool = False
    """Whether that is the model itself in lower precision: what it breaks and the model does not is searched again."""
    channels_last: bool = False
    """Whether searches ask the model with images that lie channels-last in memory."""
    prefix: str = ""
    """What the names of the stages begin with."""
    surrogate: nn.Module | None = None
    """A second model that the runner gives to protocols that transfer from one: the parent of a compressed model."""
    watch: Progress = silent
    """Called before each stage with its name, how many samples are broken and how many there are."""

    def __post_init__(self) -> None:
        self.books = {name: torch.zeros(len(self.x), dtype=torch.int64) for name in BOOKS}
        self.unconfirmed = torch.zeros(len(self.x), dtype=torch.int64)
        """How often a copy in lower precision broke a sample and the model itself did not, at that point."""
        self.forget()

    def forget(self) -> None:
        """Begin anew, with every sample unbroken; passes and the waterfall stay."""
        count = len(self.x)
        self.narrow = self.width
        """Width of the batches of the stage under way."""
        self.best = self.x.clone()
        self.best_margin = torch.full((count,), torch.inf)
        self.slope = torch.ones(count)
        self.broken = torch.zeros(count, dtype=torch.bool)
        self.stage = torch.full((count,), -1, dtype=torch.int64)
        self.clean: Tensor | None = None
        self.order: Tensor | None = None

    def survivors(self) -> Tensor:
        """Positions of the samples that nothing broke, int64."""
        return (~self.broken).nonzero()[:, 0]

    def closest(self, share: float, *, least: int = 0, besides: Tensor | None = None) -> Tensor:
        """The share of the survivors that is nearest to the boundary, at least ``least``, without the positions ``besides``.

        Nearness is the missing part of eps if the margin were linear: best margin / (eps · dual norm of its gradient).
        """
        rows = self._besides(besides)
        count = min(len(rows), max(least, round(share * len(rows))))
        missing = self.best_margin[rows] / self.slope[rows].clamp_min(1e-12)
        return rows[missing.argsort(stable=True)[:count]].sort().values

    def sample(self, count: int, stage: str, *, besides: Tensor | None = None) -> Tensor:
        """At most ``count`` survivors drawn by their ids, other than those at the positions ``besides``."""
        rows = self._besides(besides)
        luck = Draws(self.seed, self.ids[rows]).bits(stage, (1,))[:, 0]
        return rows[luck.argsort(stable=True)[:count]].sort().values

    def _besides(self, positions: Tensor | None) -> Tensor:
        rows = self.survivors()
        return rows if positions is None else rows[~torch.isin(rows, positions)]

    def run(self, name: str, attack: Attack, rows: Tensor | None = None, *, access: str = "white", copies: int = 0) -> int:
        """Run a stage on survivors (all of them by default); returns how many it broke, confirmed by the judge.

        With ``copies``, how many of each sample share a batch in this stage, batches are no wider than they need to be.
        """
        self.watch(f"{self.prefix}{name}, broken so far", int(self.broken.sum()), len(self.x))
        start, before = time.perf_counter(), {k: int(v.sum()) for k, v in self.books.items()}
        rows = self.survivors() if rows is None else rows
        self.narrow = self._fitting(len(rows) * copies)
        for part in rows.split(self.hold) if len(rows) else ():
            self._search(attack, part, access)
        self.narrow = self.width
        fallen = rows[self.broken[rows]]
        self.stage[fallen] = len(self.waterfall)
        spent = {k: int(v.sum()) - before[k] for k, v in self.books.items()}
        told = (len(rows), len(fallen), int((~self.broken).sum()), time.perf_counter() - start)
        self.waterfall.append(Stage(self.prefix + name, access, *told, spent["forwards"], spent["backwards"]))
        return len(fallen)

    def _fitting(self, count: int) -> int:
        """The least of the widths that a batch of ``count`` fits; it follows from the whole stage, not from what is held."""
        return min((w for w in WIDTHS if count and count <= w < self.width), default=self.width)

    @contextmanager
    def searching(self, source: nn.Module, prefix: str) -> Iterator[None]:
        """Inside, stages search on ``source``, a model with as many outputs, and their names begin with the prefix."""
        held = self.source, self.rough, self.prefix, self.clean
        self.source, self.rough, self.prefix = source, False, prefix
        try:
            yield
        finally:
            self.source, self.rough, self.prefix, self.clean = held

    def lower(self) -> None:
        """Search faster from here on, where the model bears it: in ``precision``, or in float32 on channels-last images."""
        if len(self.x):
            self.channels_last = bears_channels_last(self.model, self.x[: self.width].to(self.device))
        if self.precision != "float32" and len(self.x):
            self.source = lowered(self.model, self.x[: self.width].to(self.device), precision=self.precision)
            self.rough = self.source is not None
            if self.source is None:
                log.warning("no copy of the model in %s agrees with it: the search is in float32", self.precision)

    def _search(self, attack: Attack, rows: Tensor, access: str, *, exact: bool = False) -> None:
        """The stage on samples that are held together; when memory runs out, fewer are held from here on.

        What a copy in lower precision, or the model asked channels-last, broke and the judge does not confirm is searched
        again on the model as the judge asks it (``exact``).
        """
        source = None if exact else self.source
        victim = self._victim(rows, access, source)
        victim.channels_last = self.channels_last and source is None and not exact
        try:
            with tf32(self.precision == "tf32" and self.rough and not exact):
                attack(victim, Draws(self.seed, self.ids[rows].to(self.device)))
            claimed = victim.broken.clone()
            if source is not None:
                self._reread(victim, source)
            self._confirm(victim)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
            self.hold = max(1, len(rows) // 2)
            log.warning("out of memory: %d samples are held at once from here on", self.hold)
            for part in rows.split(self.hold):
                self._search(attack, part, access, exact=exact)
            return
        self._take(victim, rows, elsewhere=source is not None)
        again = rows[(claimed & ~victim.broken).cpu()]
        rough = self.rough and source is not None
        self.unconfirmed[again] += int(rough)
        if len(again) and (rough or victim.channels_last):
            self._search(attack, again, access, exact=True)

    def _victim(self, rows: Tensor, access: str, source: nn.Module | None = None) -> Victim:
        x, y = self.x[rows].to(self.device), self.y[rows].to(self.device)
        model = self.model if source is None else source
        victim = Victim(model, x, y, threat=self.threat, task=self.task, width=self.narrow, access=access)
        victim.best, victim.best_margin = self.best[rows].to(x), self.best_margin[rows].to(x)
        if source is not None:
            victim.best_margin.fill_(torch.inf)
        victim.slope = self.slope[rows].to(x)
        victim.clean = None if self.clean is None else self.clean[rows].to(x)
        victim.order = None if self.order is None else self.order[rows].to(x.device)
        return victim

    def _confirm(self, victim: Victim) -> None:
        """Have the judge look at what broke; what it does not confirm goes on unbroken, from its clean image."""
        found = victim.broken.nonzero()[:, 0]
        if not len(found):
            return
        victim.best[found] = victim.ball[found].project(victim.best[found])
        told: dict[str, Any] = {"threat": self.threat, "task": self.task, "width": self.width}
        verdicts = judge(self.model, victim.x[found], victim.y[found], x_adv=victim.best[found], **told)
        victim.forwards[found] += 2
        doubtful = found[~verdicts.broken(self.task) | verdicts.unstable]
        victim.broken[doubtful], victim.best_margin[doubtful] = False, torch.inf
        victim.best[doubtful] = victim.x[doubtful]

    def _reread(self, victim: Victim, source: nn.Module) -> None:
        """What the model itself says of the points that another one led to."""
        outputs = predict(self.model, victim.best, width=self.width)
        for name in BOOKS:
            getattr(victim, name).mul_(getattr(source, "passes", 1))
        victim.best_margin = self.task.margin(outputs, victim.y).to(victim.best_margin).nan_to_num(torch.inf)
        victim.forwards += 1
        victim.broken = victim.best_margin <= 0

    def _take(self, victim: Victim, rows: Tensor, *, elsewhere: bool = False) -> None:
        """Keep what a stage found; of another model's points those that the model itself prefers to the earlier ones."""
        for name in BOOKS:
            self.books[name][rows] += getattr(victim, name).cpu()
        if elsewhere:
            better = victim.best_margin.cpu() < self.best_margin[rows]
            rows, victim = rows[better], victim.part(better.nonzero()[:, 0].to(victim.x.device))
        self.best[rows], self.best_margin[rows] = victim.best.cpu(), victim.best_margin.cpu()
        self.slope[rows], self.broken[rows] = victim.slope.cpu(), victim.broken.cpu()

    def look(self, name: str = "clean") -> None:
        """Ask for the clean images: what is wrong already counts as broken, logits are kept for the later stages."""
        parts: list[Tensor] = []
        self.run(name, lambda victim, draws: parts.append(victim.clean_logits().cpu()), access="score")
        self.clean = torch.cat(parts) if parts else None

    def rank(self, most: int = 9) -> None:
        """Order the wrong classes of every survivor by linearised distance, nearest first.

        Source: Melamed et al., NeurIPS 2024 (MALT), with the dual norm of the threat.
        """
        found: dict[int, Tensor] = {}

        def rank(victim: Victim, draws: Draws) -> None:
            found.update(zip(draws.ids.tolist(), _nearest(victim, most).cpu(), strict=True))

        self.run("rank", rank)
        if found:
            rows = torch.tensor([i in found for i in self.ids.tolist()])
            self.order = torch.zeros(len(self.x), len(next(iter(found.values()))), dtype=torch.int64)
            self.order[rows] = torch.stack([found[i] for i in self.ids[rows].tolist()])


def _nearest(victim: Victim, most: int) -> Tensor:
    """The wrong classes with the smallest linearised distance, int64 (N, at most ``most``)."""
    logits = victim.clean_logits()
    wrong = logits.scatter(1, victim.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    candidates = wrong[:, : min(2 * most, logits.shape[1] - 1)]
    every = torch.arange(len(logits), device=logits.device)
    sizes = torch.cat([_slopes(victim, rows, candidates[rows]) for rows in every.split(victim.width)])
    gaps = logits.gather(1, victim.y[:, None]) - logits.gather(1, candidates)
    return candidates.gather(1, (gaps / sizes.clamp_min(1e-12)).argsort(dim=1, stable=True)[:, :most])


def _slopes(victim: Victim, rows: Tensor, classes: Tensor) -> Tensor:
    """Dual norm of the gradient of each class's gap to the label at the clean images, (n, T)."""
    _, gradients = victim.class_gradients(victim.x[rows], rows, classes)
    return torch.stack([dual_size(gradients[:, k], victim.threat.norm) for k in range(classes.shape[1])], 1)
