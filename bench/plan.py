"""Suite → graph: what must be built, and the cells that need it. Imports no torch, runs no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from robench import catalog
from robench.corrupt.tables import level_of
from robench.errors import ConfigError, must, suggestion
from robench.spec import Artifact, Cell, Ref, Settings, ThreatModel
from robench.suite import Suite


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


@dataclass(frozen=True)
class Plan:
    """Levels of artifacts to build in order, then cells; every artifact and cell appears once."""

    suite: Suite
    levels: tuple[tuple[Artifact, ...], ...]
    cells: tuple[Cell, ...]

    def counts(self) -> dict[str, int]:
        """Number of cells per scenario and of artifacts per builder."""
        found: dict[str, int] = {}
        for artifact in (a for level in self.levels for a in level):
            found[f"build {artifact.builder.name}"] = found.get(f"build {artifact.builder.name}", 0) + 1
        for cell in self.cells:
            found[cell.scenario.name] = found.get(cell.scenario.name, 0) + 1
        return found


@dataclass
class _Draft:
    suite: Suite
    sources: Sources
    seed: int
    settings: Settings
    cells: list[Cell] = field(default_factory=list)

    def images(self, split: str, limit: int | None = None) -> Artifact:
        if split not in self.sources.splits:
            remedy = "use data with such a split, or leave scarcity and compression out"
            known = list(self.sources.splits)
            raise ConfigError(must(f"the splits of {self.sources.data}", f"with {split!r}", known, remedy))
        ref = catalog.BUILDERS.resolve(Ref.of("images", source=self.sources.data, split=split, limit=limit, seed=self.seed))
        return Artifact("data", ref, self.sources.splits[split], label=self.data_label)

    @property
    def data_label(self) -> str:
        """The data's name; another seed draws other samples, which must not share a column with these."""
        return f"{self.sources.data_label} (seed {self.seed})" if self.seed else self.sources.data_label

    def test(self) -> Artifact:
        return self.images("test", self.suite.limit)

    def add(
        self, scenario: Ref, model: Artifact, *, data: Artifact | None = None, plugins: Iterable[str] = (), **more: Any
    ) -> None:
        ref = catalog.SCENARIOS.resolve(scenario)
        version = "|".join([catalog.SCENARIOS[ref.name].version, *plugins])
        more.setdefault("seed", self.seed)
        cell = Cell(ref, version, model, data or self.test(), settings=self.settings, **more)
        if cell.digest not in {c.digest for c in self.cells}:
            self.cells.append(cell)

    def watched(self, model: Artifact, *, condition: str = "", **_: Any) -> bool:
        """Whether the model has its sentinel already."""
        told = (model.digest, condition)
        return any(c.scenario.name == "sentinel" and (c.model.digest, c.condition) == told for c in self.cells)


def made_of(arch: Ref | str) -> str:
    """An architecture as identity knows it: every argument filled in, and its version.

    Raises:
        ConfigError: Unknown architecture or argument.
    """
    ref = catalog.ARCHITECTURES.resolve(arch)
    return f"{ref}|{catalog.ARCHITECTURES[ref.name].version}"


def expand(suite: Suite, sources: Sources, *, seed: int = 0, settings: Settings | None = None) -> Plan:
    """The graph of a suite.

    Raises:
        ConfigError: An unknown name, argument, threat or eps anywhere in the suite.
    """
    draft = _Draft(suite, sources, seed, settings or Settings())
    _require_norms(suite.attacks, suite.threats)
    _require_norms(suite.compression.attacks, suite.compression.threats)
    for curve in suite.curves:
        _require_norms(curve.attacks, [f"{curve.norm}({eps})" for eps in curve.eps])
    for name in suite.models:
        _known(draft, name)
    for model in sources.models.values():
        if model.label in suite.models:
            _model(draft, model)
    for pair in suite.defenses:
        _defended(draft, pair.model, pair.defense, pair.threats or suite.threats)
    _compression(draft)
    _scarcity(draft)
    cells = tuple(draft.cells)
    return Plan(suite, _levels(cells), cells)


def _require_norms(attacks: Iterable[str], threats: Iterable[str]) -> None:
    """Refuse an attack that knows none of the norms it is to be run in; it would be left out without a word.

    Raises:
        ConfigError: Names the first one.
    """
    asked = dict.fromkeys(ThreatModel.parse(t).norm for t in threats)
    for attack in attacks:
        name = catalog.ATTACKS.resolve(attack).name
        known = catalog.ATTACKS[name].facts.get("norms", ())
        if asked and not set(known) & set(asked):
            remedy = "add such a threat, or leave the attack out"
            raise ConfigError(must(f"a threat for {name}", "of norm " + " or ".join(known), ", ".join(asked), remedy))


def _model(draft: _Draft, model: Artifact) -> None:
    """Every scenario of the suite on one unconditioned model."""
    suite = draft.suite
    draft.add(Ref.of("clean"), model)
    if "train" in draft.sources.splits:
        draft.add(Ref.of("clean", split="train"), model, data=draft.images("train"))
    _attacks(draft, model, suite.threats, suite.attacks)
    for curve in suite.curves:
        _attacks(draft, model, [f"{curve.norm}({eps})" for eps in curve.eps], curve.attacks)
    for name in suite.corruption.names:
        _corruption(draft, model, name)
    if suite.explainers:
        refs = tuple(str(catalog.EXPLAINERS.resolve(e)) for e in suite.explainers)
        versions = [f"{catalog.EXPLAINERS[Ref.parse(e).name].version}" for e in suite.explainers]
        few = draft.images("test", min(suite.explain_limit, suite.limit or suite.explain_limit))
        draft.add(Ref.of("explanation", explainers=tuple(suite.explainers)), model, data=few, plugins=[*refs, *versions])
    if suite.efficiency:
        draft.add(Ref.of("efficiency"), model)


def _attacks(draft: _Draft, model: Artifact, threats: Iterable[str], attacks: Iterable[str], **more: Any) -> None:
    """Attacks × threats on one model, and one sentinel, at the first threat that is attacked."""
    threats, attacks = list(threats), list(attacks)
    for text in threats:
        threat = ThreatModel.parse(text)
        for attack in attacks:
            ref = catalog.ATTACKS.resolve(attack)
            entry = catalog.ATTACKS[ref.name]
            if threat.norm not in entry.facts.get("norms", ()):
                continue
            surrogate = {"extra": (_surrogate(draft, ref, model),)} if entry.facts.get("surrogate") else {}
            scenario = Ref.of("evasion", attack=str(Ref.parse(attack)), threat=str(threat))
            draft.add(scenario, model, plugins=[str(ref), entry.version], **{**more, **surrogate})
    if threats and attacks and not draft.watched(model, **more):
        draft.add(Ref.of("sentinel", threat=str(ThreatModel.parse(threats[0]))), model, **more)


def _surrogate(draft: _Draft, ref: Ref, target: Artifact) -> Artifact:
    name, classes = str(ref.kwargs.get("source", "")), draft.sources.classes
    if name not in draft.sources.models:
        known = ", ".join(sorted(draft.sources.models))
        raise ConfigError(must("a transfer's source", "a model of the run or the zoo", name, f"known: {known}"))
    own = classes.get(target.label)
    if own is not None and classes.get(name, own) != own:
        remedy = "name a source that was trained on the same classes"
        raise ConfigError(must(f"the classes of the source {name}", f"the {own} of {target.label}", classes[name], remedy))
    return draft.sources.models[name]


def _corruption(draft: _Draft, model: Artifact, name: str) -> None:
    table = draft.suite.corruption.table
    level_of(table, name, 1)
    args = {"corruption": name, "table": table}
    built = Artifact(
        "data",
        catalog.BUILDERS.resolve(Ref.of("corrupted", seed=draft.seed, **args)),
        f"{catalog.BUILDERS['corrupted'].version}|{catalog.CORRUPTIONS[name].version}",
        (draft.test(),),
        label=draft.data_label,
        stored=True,
    )
    draft.add(Ref.of("corruption", **args), model, extra=(built,))


def _defended(draft: _Draft, name: str, defense: str, threats: Iterable[str]) -> None:
    parent = _known(draft, name)
    ref = catalog.DEFENSES.resolve(defense)
    version = f"{catalog.BUILDERS['defended'].version}|{catalog.DEFENSES[ref.name].version}"
    built = Artifact("model", Ref.of("defended", defense=str(ref)), version, (parent,), label=name)
    condition = str(Ref.parse(defense))
    draft.add(Ref.of("clean"), built, condition=condition)
    _attacks(draft, built, threats, [*draft.suite.attacks, _from(name)], condition=condition)


def _from(name: str) -> str:
    return str(Ref.of("transfer", source=name))


def _compression(draft: _Draft) -> None:
    plan = draft.suite.compression
    for name in plan.models:
        parent = _known(draft, name)
        for arm in plan.arms:
            ref = catalog.COMPRESSIONS.resolve(arm)
            version = f"{catalog.BUILDERS['compressed'].version}|{catalog.COMPRESSIONS[ref.name].version}"
            calibration = draft.images("train", 256)
            built = Artifact("model", Ref.of("compressed", method=str(ref)), version, (parent, calibration), label=name)
            condition = str(Ref.parse(arm))
            draft.add(Ref.of("clean"), built, condition=condition)
            _attacks(draft, built, plan.threats, [*plan.attacks, _from(name)], condition=condition)
            if draft.suite.efficiency:
                draft.add(Ref.of("efficiency"), built, condition=condition)


def _scarcity(draft: _Draft) -> None:
    plan = draft.suite.scarcity
    train = draft.images("train") if plan.recipes else None
    start = f"{catalog.BUILDERS['trained'].version}|{made_of(plan.arch)}"
    for recipe in plan.recipes:
        ref = catalog.RECIPES.resolve(recipe)
        version = f"{start}|{ref}|{catalog.RECIPES[ref.name].version}"
        for fraction in plan.fractions:
            for seed in plan.seeds:
                args = {"recipe": str(Ref.parse(recipe)), "steps": plan.steps, "fraction": fraction, "seed": seed}
                builder = catalog.BUILDERS.resolve(Ref.of("trained", arch=plan.arch, **args))
                inputs = () if train is None else (train,)
                built = Artifact("model", builder, version, inputs, label=f"trained-{Ref.parse(recipe).name}", stored=True)
                draft.add(Ref.of("clean"), built, condition=f"scarcity(fraction={fraction!r})", seed=seed)


def _known(draft: _Draft, name: str) -> Artifact:
    if name not in draft.sources.models:
        raise ConfigError(must("a model of the suite", "a known one", name, suggestion(name, draft.sources.models)))
    return draft.sources.models[name]


def _levels(cells: Iterable[Cell]) -> tuple[tuple[Artifact, ...], ...]:
    """Stored artifacts in the order they can be built, each once."""
    depth: dict[str, int] = {}
    by_digest: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> int:
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
