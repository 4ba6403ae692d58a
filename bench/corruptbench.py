"""How fast the corruptions are against the reference implementation, on the same images, one process, one thread.

``python -m robench.corruptbench`` prints the time per image of each corruption (mean over five severities), robench's in
batches and the package ``imagecorruptions``' image by image, as each is meant to be used. Both get the levels of
``imagenet-v1``, the only ones that the package has. What the package's version 1.1.2 needs to run beside current libraries
is put in its place by ``reference``: it is measured, not altered otherwise.

What counts, on both sides: the whole call ``corrupt``, with its checks of the input, all random draws from their seeds on,
the corruption, and the cut to 8 bits. Each starts from the form of image that it takes and ends with the one that it gives:
float32 (N, C, H, W) for robench, uint8 (H, W, C) for the package; the column of 8-bit arrays adds to robench's time the way
from uint8 (N, H, W, C) and back. Each side runs once before it is timed: robench's tables (kernels, quantiles), which it
keeps between calls, are not counted. CPU time of all threads of the process; torch and OpenCV are given one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robench.children import keep_memory
from robench.corrupt.apply import corrupt
from robench.corrupt.tables import BENCHMARK, EXTRA, SEVERITIES
from robench.devices import exact_arithmetic
from robench.errors import ConfigError, must
from robench.ops.chance import seeded

PACKAGE = "imagecorruptions"
TABLE = "imagenet-v1"
FAIR_WITHOUT = ("frost",)
"""Corruptions whose reference spends its time on something else (frost: reading a photograph anew for every image)."""

Corrupt = Callable[[np.ndarray, str, int], np.ndarray]
"""(uint8 (H, W, C), name, severity) → uint8 (H, W, C)."""
Work = Callable[[np.ndarray, str, int], object]
"""(uint8 (N, H, W, C), name, severity) → the corrupted images, in whatever form."""


_BYTES = "robench, 8-bit arrays"


def reference() -> Corrupt:
    """The reference implementation, with the names that setuptools, numpy and scikit-image dropped since.

    Raises:
        ConfigError: The package is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(must("the reference implementation", "installed", "nothing", f"pip install {PACKAGE}"))
    module = _imported()
    corrupt_one: Corrupt = lambda image, name, severity: np.asarray(  # noqa: E731
        module.corrupt(image, corruption_name=name, severity=severity)
    )
    return corrupt_one


def _imported() -> Any:
    """The package's module, patched inside itself only."""
    missing = "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None
    if missing:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_filename = _resource  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    try:
        module: Any = importlib.import_module(PACKAGE)
        inner: Any = importlib.import_module(f"{PACKAGE}.corruptions")
    finally:
        if missing:
            del sys.modules["pkg_resources"]
    gaussian = importlib.import_module("skimage.filters").gaussian
    inner.np = types.ModuleType("numpy")
    inner.np.__dict__.update(np.__dict__, float_=np.float64)
    inner.gaussian = lambda image, sigma, multichannel=False, **more: gaussian(
        image, sigma, channel_axis=-1 if multichannel else None, **more
    )
    return module


def _resource(name: str, path: str) -> str:
    spec = importlib.util.find_spec(name.partition(".")[0])
    return str(Path(str(spec.origin if spec else "")).parent / path)


def measure(x: Tensor, *, names: Sequence[str] = (*BENCHMARK, *EXTRA), repeats: int = 3) -> pd.DataFrame:
    """One row per corruption: milliseconds of CPU time per image (lowest of the repeats), and the ratios.

    Args:
        x: Images on the 8-bit grid, float32 (N, C, H, W); one batch for robench, one by one for the reference.
        names: Corruptions that both have.
        repeats: Times that each runs, in turn, after one run that is not timed.
    """
    theirs, pictures = reference(), (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    ids = torch.arange(len(x))
    works: dict[str, Work] = {
        "robench": lambda _, name, severity: corrupt(x, name, severity=severity, table=TABLE, ids=ids),
        _BYTES: lambda batch, name, severity: _on_arrays(batch, name, severity, ids),
        PACKAGE: lambda batch, name, severity: [theirs(picture, name, severity) for picture in batch],
    }
    rows = []
    for name in names:
        spent: dict[str, list[float]] = {tool: [] for tool in works}
        for _ in range(repeats + 1):
            for tool, work in works.items():
                with seeded(0, name):
                    spent[tool].append(_seconds(lambda severity: work(pictures, name, severity)))  # noqa: B023
        best = {tool: 1000 * min(times[1:]) / (len(x) * len(SEVERITIES)) for tool, times in spent.items()}
        ratios = {"ratio": best[PACKAGE] / best["robench"], "ratio, 8-bit arrays": best[PACKAGE] / best[_BYTES]}
        rows.append({"corruption": name, **best, **ratios})
    return pd.DataFrame(rows)


def _on_arrays(pictures: np.ndarray, name: str, severity: int, ids: Tensor) -> np.ndarray:
    """``corrupt`` from uint8 (N, H, W, C) to the same."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float().div_(255)
    found = corrupt(x, name, severity=severity, table=TABLE, ids=ids).mul_(255).round_().byte()
    return found.permute(0, 2, 3, 1).contiguous().numpy()


def _seconds(work: Callable[[int], object]) -> float:
    start = time.process_time()
    for severity in SEVERITIES:
        work(severity)
    return time.process_time() - start


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return math.exp(math.fsum(math.log(r) for r in ratios) / len(ratios))


@click.command()
@click.option("--images", default=100, show_default=True)
@click.option("--side", default=32, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--corruption", "names", multiple=True, default=(*BENCHMARK, *EXTRA), help="Only these.")
def main(images: int, side: int, repeats: int, names: tuple[str, ...]) -> None:
    """Compare the corruptions' throughput with the reference implementation's, on one thread."""
    torch.set_num_threads(1)
    importlib.import_module("cv2").setNumThreads(1)
    keep_memory()
    noise = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (images, 3, side, side))
    with exact_arithmetic(1):
        table = measure(torch.from_numpy(noise).float() / 255, names=names, repeats=repeats)
    click.echo(table.to_markdown(index=False, floatfmt=".3f") + "\n")
    fair = table[~table["corruption"].isin(FAIR_WITHOUT)]
    click.echo(f"{images} images of {side} x {side}, CPU milliseconds per image, one thread, levels of {TABLE}")
    for column in ("ratio", "ratio, 8-bit arrays"):
        click.echo(f"geometric mean of {column}: {geometric_mean(table[column].tolist()):.1f}")
        if len(fair):
            click.echo(f"    without {', '.join(FAIR_WITHOUT)}: {geometric_mean(fair[column].tolist()):.1f}")


if __name__ == "__main__":
    main()
