"""What one gradient step of an attack costs over the floor: a fused forward pass and input gradient of the bare model.

The floor is that of the memory layout, contiguous or channels-last, in which the model is faster.

``python -m robench.stepcost`` runs all tools in turn in one process, the floor between them, and prints the ratios. No
sample breaks, so that every batch stays full; peers that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence

import click
import pandas as pd
import torch
from torch import Tensor, nn

from robench import attacks
from robench.attacks._apgd import apgd
from robench.attacks._climb import Phase, climb, cosine
from robench.attacks._pgd import pgd
from robench.benchmark import TOOLS, Counted
from robench.catalog import ARCHITECTURES
from robench.children import keep_memory
from robench.devices import exact_arithmetic
from robench.inference import untouched
from robench.ops.losses import margin
from robench.ops.random import Draws
from robench.spec import Ref, ThreatModel
from robench.victim import Victim

STEPS = 40
EPS = 1e-6
"""So small that no sample breaks; the arithmetic is that of any other radius."""
SETTINGS = (
    ("small_cnn(width=16)", (1, 32, 32), 64),
    ("resnet18(width=16, in_channels=3)", (3, 32, 32), 64),
    ("resnet18(width=24, in_channels=3)", (3, 32, 32), 64),
    ("resnet18(width=64, in_channels=3)", (3, 32, 32), 4),
)
"""(architecture, shape of an image, images)."""
PEERS = {"torchattacks": "torchattacks", "foolbox-pgd": "foolbox", "art-pgd": "art", "pyautoattack-apgd": "pyautoattack"}
"""Tool → module it needs."""

Tool = Callable[[nn.Module, Tensor, Tensor, str], object]
"""(model, images, labels, norm) → whatever the attack returns."""


def floor(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The input gradient of the summed cross-entropy, (N, ...): what no gradient step can do without."""
    leaf = x.detach().requires_grad_(True)
    return torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def _victim(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Victim:
    return Victim(model, x, y, threat=ThreatModel.parse(f"{norm}({EPS})"), width=len(x))


def _plain(function: Callable[..., Tensor]) -> Tool:
    def run(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> object:
        victim = _victim(model, x, y, norm)
        return function(victim, x, y, threat=victim.threat, seeds=Draws(0, torch.arange(len(x))), steps=STEPS)

    return run


def _climb(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> None:
    climb(_victim(model, x, y, norm), torch.arange(len(x)), lambda k: x[k], [Phase(cosine(STEPS, EPS))])


def _called(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> object:
    """PGD as a user calls it: what is done for a plain module, its layout and its trial among it, is part of the cost."""
    return attacks.pgd(model, x, y, threat=f"{norm}({EPS})", steps=STEPS)


def _benchmarked(name: str) -> Tool:
    return lambda model, x, y, norm: TOOLS[name](model, x, y, ThreatModel.parse(f"{norm}({EPS})"), name)


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> object:
    import torchattacks

    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    return kind(model, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS)(x, y)


def _pyautoattack(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> object:
    from pyautoattack.autopgd_base import APGDAttack

    names = {"linf": "Linf", "l2": "L2"}
    return APGDAttack(model, n_iter=STEPS, norm=names[norm], eps=EPS, device="cpu").perturb(x, y)


STEPPERS: dict[str, Tool] = {
    "robench-pgd": _plain(pgd),
    "robench.attacks.pgd": _called,
    "robench-climb": _climb,
    "robench-apgd": _plain(apgd),
    "torchattacks": _torchattacks,
    "foolbox-pgd": _benchmarked("foolbox-pgd"),
    "art-pgd": _benchmarked("art-pgd"),
    "pyautoattack-apgd": _pyautoattack,
}


def installed(names: Sequence[str]) -> list[str]:
    """Those of the tools whose packages are there."""
    return [t for t in names if t not in PEERS or importlib.util.find_spec(PEERS[t]) is not None]


def measure(
    arch: str,
    shape: Sequence[int],
    count: int,
    *,
    norm: str = "linf",
    tools: Sequence[str] = tuple(STEPPERS),
    repeats: int = 5,
    channels_last: bool = False,
) -> pd.DataFrame:
    """One row per tool: CPU time of a gradient pass over the floor's (lowest, and median over the repeats), and its passes.

    The median's floor is measured right before and right after the tool, whose time may drift.

    ``gradients`` and ``forwards`` are passes over the batch, as the model counted them in a run that is not timed. The
    floor's ``ms`` is its lowest time of a pass.

    Args:
        arch: An architecture of the table, untrained.
        shape: (C, H, W) of the images.
        count: Images, one full batch.
        norm: ``linf`` or ``l2``.
        tools: Names in ``STEPPERS``.
        repeats: Times that each tool runs, in turn with the floor.
        channels_last: The caller's images lie channels-last in memory; the floor is that of the faster layout in any case.
    """
    model, x, y = _setting(arch, shape, count)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with untouched(model):
        passes = {tool: _counted(tool, model, x, y, norm) for tool in tools}
        times: dict[str, list[tuple[float, float]]] = {tool: [] for tool in tools}
        bases = [_floors(model, x, y)]
        for tool in [tool for _ in range(repeats) for tool in tools]:
            spent = _seconds(lambda tool=tool: STEPPERS[tool](model, x, y, norm))  # type: ignore[misc]
            bases.append(_floors(model, x, y))
            times[tool].append((spent / passes[tool][1], (bases[-2] + bases[-1]) / 2))
    lowest = min(bases)
    rows = []
    for tool, found in times.items():
        ratios = {"lowest": min(s for s, _ in found) / lowest, "median": statistics.median(s / b for s, b in found)}
        told = {"forwards": passes[tool][0], "gradients": passes[tool][1], "ms": 1000 * lowest}
        rows.append({"arch": arch, "n": count, "norm": norm, "tool": tool, **ratios, **told})
    return pd.DataFrame(rows)


def _setting(arch: str, shape: Sequence[int], count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained model, and the random images of which it is surest with its own labels."""
    ref = ARCHITECTURES.resolve(Ref.parse(arch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = ARCHITECTURES[ref.name].load()(**ref.kwargs).eval()
    x = Draws(0, torch.arange(4 * count)).uniform("stepcost", tuple(shape))
    with torch.no_grad():
        outputs = model(x)
    chosen = margin(outputs, outputs.argmax(1)).argsort(descending=True)[:count]
    return model, x[chosen], outputs.argmax(1)[chosen]


def _counted(tool: str, model: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[float, float]:
    counted = Counted(model).eval()
    STEPPERS[tool](counted, x, y, norm)
    return counted.forwards / len(x), counted.backwards / len(x)


def _floors(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of one floor pass in the faster of the two layouts, over half as many each as a tool takes steps.

    No gradient is kept, as no attack keeps any.
    """
    half = STEPS // 2
    laid = [x.contiguous(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)]

    def passes(images: Tensor) -> None:
        for _ in range(half):
            floor(model, images, y)

    return min(_seconds(lambda images=images: passes(images)) for images in laid) / half  # type: ignore[misc]


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@click.command()
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(STEPPERS)), help="By default all that are installed.")
@click.option("--norm", "norms", multiple=True, default=("linf", "l2"), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--arch", "archs", multiple=True, help="Only these of the settings, by their architecture.")
@click.option("--channels-last", is_flag=True, help="Give all tools images that lie channels-last in memory.")
def main(tools: tuple[str, ...], norms: tuple[str, ...], repeats: int, archs: tuple[str, ...], channels_last: bool) -> None:
    """Compare what a gradient step costs across libraries, on one thread."""
    torch.set_num_threads(1)
    keep_memory()
    chosen = installed(tools or tuple(STEPPERS))
    with exact_arithmetic(1):
        for arch, shape, count in SETTINGS:
            for norm in norms if not archs or arch in archs else ():
                table = measure(arch, shape, count, norm=norm, tools=chosen, repeats=repeats, channels_last=channels_last)
                click.echo(table.to_markdown(index=False, floatfmt=".3f") + "\n")


if __name__ == "__main__":
    main()
