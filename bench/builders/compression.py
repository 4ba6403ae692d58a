"""Compressed copies of models: rebuilt from their parent in milliseconds, or stored where a file is what ships."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from robench import catalog
from robench.builders.apart import apart_from_test
from robench.errors import ModelError, must
from robench.files import write_atomically
from robench.registry import Entry, facts
from robench.spec import Artifact, Context, sha256
from robench.workshop import Model, folder, is_built, load_model


@facts(version=2, kind="model")
def compressed(artifact: Artifact, context: Context, *, method: str = "") -> Model:
    """A compressed copy of the first input; the second holds calibration images of the training split.

    A method whose fact ``stored`` names a function leaves files, which are kept; the function opens them.

    Raises:
        DataError: Calibration images that are also test images.
    """
    parent = load_model(artifact.inputs[0], context)
    ref = catalog.COMPRESSIONS.resolve(method)
    entry = catalog.COMPRESSIONS[ref.name]

    def made() -> nn.Module:
        extra: dict[str, Any] = {}
        if entry.facts.get("needs"):
            extra["calibration"] = apart_from_test(artifact.inputs[1], context).images().to(context.device)
        return entry.load()(parent.net, **extra, **ref.kwargs)  # type: ignore[no-any-return]

    net = _kept(artifact, context, entry, made) if artifact.stored else made()
    real = bool(entry.facts.get("stored"))  # a file that ships is real, whatever it was made from
    simulated = not real and (parent.simulated or bool(entry.facts.get("simulated")))
    return Model(net.eval(), parent.made, simulated=simulated, task=parent.task)


def _kept(artifact: Artifact, context: Context, entry: Entry, made: Callable[[], nn.Module]) -> nn.Module:
    """The model from its files, which are written first where they are not there.

    Raises:
        ModelError: A file is missing or is not the one that was written.
    """
    place = folder(artifact, context)
    if not is_built(artifact, context):
        files: dict[str, bytes] = made().files  # type: ignore[assignment]
        for name, content in files.items():
            write_atomically(place / name, content)
        header = {"builder": str(artifact.builder), "files": {name: sha256(content) for name, content in files.items()}}
        write_atomically(place / "header.json", json.dumps(header, indent=1, sort_keys=True).encode())
    remedy = "remove that folder and run again"
    try:
        known: dict[str, str] = json.loads((place / "header.json").read_text(encoding="utf-8"))["files"]
        if any(name != Path(name).name for name in known):
            raise ValueError("a file outside its folder")
        found = {name: (place / name).read_bytes() for name in known}
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(must(f"the compressed model in {place}", "whole", str(error), remedy)) from error
    for name, content in found.items():
        if sha256(content) != known[name]:
            raise ModelError(must(f"{place / name}", "unchanged since it was written", "other bytes", remedy))
    module, _, function = str(entry.facts["stored"]).partition(":")
    opened: nn.Module = getattr(importlib.import_module(module), function)(found)
    return opened
