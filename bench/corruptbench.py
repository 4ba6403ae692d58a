"""How fast the corruptions are against the reference implementation, on the same images, one process, one thread.

``python -m robench.corruptbench`` prints the time per image of each corruption (mean over five severities), robench's in
batches and the package ``imagecorruptions``' image by image, as each is meant to be used. Both get the levels of
``imagenet-v1``, the only ones that the package has. What the package's version 1.1.2 needs to run beside current libraries
is put in its place by ``reference``: it is measured, not altered otherwise.
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

from robench.corrupt.apply import corrupt
from robench.corrupt.tables import BENCHMARK, EXTRA, SEVERITIES
from robench.devices import exact_arithmetic
from robench.errors import ConfigError, must
from robench.executors import keep_memory
from robench.ops.chance import seeded

PACKAGE = "imagecorruptions"
TABLE = "imagenet-v1"
FAIR_WITHOUT = ("frost",)
"""Corruptions whose reference spends its time on something else (frost: reading a photograph anew for every image)."""

Corrupt = Callable[[np.ndarray, str, int], np.ndarray]
"""(uint8 (H, W, C), name, severity) → uint8 (H, W, C)."""


class _Numpy:
    """numpy with the name that numpy 2 dropped."""

    float_ = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


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
    inner.np = _Numpy()
    inner.gaussian = lambda image, sigma, multichannel=False, **more: gaussian(
        image, sigma, channel_axis=-1 if multichannel else None, **more
    )
    return module


def _resource(name: str, path: str) -> str:
    spec = importlib.util.find_spec(name.partition(".")[0])
    return str(Path(str(spec.origin if spec else "")).parent / path)


def measure(x: Tensor, *, names: Sequence[str] = (*BENCHMARK, *EXTRA), repeats: int = 3) -> pd.DataFrame:
    """One row per corruption: milliseconds of CPU time per image (lowest of the repeats), and the ratio.

    Args:
        x: Images on the 8-bit grid, float32 (N, C, H, W); one batch for robench, one by one for the reference.
        names: Corruptions that both have.
        repeats: Times that both run, in turn, after one run that is not timed.
    """
    theirs, pictures = reference(), list((x * 255).round().byte().permute(0, 2, 3, 1).numpy())
    ids = torch.arange(len(x))
    rows = []
    for name in names:
        spent: dict[str, list[float]] = {"robench": [], PACKAGE: []}
        for _ in range(repeats + 1):
            spent["robench"].append(_seconds(lambda s: corrupt(x, name, severity=s, table=TABLE, ids=ids)))  # noqa: B023
            with seeded(0, name):
                spent[PACKAGE].append(_seconds(lambda s: [theirs(p, name, s) for p in pictures]))  # noqa: B023
        best = {tool: 1000 * min(times[1:]) / (len(x) * len(SEVERITIES)) for tool, times in spent.items()}
        rows.append({"corruption": name, **best, "ratio": best[PACKAGE] / best["robench"]})
    return pd.DataFrame(rows)


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
    keep_memory()
    noise = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (images, 3, side, side))
    with exact_arithmetic(1):
        table = measure(torch.from_numpy(noise).float() / 255, names=names, repeats=repeats)
    click.echo(table.to_markdown(index=False, floatfmt=".3f") + "\n")
    fair = table[~table["corruption"].isin(FAIR_WITHOUT)]
    click.echo(f"{images} images of {side} x {side}, CPU milliseconds per image, one thread, levels of {TABLE}")
    click.echo(f"geometric mean of the ratios: {geometric_mean(table['ratio'].tolist()):.1f}")
    if len(fair):
        click.echo(f"without {', '.join(FAIR_WITHOUT)}: {geometric_mean(fair['ratio'].tolist()):.1f}")


if __name__ == "__main__":
    main()
