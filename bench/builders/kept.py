"""Arrays of a stored artifact: one file, whole or not there, the header written after it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from robench.errors import ModelError, must
from robench.files import write_atomically
from robench.spec import Artifact


def keep_arrays(path: Path, arrays: Mapping[str, Any], artifact: Artifact, **told: Any) -> None:
    """Write arrays to an ``.npz`` file, then ``header.json`` beside it, which marks the artifact as built.

    Args:
        path: The file.
        arrays: Name → array of any shape.
        artifact: What they belong to.
        told: Further entries of the header.

    Raises:
        StoreError: The folder cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))
    write_atomically(path, buffer.getvalue())
    write_atomically(path.parent / "header.json", json.dumps({"builder": str(artifact.builder), **told}).encode())


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Name → array, as tensors of the shapes and types that were kept, in their order.

    Raises:
        ModelError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (OSError, EOFError, ValueError, KeyError, TypeError, MemoryError, NotImplementedError, BadZipFile) as error:
        raise ModelError(must(str(path), "readable", str(error), "remove its folder and run again")) from error
