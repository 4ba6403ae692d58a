"""Which models the numbers of a run belong to: source, content and time, and whether the file is still the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robench.spec import Artifact
from robench.store import Store
from robench.user_code import sha256_of

_SHORT = 12
"""Characters of a hash that are shown, as Git shows them."""


def judged_models(store: Store, names: Iterable[str]) -> list[str]:
    """One line per model of a run that has results: its source, SHA-256, when it was measured, and if the file differs now.

    Raises:
        StoreError: As ``read_run`` and ``finished``.
    """
    run, told = store.read_run(), []
    planned, done = run["cells"], store.finished()
    for name in sorted(names):
        found = [done[d] for d in planned if d in done and planned[d]["model"] == name and not planned[d]["condition"]]
        cells = [entry.cell for entry in found if entry.cell is not None]
        if not cells:
            continue
        source, content = str(_part(run, "sources", name).get("source", name)), _content(cells[0].model)
        times = [float(t) for entry in found if isinstance(t := entry.header.get("time"), int | float)]
        parts = [source, *([f"sha256 {content[:_SHORT]}"] if content else []), *_when(times)]
        told.append(f"{name}: {', '.join(parts)}{_change(source, content, _code(run, name))}")
    return told


def _content(model: Artifact) -> str:
    """The SHA-256 of a model's file, or of what its code makes; empty for one that the run trains."""
    if model.builder.name == "zoo":
        return model.version.partition("|")[2].partition("|")[0]
    return str(model.builder.kwargs.get("sha256", ""))


def _when(times: list[float]) -> list[str]:
    """First and last time of a model's results, in UTC to the minute."""
    shown = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}" for t in (min(times), max(times))] if times else []
    return [f"measured {' to '.join(dict.fromkeys(shown))} UTC"] if shown else []


def _code(run: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """Files of the user's code that a model rests on → SHA-256; empty for other models."""
    return _part(run, "identities", "models", name, "code")


def _part(run: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What a run says of itself under some keys; empty where it says nothing, or was damaged."""
    found: Any = run
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _change(source: str, content: str, code: Mapping[str, str]) -> str:
    """Whether the model's file is another one now, or gone; nothing is executed."""
    path = Path(source.rpartition(":")[0] if ".py:" in source else source)
    if not (path.suffix and path.is_absolute()):  # a name of the zoo, a model that was trained, an installed module
        return ""
    if not path.is_file():
        return " - WARNING: the file is not there now"
    known = code.get(path.name, "") if code else content
    with suppress(OSError):
        if not known or sha256_of(path) == known:
            return ""
    return " - WARNING: the file differs now; the numbers are those of the model that was measured"
