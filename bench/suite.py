"""Suites: what a run consists of, as validated data. Imports no torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from robench.errors import ConfigError, must, suggestion

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

    model: str
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
    limit: int | None = Field(default=None, ge=1)
    """Test images that the suite's protocol is declared on; all of them by default. It is part of the suite, shown as ``n``,
    and marks nothing; only ``--limit``, which departs from the suite, marks results ``limited``, which never rank. Models
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

    @field_validator("shifts", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A shift may be written as its data alone."""
        return {k: {"data": v} if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    def files(self) -> list[str]:
        """Further data sets that the suite names, besides ``data``."""
        return [shift.data for shift in self.shifts.values()]


def packaged(name: str) -> str:
    """The text of a packaged suite."""
    return resources.files("robench").joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8")


def read_suite(name: str) -> Suite:
    """A suite by its name, or from a YAML file.

    Raises:
        ConfigError: No such suite or file, no YAML, an unknown key (with a suggestion) or a wrong type.
    """
    if name in PACKAGED:
        return parse_suite(packaged(name))
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
    except yaml.YAMLError as error:
        raise ConfigError(must("a suite", "YAML", str(error).splitlines()[0], "correct the file")) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys(first["loc"])
            raise ConfigError(must("a suite's key", "a known one", key, suggestion(str(first["loc"][-1]), known))) from error
        raise ConfigError(must(f"the suite's {key}", first["msg"], first.get("input"), "correct the file")) from error


def _keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Suite
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        inner = model.model_fields[str(part)].annotation
        args = getattr(inner, "__args__", (inner,))
        model = next(a for a in args if isinstance(a, type) and issubclass(a, BaseModel))
    return list(model.model_fields)
