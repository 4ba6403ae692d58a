"""What this environment is, and what is missing in it."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from robench.devices import usable_cores
from robench.store import free_bytes

_NEEDED = ("torch", "numpy", "pandas", "scipy", "scikit-learn", "captum", "adversarial-robustness-toolbox", "pyarrow")
_OPTIONAL = ("foolbox", "torchvision", "kornia")


def findings() -> Iterator[tuple[str, str, bool]]:
    """(name, what was found, whether it is as it should be) of each check."""
    import torch

    yield "python", platform.python_version(), True
    for name in _NEEDED:
        yield name, *_version(name)
    for name in _OPTIONAL:
        yield name, _optional(name), True
    yield "cores", str(usable_cores()), True
    yield (
        "cuda",
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (fine: everything runs on the CPU)",
        True,
    )
    flags = f"cudnn.allow_tf32={torch.backends.cudnn.allow_tf32}, switched off while judging"
    yield "precision", flags, True
    free = free_bytes(Path.cwd()) / 2**30
    yield (
        "free disk",
        f"{free:.1f} GiB" + ("" if free > 1 else "; a run needs about 1 GiB: free some or use --out"),
        free > 1,
    )


def _version(name: str) -> tuple[str, bool]:
    try:
        return metadata.version(name), True
    except metadata.PackageNotFoundError:
        return f"missing: pip install {name}", False


def _optional(name: str) -> str:
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except metadata.PackageNotFoundError:
        return f"not installed (optional; pip install {name})"
    except (ImportError, RuntimeError, OSError) as error:
        return f"{version}, broken and not used: {str(error).splitlines()[0]}"
    return version
