"""Why cells of a run directory are computed again: what is new since it was last written. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from robench.lineage import planned
from robench.spec import Artifact, Cell, canonical
from robench.store import Finished

_SHOWN = 4
"""Changed files that one line names."""


def reasons(
    cells: Iterable[Cell], done: Mapping[str, Finished], before: Mapping[str, Any], identities: Mapping[str, Any]
) -> list[str]:
    """One line per thing that changed, with the number of cells that are computed again because of it.

    Args:
        cells: Of the new plan.
        done: Finished cells by digest.
        before: The ``run.json`` that was there before, empty where there was none.
        identities: What is known of the models that are made by code: name → facts.
    """
    known = before.get("identities", {}).get("models", {})
    last = {_key(done[d].cell): done[d].cell for d in before.get("cells", {}) if d in done and done[d].cell}
    counts: dict[str, int] = {}
    for cell in cells:
        old = last.get(_key(cell)) if cell.digest not in done else None
        if old is not None:
            text = "; ".join(dict.fromkeys(_differences(old, cell, known, identities))) or "the plan changed"
            counts[text] = counts.get(text, 0) + 1
    return [f"{text}: {n} cell{'s are' if n > 1 else ' is'} computed again" for text, n in counts.items()]


def _key(cell: Cell | None) -> str:
    """What a cell measures, whatever it rests on: its columns, and the split of its images."""
    if cell is None:
        return ""
    split = (cell.scenario.kwargs.get("split"), cell.data.builder.name, cell.data.builder.kwargs.get("split"))
    return canonical([{k: str(v) for k, v in planned(cell).items()}, split])


def _differences(old: Cell, new: Cell, known: Mapping[str, Any], identities: Mapping[str, Any]) -> Iterator[str]:
    for a, b in zip_longest(old.artifacts(), new.artifacts()):
        if a is not None and b is not None:
            yield from _of_artifacts(a, b, known, identities)
    if old.scenario != new.scenario or old.version != new.version:
        what = new.scenario.kwargs.get("attack", new.scenario.name)
        yield f"{what}: {_versions(old.version, new.version) or 'its arguments changed'}"
    if old.settings != new.settings:
        yield f"the settings changed ({old.settings} -> {new.settings})"


def _of_artifacts(a: Artifact, b: Artifact, known: Mapping[str, Any], identities: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two artifacts, or deeper, between what they are made from."""
    if a.digest == b.digest:
        return
    deeper = [line for x, y in zip(a.inputs, b.inputs, strict=False) for line in _of_artifacts(x, y, known, identities)]
    yield from deeper
    own = [_argument(key, a, b, known, identities) for key in _changed(a, b)]
    own += [_versions(a.version, b.version)] if a.version != b.version else []
    texts = [text for text in own if text]
    if texts:
        yield f"{b.kind} {b.label or b.builder}: {' and '.join(texts)}"
    elif not deeper:
        yield f"{b.kind} {b.label or b.builder}: made in another way"


def _changed(a: Artifact, b: Artifact) -> list[str]:
    """Arguments that differ; the hash of everything counts only where nothing tells more."""
    keys = [k for k in sorted({**a.builder.kwargs, **b.builder.kwargs}) if _get(a, k) != _get(b, k)]
    return [k for k in keys if k != "sha256"] or keys


def _get(artifact: Artifact, key: str) -> Any:
    return artifact.builder.kwargs.get(key)


def _argument(key: str, a: Artifact, b: Artifact, known: Mapping[str, Any], identities: Mapping[str, Any]) -> str:
    since = "changed since the last run"
    old, new = _get(a, key), _get(b, key)
    if key == "code":
        files = _files(known.get(a.label, {}), identities.get(b.label, {}))
        return f"code {since} ({files or _hashes(old, new)})"
    if key in ("weights", "attributes"):
        return f"{key} {since} ({_hashes(old, new)})"
    if key == "sha256":
        return f"its file {since} ({_hashes(old, new)})"
    return f"{key} {since} ({old} -> {new})"


def _hashes(old: Any, new: Any) -> str:
    return f"sha256 {str(old)[:8]}... -> {str(new)[:8]}..."


def _files(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The user's files and packages that differ, by name."""
    one, other = dict(old.get("code", {})), dict(new.get("code", {}))
    names = [name for name in sorted({**one, **other}) if one.get(name) != other.get(name)]
    names += sorted({*old.get("packages", ())} ^ {*new.get("packages", ())})
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _versions(old: str, new: str) -> str:
    """The parts of two versions that differ."""
    if old == new:
        return ""
    pairs = [(a, b) for a, b in zip_longest(old.split("|"), new.split("|"), fillvalue="none") if a != b]
    return "version or content changed since the last run (" + ", ".join(f"{a} -> {b}" for a, b in pairs[:_SHOWN]) + ")"
