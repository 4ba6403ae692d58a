"""What a protocol asks of a model before it searches, and other models to search on where the gradients mislead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from robench.attacks._engine import Engine
from robench.bpda import bridged
from robench.devices import is_out_of_memory
from robench.errors import NoGradientError, RobenchError, described, one_line
from robench.inference import predict
from robench.masking import diagnose
from robench.ops.chance import seeded
from robench.ops.random import Draws
from robench.probing import FORWARDS, along, differ, geometry, slopes
from robench.spec import ThreatModel
from robench.thresholds import ASTRAY, UNBRIDGED
from robench.victim import BOOKS, Victim

VERSION = 2
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""

log = logging.getLogger(__name__)

PROBED, SHOWN = 32, 8
"""Correct samples that are probed, drawn by their ids, and how many of them the layers are looked at with."""

NOISE, MOST_NOISE = 0.5, 0.25
"""Size of the noise per pixel, in parts of the ball's, and at most: its mean slopes over half the distance an attack may
go, and a quarter of the box still leaves an image where the threat is unbounded. Not tuned."""

PARTLY, MOST = "only one kind of substitute gradients could be tried", 160
"""What is told where one of two copies failed, and most characters of the error."""

COPIES = 8
"""Noisy copies of an image whose mean output a smoothed model gives."""


@dataclass(frozen=True)
class Source:
    """A model to search on in place of the one attacked."""

    name: str
    model: nn.Module
    layers: tuple[str, ...] = ()
    """What got a substitute gradient."""


@dataclass
class Flags:
    """What the probe found."""

    random: bool = False
    missing: str = ""
    """Why there is no gradient at all."""
    troubles: list[str] = field(default_factory=list)
    """What is wrong with the gradients."""
    sources: list[Source] = field(default_factory=list)


def begin(engine: Engine) -> Flags:
    """Ask for the clean images, and probe a few of those that are right; the reasons to escalate go to the engine.

    The points that the probe looks at count for nothing but its cost, so that a model without a flag is searched as if
    there were no probe. It costs 39 forward and 6 backward passes on 32 samples.
    """
    with seeded(engine.seed, "probe.clean", device=engine.device):
        engine.look()
    flags, rows = Flags(), engine.sample(PROBED, "probe")
    with _held_together(engine):
        engine.run("probe", lambda victim, draws: _probe(flags, victim, draws), rows)
    engine.escalated += ["the model's output is random"] if flags.random else []
    engine.escalated += flags.troubles
    if flags.troubles:
        substitutes(engine, flags)
    return flags


def substitutes(engine: Engine, flags: Flags) -> None:
    """Look for layers that need substitute gradients; the copies go to the flags, the layers' names to the reasons.

    So does why a copy could not be made or asked; of a model without any gradient the protocol says so when it ends.
    """
    with seeded(engine.seed, "probe.sources", device=engine.device):
        flags.sources, failed = _sources(engine, torch.arange(min(SHOWN, len(engine.x))))
    if failed and not flags.missing:
        engine.escalated.append(f"{PARTLY if flags.sources else UNBRIDGED} ({', '.join(failed)})")
    layers = sorted({layer for source in flags.sources for layer in source.layers})
    engine.escalated += [f"substitute gradients for {', '.join(layers)}"] if layers else []


@contextmanager
def _held_together(engine: Engine) -> Iterator[None]:
    held = engine.hold
    engine.hold = max(held, PROBED)
    try:
        yield
    finally:
        engine.hold = held


def _probe(flags: Flags, victim: Victim, draws: Draws) -> None:
    """Fill in what looks at a victim's samples tell, and charge them."""
    looks, device = [], victim.x.device
    for draw in range(FORWARDS):
        with seeded(draws.seed, "probe", draw=draw, device=device):
            looks.append(predict(victim.model, victim.x, width=victim.width))
    flags.random = any(bool(differ(looks[0], other).any()) for other in looks[1:])
    model = Still(victim.model, draws.seed) if flags.random else victim.model
    part = Victim(model, victim.x, victim.y, threat=victim.threat, task=victim.task, width=victim.width)
    try:
        flags.troubles = _troubles(part, draws, None if flags.random else looks[0])
    except NoGradientError as error:
        flags.missing = str(error)
        flags.troubles = ["the model returns no gradient"]
    victim.forwards += FORWARDS + part.forwards
    victim.backwards += part.backwards


def _troubles(victim: Victim, draws: Draws, before: Tensor | None) -> list[str]:
    """What is wrong with the gradients at the images and at random points of their balls, by the verdict's limits."""
    rows = torch.arange(len(victim.x), device=victim.x.device)
    start = victim.ball.random(draws, "probe")
    outputs = victim.gradient(victim.x, rows, "ce").outputs
    victim.gradient(start, rows, "ce")
    found = slopes(victim, start, draws) | geometry(victim, start, rows, draws, "probe.start")
    found |= {"zero_gradient": victim.zero_gradients > 0, "nonfinite_gradient": victim.nonfinite_gradients > 0}
    troubles = diagnose({name: column.double().cpu().numpy() for name, column in found.items()})
    changed = before is not None and bool(differ(outputs, before).any())
    return troubles + (["the output changes when a gradient is asked for"] if changed else [])


def survey(engine: Engine, flags: Flags) -> None:
    """Look at the gradients where the search ended on some survivors, and on the lines to there; reasons go to the engine.

    Robustness rests on the survivors: a gradient that is wrong only near the boundary, or for few of the samples, is wrong
    there. It costs 38 forward and 18 backward passes on at most ``PROBED`` samples.
    """
    rows = engine.sample(PROBED, "survey")
    if not len(rows) or flags.missing or flags.troubles:
        return
    with _held_together(engine):
        engine.run("survey", lambda victim, draws: _survey(flags, victim, draws), rows)
    engine.escalated += [f"{ASTRAY}, {trouble}" for trouble in flags.troubles]
    if flags.troubles:
        substitutes(engine, flags)


def _survey(flags: Flags, victim: Victim, draws: Draws) -> None:
    part = Victim(victim.model, victim.x, victim.y, threat=victim.threat, task=victim.task, width=victim.width)
    rows, ends = torch.arange(len(victim.x), device=victim.x.device), victim.best
    found = {f"end_{name}": column for name, column in geometry(part, ends, rows, draws, "survey").items()}
    found |= along(part, ends, rows)
    columns = {name: column.double().cpu().numpy() for name, column in found.items()}
    flags.troubles = diagnose(columns, survived=np.ones(len(victim.x), dtype=bool))
    for name in BOOKS:
        getattr(victim, name).add_(getattr(part, name))


class Still(nn.Module):
    """A randomised model that draws the same at every look."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        with seeded(self.seed, "probe.still", device=x.device):
            outputs: Tensor = self.model(x)
        return outputs


def _sources(engine: Engine, rows: Tensor) -> tuple[list[Source], list[str]]:
    """Copies of the model with substitute gradients, the sparing one first, and why one could not be made or asked.

    No copy and no reason: nothing can be substituted.
    """
    found: list[Source] = []
    failed: dict[str, None] = {}
    x, y = engine.x[rows].to(engine.device), engine.y[rows].to(engine.device)
    for name, thorough in (("bpda", False), ("bpda-thorough", True)):
        try:
            twin, layers = bridged(engine.model, x, thorough=thorough)
            victim = Victim(twin, x, y, threat=engine.threat, task=engine.task, width=engine.width)
            victim.gradient(x, torch.arange(len(x), device=x.device), "margin")
        except (RobenchError, RuntimeError) as error:  # it cannot be copied or traced, or torch refuses a stand-in
            if is_out_of_memory(error):
                raise
            log.warning("no copy with substitute gradients: %s", error)
            failed[one_line(described(error).replace(";", ","), MOST)] = None
            continue
        if layers and tuple(layers) not in [source.layers for source in found]:
            found.append(Source(name, twin, tuple(layers)))
    return found, list(failed)


class Smoothed(nn.Module):
    """A model's mean output over an image with noise: its gradient is the slope over a distance.

    The noise is the same for every image, half the ball's size per pixel.

    Source: Athalye et al., ICML 2018, section 4.2; Tramer et al., NeurIPS 2020, section 5 (k-winners-take-all).
    """

    passes = COPIES
    """Passes of the model that one pass of this one takes."""

    def __init__(self, model: nn.Module, shape: torch.Size, *, threat: ThreatModel, seed: int) -> None:
        super().__init__()
        self.model = model
        size = 1.0 if threat.norm == "linf" else shape.numel() ** -0.5
        ids = torch.arange(COPIES // 2)
        noise = Draws(seed, ids).normal("smoothed", tuple(shape)) * min(NOISE * threat.eps * size, MOST_NOISE)
        self.register_buffer("noise", torch.cat([noise, -noise]).float())
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = self.noise  # type: ignore[assignment]
        total: Tensor = sum(self.model((x + one.to(x)).clamp(0, 1)) for one in noise)  # type: ignore[assignment]
        return total / len(noise)
