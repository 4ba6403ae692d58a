"""The graph while it is drawn: what is known of the sources, and how artifacts and cells are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from robench import catalog
from robench.errors import ConfigError, UnfitError, must, suggestion
from robench.spec import Artifact, Cell, Ref, Settings
from robench.suite import Suite

TRAIN = 5000
"""Training images, stratified, that predictions on the training split are made of; all where there are fewer."""


@dataclass(frozen=True)
class Sources:
    """What was found out about the named inputs before planning: content hashes, no objects."""

    data: str
    """The data set as named."""
    data_label: str
    splits: Mapping[str, str]
    """Split → content hash."""
    models: Mapping[str, Artifact]
    """Name → source artifact."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """Name → number of the model's logits, where it is known."""
    shape: tuple[int, int, int] | None = None
    """(channels, height, width) of the data's images, where it is known."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further data sets of the user, as named → content hash of their test split."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Data set as named → names of its classes, where they are known."""
    identities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name → what is known of the content of a model that code makes."""
    code: tuple[tuple[str, str], ...] = ()
    """Files of the user's code and of plug-ins that the run rests on: (path, sha256)."""
    ids: frozenset[int] | None = None
    """Ids of the data set's test samples, where they are known."""
    notes: tuple[str, ...] = ()
    """What reading the data set has to say, and which output is which class."""


@dataclass(frozen=True)
class Plan:
    """Levels of artifacts to build in order, then cells; every artifact and cell appears once."""

    suite: Suite
    levels: tuple[tuple[Artifact, ...], ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    identities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name → what is known of the content of a model that code makes."""
    code: tuple[tuple[str, str], ...] = ()
    """Files of code that must not change until the run is done: (path, sha256)."""
    data_notes: tuple[str, ...] = ()
    """What reading the data set has to say, and which output is which class."""

    def counts(self) -> dict[str, int]:
        """Number of cells per scenario and of artifacts per builder."""
        found: dict[str, int] = {}
        for artifact in (a for level in self.levels for a in level):
            found[f"build {artifact.builder.name}"] = found.get(f"build {artifact.builder.name}", 0) + 1
        for cell in self.cells:
            found[cell.scenario.name] = found.get(cell.scenario.name, 0) + 1
        return found


@dataclass
class Draft:
    """Cells so far, and the one way to name images, models and predictions."""

    suite: Suite
    sources: Sources
    seed: int
    settings: Settings
    cells: dict[str, Cell] = field(default_factory=dict)
    """Digest → cell, in the order of planning."""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say once what is left out, and why."""
        if text not in self.notes:
            self.notes.append(text)

    @contextmanager
    def optional(self, what: str, entry: str = "") -> Iterator[None]:
        """Plan something that may not fit the data or models: then none of its cells remain, and a note says why.

        Args:
            what: What is planned, as the note names it.
            entry: The suite's text that asks for it; one that the user typed must fit.

        Raises:
            UnfitError: It does not fit, and it must.
        """
        before = dict(self.cells)
        try:
            yield
        except UnfitError as error:
            if self.suite.requires(entry):
                raise
            self.cells.clear()
            self.cells.update(before)
            self.note(f"{what}: {error}")

    def images(self, split: str, limit: int | None = None) -> Artifact:
        """The images of a split, or a seeded stratified part of them.

        Raises:
            UnfitError: The data set has no such split.
        """
        if split not in self.sources.splits:
            remedy = "use data with such a split, or leave out what needs it (scarcity, compression, ...)"
            known = list(self.sources.splits)
            raise UnfitError(must(f"the splits of {self.sources.data}", f"with {split!r}", known, remedy))
        ref = catalog.BUILDERS.resolve(Ref.of("images", source=self.sources.data, split=split, limit=limit, seed=self.seed))
        return Artifact("data", ref, self.sources.splits[split], label=self.data_label)

    @property
    def data_label(self) -> str:
        """The data's name; another seed draws other samples, which must not share a column with these."""
        return f"{self.sources.data_label} (seed {self.seed})" if self.seed else self.sources.data_label

    def test(self) -> Artifact:
        """The test images of the run."""
        return self.images("test", self.suite.limit)

    def train(self) -> Artifact:
        """Training images to look at, at most ``TRAIN``: for gaps to the test images, and to fit detectors on.

        Raises:
            UnfitError: The data set has no training split.
        """
        return self.images("train", TRAIN)

    def model(self, name: str) -> Artifact:
        """A source model by its name.

        Raises:
            ConfigError: Unknown name.
        """
        if name not in self.sources.models:
            raise ConfigError(must("a model of the suite", "a known one", name, suggestion(name, self.sources.models)))
        return self.sources.models[name]

    def sampled(self, whole: Artifact, *, label: str = "", **args: Any) -> Artifact:
        """A scarce, imbalanced or noisy part of images; the whole where nothing but a seed is asked for."""
        ref = catalog.BUILDERS.resolve(Ref.of("sampled", **args))
        if ref == catalog.BUILDERS.resolve(Ref.of("sampled", seed=args.get("seed", 0))):
            return whole
        return Artifact("data", ref, catalog.BUILDERS["sampled"].version, (whole,), label=label or whole.label)

    def predictions(self, model: Artifact, data: Artifact) -> Artifact:
        """The one kept forward pass of a model over images; a severity is a part of the pass over all five."""
        if data.builder.name == "severity":
            whole = self.predictions(model, data.inputs[0])
            part = Ref.of("part", index=data.builder.kwargs["severity"] - 1)
            return Artifact("predictions", part, catalog.BUILDERS["part"].version, (whole,), label=data.label)
        ref = catalog.BUILDERS.resolve(Ref.of("predictions", width=self.settings.width))
        version = catalog.BUILDERS["predictions"].version
        return Artifact("predictions", ref, version, (model, data), label=data.label, stored=True)

    def add(
        self, scenario: Ref, model: Artifact, *, data: Artifact | None = None, plugins: Iterable[str] = (), **more: Any
    ) -> None:
        """One cell, unless it is there; ``more`` are further fields of ``Cell``."""
        ref = catalog.SCENARIOS.resolve(scenario)
        version = "|".join([catalog.SCENARIOS[ref.name].version, *plugins])
        more.setdefault("seed", self.seed)
        cell = Cell(ref, version, model, data or self.test(), settings=self.settings, **more)
        self.cells.setdefault(cell.digest, cell)

    def clean(self, model: Artifact, *, data: Artifact | None = None, split: str = "test", **more: Any) -> None:
        """Predictions on images as they are: accuracy, gaps and confidence come from these."""
        images = data or self.test()
        self.add(Ref.of("clean", split=split), model, data=images, extra=(self.predictions(model, images),), **more)

    def watched(self, model: Artifact, *, condition: str = "", **_: Any) -> bool:
        """Whether the model has its sentinel already."""
        told = (model.digest, condition)
        return any(c.scenario.name == "sentinel" and (c.model.digest, c.condition) == told for c in self.cells.values())


def made_of(arch: Ref | str) -> str:
    """An architecture as identity knows it: every argument filled in, and its version.

    Raises:
        ConfigError: Unknown architecture or argument.
    """
    ref = catalog.ARCHITECTURES.resolve(arch)
    return f"{ref}|{catalog.ARCHITECTURES[ref.name].version}"


def levels(cells: Iterable[Cell]) -> tuple[tuple[Artifact, ...], ...]:
    """Stored artifacts in the order they can be built, each once."""
    depth: dict[str, int] = {}
    by_digest: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> int:
        if artifact.stored and artifact.digest in depth:
            return depth[artifact.digest]
        below = max((visit(i) for i in artifact.inputs), default=-1)
        level = below + 1 if artifact.stored else below
        if artifact.stored:
            depth[artifact.digest] = max(level, 0)
            by_digest[artifact.digest] = artifact
        return level

    for cell in cells:
        for artifact in cell.artifacts():
            visit(artifact)
    count = max(depth.values(), default=-1) + 1
    return tuple(tuple(by_digest[d] for d, level in depth.items() if level == i) for i in range(count))
