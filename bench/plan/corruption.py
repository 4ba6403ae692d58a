"""Corrupted images and perturbation sequences: made once for all models, predicted once per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from robench import catalog
from robench.corrupt.perturbations import PERTURBATIONS
from robench.corrupt.tables import BENCHMARK, EXTRA, level_of, table_for, table_of
from robench.data.listing import listed
from robench.data.names import parse_data
from robench.errors import ConfigError, UnfitError, must, suggestion
from robench.plan.draft import Draft
from robench.plan.plain import measured
from robench.spec import Artifact, Ref

GROUPS = {"benchmark": BENCHMARK, "extra": EXTRA}
"""Names that stand for several corruptions."""
DIGITS = "digits-v2"
"""The embedded digits' own severity table."""
REGENERATED = "regenerated"


def section(draft: Draft) -> None:
    """Every model of the suite on every corruption and every sequence."""
    if draft.suite.corruption.reference:
        draft.model(draft.suite.corruption.reference)
    models = list(measured(draft))
    names = list(names_of(draft, draft.suite.corruption.names)) if models else []
    for model in models:
        for name in names:
            corruption_cell(draft, model, name)
        for name in _sequences(draft):
            _flips_cell(draft, model, name)


def corruption_cell(draft: Draft, model: Artifact, name: str, *, data: Artifact | None = None, **more: Any) -> None:
    """One model on one corruption at all severities; ``more`` are further fields of the cell."""
    images = data or draft.test()
    built = corrupted(draft, name, data=images)
    extra = (draft.predictions(model, built), draft.predictions(model, images))
    source = f"robench-C (regenerated, {table(draft)})"
    if _root(draft):
        source = f"published({_root(draft).rstrip('/').rpartition('/')[2]})"
    args = {
        "corruption": name,
        "table": source if _root(draft) else table(draft),
        "family": str(catalog.CORRUPTIONS[name].facts.get("family", "other")),
        "source": source,
        "reference": draft.suite.corruption.reference,
    }
    draft.add(Ref.of("corruption", **args), model, data=images, extra=extra, **more)


def table(draft: Draft) -> str:
    """The name of the severity table: the suite's, or by the data's name and size where it says ``auto``."""
    named = draft.suite.corruption.table
    if named != "auto":
        return named
    if parse_data(draft.sources.data).name == "digits":
        return DIGITS
    return table_for(max(draft.sources.shape[1:])) if draft.sources.shape else table_for(32)


def corrupted(draft: Draft, name: str, *, data: Artifact | None = None) -> Artifact:
    """Images, by default the run's test images, under one corruption, at five severities: regenerated, or published ones.

    Raises:
        ConfigError: A corruption that the suite's severity table lacks.
        DataError: A published folder without the corruption.
    """
    images = data or draft.test()
    root = _root(draft)
    if root:
        ref = catalog.BUILDERS.resolve(Ref.of("published", corruption=name, root=root))
        version = f"{catalog.BUILDERS['published'].version}|{listed(root, name)}"
        return Artifact("data", ref, version, (images,), label=images.label)
    level_of(table(draft), name, 1)
    ref = catalog.BUILDERS.resolve(Ref.of("corrupted", corruption=name, table=table(draft), seed=draft.seed))
    version = f"{catalog.BUILDERS['corrupted'].version}|{catalog.CORRUPTIONS[name].version}"
    return Artifact("data", ref, version, (images,), label=images.label, stored=True)


def severity(draft: Draft, name: str, level: int) -> Artifact:
    """The run's test images under one corruption at one severity, 1 to 5.

    Raises:
        ConfigError: An unknown corruption or severity, or one that does not apply to such images.
    """
    level_of(table(draft), name, level)
    reason = _unfit(draft, name)
    if reason:
        raise UnfitError(must(f"images for {name}", *reason, "leave it out of the chain"))
    version = catalog.BUILDERS["severity"].version
    return Artifact("data", Ref.of("severity", severity=level), version, (corrupted(draft, name),), label=draft.data_label)


def names_of(draft: Draft, asked_for: Iterable[str]) -> Iterator[str]:
    """The corruptions of names and groups that apply to the data; what does not is noted, never counted.

    Raises:
        ConfigError: An unknown name, or a corruption named by itself that the table lacks.
    """
    levels = table_of(table(draft))
    for asked in asked_for:
        for name in dict.fromkeys(GROUPS.get(asked, (asked,))):
            reason = _unfit(draft, name)
            if reason:
                draft.note(f"corruption {name}: it needs images {reason[0]}, these are {reason[1]}")
            elif name not in levels and not _root(draft) and (asked in GROUPS or not draft.suite.requires(asked)):
                draft.note(f"corruption {name}: the severity table {table(draft)} has no levels for it")
            else:
                yield name


def _unfit(draft: Draft, name: str) -> tuple[str, str] | None:
    """Why a corruption does not apply to the data's images: (what it needs, what they are); None where it does."""
    needed, shape = catalog.CORRUPTIONS[name].facts.get("channels"), draft.sources.shape
    channels = shape[0] if shape else 1 if parse_data(draft.sources.data).name == "digits" else None
    if needed is None or channels is None or channels == needed:
        return None
    return f"of {needed} channels", f"of {channels}"


def _root(draft: Draft) -> str:
    """The published folder, or nothing for regenerated images.

    Raises:
        ConfigError: Another source.
    """
    text = draft.suite.corruption.source
    if text == REGENERATED:
        return ""
    ref = Ref.parse(text)
    if ref.name != "published" or set(ref.kwargs) != {"root"}:
        expected = "regenerated or published(root='FOLDER')"
        raise ConfigError(must("the corruptions' source", expected, text, "name the folder that holds the corruptions"))
    return str(ref.kwargs["root"])


def _sequences(draft: Draft) -> Iterator[str]:
    """The suite's perturbation sequences.

    Raises:
        ConfigError: An unknown name.
    """
    for asked in draft.suite.corruption.sequences:
        names = PERTURBATIONS if asked == "all" else (asked,)
        for name in names:
            if name not in PERTURBATIONS:
                raise ConfigError(must("a perturbation sequence", "a known one", name, suggestion(name, PERTURBATIONS)))
            yield name


def _flips_cell(draft: Draft, model: Artifact, name: str) -> None:
    """One model on one sequence of slight perturbations."""
    ref = catalog.BUILDERS.resolve(Ref.of("sequences", perturbation=name, seed=draft.seed))
    built = Artifact(
        "data", ref, catalog.BUILDERS["sequences"].version, (draft.test(),), label=draft.data_label, stored=True
    )
    draft.add(Ref.of("flips", perturbation=name), model, extra=(draft.predictions(model, built),))
