"""Suites: what a run consists of, as validated data. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from robench.data.classes import ClassList, ClassMap, in_classes
from robench.errors import ConfigError, must, one_line, suggestion

PACKAGED = ("smoke", "quick", "standard", "full", "corruption", "scarcity", "scarcity-cifar10", "compression")
"""Suites inside the package."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Curve(_Strict):
    """Security curves: every eps of a norm is attacked with the same attacks."""

    norm: str = "linf"
    eps: list[str] = []
    attacks: list[str] = []


class Corruption(_Strict):
    """Corruptions by name, from one severity table, and perturbation sequences."""

    table: str = "auto"
    """A severity table; ``auto`` is the digits' own, or the one for the images' size (see ``robench.corrupt.tables``)."""
    names: list[str] = []
    """Corruptions; ``benchmark`` stands for the 15 of the published benchmark, ``extra`` for the four further ones."""
    source: str = "regenerated"
    """``regenerated``, or ``published(root=FOLDER)``: the user's CIFAR-10-C or ImageNet-C folder."""
    reference: str = ""
    """Model beside whose errors those of the others are put; by default the first by name."""
    sequences: list[str] = []
    """Perturbation sequences for flip rates; ``all`` stands for the ten."""


class Scarcity(_Strict):
    """Recipes trained again on scarce, imbalanced or noisy samples with equal optimiser steps, and what helps.

    Every recipe is trained on every fraction. The arms (shots, imbalances, label noise, augmentations, transfer) are
    those of the first recipe, on the same seeds.
    """

    arch: str = "small_cnn"
    recipes: list[str] = []
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = []
    seeds: list[int] = [0]
    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of each sample that is held out for early stopping; none by default."""
    arms_at: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]
    """Fractions on which augmentations and transfer are compared; imbalance and label noise are at the largest fraction."""
    shots: list[Annotated[int, Field(ge=1)]] = []
    imbalances: list[Annotated[float, Field(gt=1)]] = []
    label_noise: list[Annotated[float, Field(gt=0, lt=1)]] = []
    noises: list[Literal["symmetric", "asymmetric", "pair"]] = ["symmetric"]
    augmentations: list[str] = []
    transfer: list[Literal["linear_probe", "fine_tune", "lp_ft"]] = []
    """From a model of the first half of the classes to the second half, beside training from scratch."""
    threats: list[str] = []
    attacks: list[str] = []
    corruptions: list[str] = []
    """What every trained model is measured on besides clean images; severities come from the suite's table."""


class Compression(_Strict):
    """Compressed copies of models, compared with their parent, and attacked directly and from it."""

    models: list[str] = []
    arms: list[str] = []
    """Compressions, or chains of them: ``prune(amount=0.9) | finetune(steps=200)``."""
    threats: list[str] = []
    attacks: list[str] = []
    corruptions: list[str] = []
    """Corruptions that the copies and their parents are measured on, from the suite's severity table."""
    explainers: list[str] = []
    """Explainers whose maps of the copy and of its parent are compared on ``explain_limit`` images."""
    calibration: str = "train"
    """Split of the images that a compression looks at; never ``test``."""


class Defended(_Strict):
    """A model behind an inference-time defence, attacked at its own threats or else at the suite's."""

    model: str = ""
    """By default every model of the suite."""
    defense: str
    threats: list[str] = []


class Crossing(_Strict):
    """A chain of conditions (see ``robench.plan.chains``) on some models, by default all of the suite's."""

    chain: str
    models: list[str] = []


class Spatial(_Strict):
    """A grid of rotations (degrees) and translations (parts of the side) of every test image; none without angles."""

    angles: list[float] = []
    shifts: list[float] = [0.0]
    padding: str = "zeros"


class Shift(_Strict):
    """A shifted test set, with reference models (a CSV file ``clean,shifted``) and a model to compare with where wanted."""

    data: str
    reference: str = ""
    baseline: str = ""


class RobustGap(_Strict):
    """Attacks on this many training images, for robust accuracy on training images minus that on test images."""

    limit: int = Field(default=300, ge=1)
    threats: list[str] = []
    attacks: list[str] = []


class Ood(_Strict):
    """Images of other kinds that a model's outputs are to tell from the data set's own."""

    sources: list[str] = []
    """``glyphs(detail=8)`` and other drawn ones, or ``NAME=folder:PATH`` and other data of the user."""
    detectors: list[str] = []
    """All by default."""
    attack: str = ""
    """Attack whose successes are a further source; empty: none."""
    threat: str = ""
    """Threat of that attack, by default the suite's first."""
    train_limit: int = Field(default=10_000, ge=1)
    """Training images that detectors are fitted on, at most."""


class Calibration(_Strict):
    """Confidence before and after temperature scaling, on clean, corrupted and adversarial images."""

    split: str = ""
    """Where the temperature is fitted: ``validation`` or ``train``; empty: no such measurement."""
    corruptions: list[str] = []
    severity: int = Field(default=3, ge=1, le=5)
    attack: str = ""
    threat: str = ""
    """By default the suite's first."""
    limit: int = Field(default=1000, ge=1)
    """Images that the temperature is fitted on, at most."""


class Suite(_Strict):
    """One suite."""

    name: str
    version: int = 1
    summary: str = ""
    data: str = "digits"
    classes: str | list[str] = ""
    """The models' classes in the order of their outputs: a file (see ``robench.data.classes.agree``), or the names."""
    class_map: str | dict[str, int] = ""
    """Index of the models' output per class of the data: a file, ``numbers``, or the pairs."""
    limit: int | None = Field(default=None, ge=1)
    """Test images that the suite's protocol is declared on; all of them by default. It is part of the suite, shown as ``n``,
    and marks nothing; only an edit of it (``--limit``, ``override``) marks results ``limited``, which never rank. Models
    measured on fewer images than others of their data set never rank beside them."""
    models: list[str] = []
    threats: list[str] = []
    attacks: list[str] = []
    curves: list[Curve] = []
    corruption: Corruption = Corruption()
    scarcity: Scarcity = Scarcity()
    compression: Compression = Compression()
    defenses: list[Defended] = []
    chains: list[Crossing] = []
    ood: Ood = Ood()
    calibration: Calibration = Calibration()
    explainers: list[str] = []
    explain_limit: int = Field(default=100, ge=1)
    efficiency: bool = False
    spatial: Spatial = Spatial()
    shifts: dict[str, Shift] = {}
    """Name → shifted test set, or only its data."""
    groups: str = ""
    """A CSV file ``sample,group`` of the test images."""
    robust_gap: RobustGap = RobustGap()
    _adapts: bool = PrivateAttr(default=False)
    _typed: frozenset[str] = PrivateAttr(default=frozenset())
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _written: int | None = PrivateAttr(default=None)
    """The limit that the suite's author wrote."""

    def model_post_init(self, context: Any) -> None:
        """Keep the author's limit, whatever edits make of the suite."""
        super().model_post_init(context)
        self._written = self.limit

    @field_validator("shifts", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A shift may be written as its data alone."""
        return {k: {"data": v} if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    def __eq__(self, other: object) -> bool:
        """Whether two suites ask for the same measurements, however they were edited."""
        return isinstance(other, Suite) and self.model_dump() == other.model_dump()

    def files(self) -> list[str]:
        """Further data sets that the suite names, besides ``data``."""
        return [shift.data for shift in self.shifts.values()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What edits left out of the suite, and why."""
        return self._notes

    @property
    def declared(self) -> int | None:
        """The number of test images that the suite is declared on, also after edits; None: all.

        A suite that has a packaged one's name, threats and attacks is declared on as many as that.
        """
        own = parse_suite(packaged(self.name)) if self.name in PACKAGED else None
        same = own is not None and (own.threats, own.attacks) == (self.threats, self.attacks)
        return own.limit if own is not None and same else self._written

    @property
    def limited(self) -> bool:
        """Whether the suite is to run on another number of test images than it is declared on."""
        return self.limit != self.declared

    def fitted(self, count: int | None) -> Suite:
        """The suite, no longer limited where that leaves the number of images of the data as it is.

        Args:
            count: Number of the data's test images, where it is known.
        """
        met = {limit if count is None else min(limit or count, count) for limit in (self.limit, self.declared)}
        return self if len(met) > 1 else self._edited({"limit": self.declared})

    @property
    def adapts(self) -> bool:
        """Whether entries that do not fit the data or models are left out with a note; otherwise they are errors.

        True for packaged suites, and for a suite whose data, models, threats or attacks were replaced.
        """
        return self._adapts

    def requires(self, entry: str) -> bool:
        """Whether an entry must be run: the user typed it, or the suite is run exactly as its author wrote it."""
        return entry in self._typed or not self._adapts

    def only(self, scenarios: Iterable[str]) -> Suite:
        """The suite without the parts that belong to other scenarios; clean images are always measured.

        Raises:
            ConfigError: An unknown scenario.
        """
        wanted = list(scenarios)
        for name in wanted:
            if name not in _PARTS:
                raise ConfigError(must("--scenario", "a known one", name, suggestion(name, _PARTS)))
        if not wanted:
            return self
        dropped = (key for name, keys in _PARTS.items() if name not in wanted for key in keys)
        return self._edited({key: _empty(key) for key in dropped})

    def override(
        self,
        *,
        data: str | None = None,
        limit: int | None = None,
        threats: Iterable[str] = (),
        attacks: Iterable[str] = (),
        defenses: Iterable[str] = (),
        chains: Iterable[str] = (),
        shifts: Mapping[str, Shift] | None = None,
        groups: str | None = None,
        ood: Iterable[str] = (),
        classes: ClassList | None = None,
        class_map: ClassMap | None = None,
    ) -> Suite:
        """The suite with parts replaced (data, limit, threats, attacks, groups, classes) or added (the rest).

        Given threats or attacks also leave out the security curves: the user has said which numbers he wants.

        Args:
            data: A data set, such as ``folder:PATH``.
            limit: Number of test images.
            threats: Threat models that replace the suite's.
            attacks: Attacks that replace the suite's.
            defenses: Inference-time defences; each model is also attacked behind each of them.
            chains: Chains of conditions, run on every model.
            shifts: Name -> shifted test set.
            groups: A CSV file ``sample,group``.
            ood: Images of other kinds, drawn or ``NAME=DATA``.
            classes: Names of the models' classes in the order of their outputs, or a file; or the suite's own.
            class_map: Index of the models' output per class of the data; or the suite's own.
        """
        given = (classes, class_map) if classes or class_map else (self.classes, self.class_map)
        agreed = in_classes(data or self.data, *given)
        threats, attacks, defenses, chains = list(threats), list(attacks), list(defenses), list(chains)
        update: dict[str, Any] = {
            "defenses": [*self.defenses, *(Defended(defense=text) for text in defenses)],
            "chains": [*self.chains, *(Crossing(chain=text) for text in chains)],
            "shifts": {**self.shifts, **(shifts or {})},
            "ood": self.ood.model_copy(update={"sources": list(dict.fromkeys([*self.ood.sources, *ood]))}),
        }
        replaced = {"data": data, "limit": limit, "threats": threats, "attacks": attacks, "groups": groups}
        update |= {key: value for key, value in replaced.items() if value}
        update |= {"data": agreed, "classes": "", "class_map": ""}
        notes: tuple[str, ...] = ()
        if (threats or attacks) and self.curves:
            update["curves"] = []
            notes = ("security curves of the suite: --threat and --attack say what to measure",)
        typed = {*threats, *attacks, *defenses, *chains}
        return self._edited(update, adapts=bool(data or threats or attacks), typed=typed, notes=notes)

    def for_models(self, labels: Iterable[str]) -> Suite:
        """The suite on these models; parts that name other models only are left out with a note."""
        names = list(labels)
        notes = []
        kept = [m for m in self.compression.models if m in names]
        lost = sorted(set(self.compression.models) - set(names))
        if lost:
            notes.append(f"compression of {', '.join(lost)}: not a model of this run")
        defenses = [d for d in self.defenses if not d.model or d.model in names]
        notes += [f"{d.defense} in front of {d.model}: not a model of this run" for d in self.defenses if d not in defenses]
        chains = [
            c.model_copy(update={"models": [m for m in c.models if m in names]})
            for c in self.chains
            if not c.models or set(c.models) & set(names)
        ]
        lost_chains = [c for c in self.chains if c.models and not set(c.models) & set(names)]
        notes += [f"chain {c.chain} of {', '.join(c.models)}: not a model of this run" for c in lost_chains]
        reference = self.corruption.reference if self.corruption.reference in names else ""
        if reference != self.corruption.reference:
            notes.append(f"{self.corruption.reference} as the reference of corruption errors: not a model of this run")
        update: dict[str, Any] = {
            "models": names,
            "compression": self.compression.model_copy(update={"models": kept}),
            "corruption": self.corruption.model_copy(update={"reference": reference}),
            "defenses": defenses,
            "chains": chains,
        }
        return self._edited(update, adapts=names != self.models, notes=notes)

    def noted(self, *notes: str) -> Suite:
        """The suite with further notes on what was left out."""
        return self._edited({}, notes=notes)

    def _edited(
        self, update: dict[str, Any], *, adapts: bool = False, typed: Iterable[str] = (), notes: Iterable[str] = ()
    ) -> Suite:
        changed = self.model_copy(update=update)
        changed._adapts = self._adapts or adapts
        changed._typed = self._typed | set(typed)
        changed._notes = (*self._notes, *notes)
        return changed


_PARTS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "evasion": ("attacks", "curves", "defenses"),
    "corruption": ("corruption",),
    "scarcity": ("scarcity",),
    "compression": ("compression",),
    "explanation": ("explainers",),
    "efficiency": ("efficiency",),
    "spatial": ("spatial",),
    "shift": ("shifts",),
    "groups": ("groups",),
    "robust_gap": ("robust_gap",),
    "ood": ("ood",),
    "calibration": ("calibration",),
    "crossing": ("chains",),
}
"""Scenario as ``--scenario`` names it -> the keys of a suite that belong to it."""


def _empty(key: str) -> Any:
    """The value of a suite's key with which nothing is measured."""
    return Suite.model_fields[key].get_default(call_default_factory=True)


def packaged(name: str) -> str:
    """The text of a packaged suite."""
    return resources.files("robench").joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8")


def summaries() -> dict[str, str]:
    """Packaged suite -> what it is for."""
    return {name: parse_suite(packaged(name)).summary for name in PACKAGED}


def read_suite(name: str) -> Suite:
    """A suite by its name, or from a YAML file.

    Raises:
        ConfigError: No such suite or file, no YAML, an unknown key (with a suggestion) or a wrong type.
    """
    if name in PACKAGED:
        return parse_suite(packaged(name))._edited({}, adapts=True)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(must("--suite", "a suite's name or a YAML file", name, suggestion(name, PACKAGED)))
    try:
        return parse_suite(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(must("--suite", "a readable text file", str(error), "write it as UTF-8 YAML")) from error


def parse_suite(text: str) -> Suite:
    """A suite from YAML text.

    Raises:
        ConfigError: As ``read_suite``.
    """
    try:
        values = yaml.safe_load(text)
        return Suite.model_validate(values)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(must("a suite", "YAML", one_line(str(error), 200), "correct the file")) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys(first["loc"][:-1])
            raise ConfigError(must("a suite's key", "a known one", key, suggestion(str(first["loc"][-1]), known))) from error
        raise ConfigError(must(f"the suite's {key}", first["msg"], first.get("input"), "correct the file")) from error
    except ValueError as error:  # a number or date that Python cannot hold
        raise ConfigError(must("a suite", "of values in their ranges", str(error), "correct the file")) from error


def _keys(sections: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a place in a suite; positions in lists and names of shifts are passed over."""
    model: type[BaseModel] = Suite
    for part in sections:
        if str(part) in model.model_fields:
            model = next(_models(model.model_fields[str(part)].annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections that a type holds, at any depth: ``Shift`` of ``dict[str, Shift]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
