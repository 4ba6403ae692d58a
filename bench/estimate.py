"""How long a plan will take: passes counted from the plan, seconds per pass measured here and now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from robench import catalog
from robench.builders.training import fresh_network
from robench.children import isolated
from robench.devices import exact_arithmetic, resolve_device, usable_cores
from robench.errors import RobenchError
from robench.plan import Plan
from robench.spec import Artifact, Cell, Context, Ref, ThreatModel
from robench.workshop import load, load_model

START = 6.0
"""Seconds until a worker has imported what it needs."""
OVERHEAD = 0.06
"""Seconds per cell outside the model: loading, judging twice, writing."""
FITTING = 0.6
"""Seconds per cell of OOD detectors on top of that: covariance and principal space of a thousand features."""
PROTOCOLS = {
    "autoattack-standard": 11_600.0,
    "autoattack-plus": 24_300.0,
    "autoattack-rand": 12_000.0,
    "compressed-union": 2300.0,
    "robench-standard": 1000.0,
    "robench-deep": 11_300.0,
    "robench-l0": 5500.0,
    "curve": 4500.0,
}
"""Forward passes' worth of a sample that a protocol does not break; a gradient counts as two more.

Measured on the rows of the suites ``full`` and ``compression``: 830 to 1290 and 2000 to 2900 for the two of robench's own.
"""
LEFT, EVERY = 0.6, 8.0
"""Share of the samples that attacks leave where that cannot be tried, and passes of a sample that they break at once."""
TRIED, TRIAL = 32, 5
"""Samples and steps of the short attack that tells how many of a model's samples an attack will have to work on."""
SENTINEL = (46.0, 64, 540.0)
"""Passes' worth of the sentinel's cheap looks at each sample, and the few samples that get this many more."""
TURN = 2.0
"""Passes' worth of one rotated image: to turn it takes about as long as to look at it."""
TIMED, MEASURING = 18_600.0, 13.0
"""Passes that ``efficiency`` times at four batch sizes, and the seconds after which it leaves the rest."""
COMPARED = 110.0
"""Passes' worth of an image whose map of two models is compared, on average over explainers."""
LOOPS = ("steps", "queries", "draws", "max_iter")
"""Arguments that count an attack's steps; the first one it has."""
TIMES = ("restarts", "targets", "searches")
"""Arguments that repeat them."""


def duration(seconds: float) -> str:
    """Seconds as people say them: ``40 s``, ``9 min``, ``2 h 40 min``."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def estimate(plan: Plan, **options: Any) -> tuple[float, int]:
    """``estimate_seconds``, in a process of its own where the plan has models of the user's.

    Raises:
        ModelError: Such a model cannot be loaded, or ends its process.
    """
    if not any(cell.model.builder.name == "file" for cell in plan.cells):
        return estimate_seconds(plan, **options)
    return isolated(_estimated, (plan, options), what="the time estimate")


def _estimated(told: tuple[Plan, dict[str, Any]]) -> tuple[float, int]:
    """``estimate_seconds`` of one picklable argument."""
    return estimate_seconds(told[0], **told[1])


def estimate_seconds(
    plan: Plan,
    *,
    device: str,
    workers: int | None,
    sources: Iterable[tuple[str, str]] = (),
    trust: bool = False,
) -> tuple[float, int]:
    """Estimated wall seconds of a plan, and the number of workers it assumes; ``trust`` as in ``robench.run``."""
    where = resolve_device(device)
    count = workers or (usable_cores() if where == "cpu" else 1)
    context = Context("", where, sources=tuple(sources), trust=trust, code=plan.code)
    speed: dict[str, float] = {}
    left: dict[tuple[str, str], float] = {}
    total = 0.0
    for cell in plan.cells:
        base, threat = _base(cell.model), str(cell.scenario.kwargs.get("threat", ""))
        if _kind(base) not in speed:
            speed[_kind(base)] = _seconds_per_forward(base, cell, context)
        if "attack" in cell.scenario.kwargs and (base.digest, threat) not in left:
            left[base.digest, threat] = _share_left(base, cell, context)
        seconds = _forwards(cell, plan, left=left.get((base.digest, threat), LEFT)) * speed[_kind(base)]
        total += OVERHEAD + (min(seconds, MEASURING) if cell.scenario.name == "efficiency" else seconds)
        total += FITTING if cell.scenario.name == "ood" else 0.0
    for artifact in (a for level in plan.levels for a in level):
        total += _building(artifact, speed.get(_kind(artifact), max(speed.values(), default=1e-4)))
    return START + total / count, count


def _base(artifact: Artifact) -> Artifact:
    while artifact.builder.name in ("compressed", "defended", "tuned"):
        artifact = artifact.inputs[0]
    return artifact


def _kind(model: Artifact) -> str:
    """What is equally fast: trained networks of one architecture, else the model itself."""
    return str(model.builder.kwargs["arch"]) if model.builder.name == "trained" else model.digest


def _seconds_per_forward(model: Artifact, cell: Cell, context: Context) -> float:
    """Seconds of one forward of one sample; of a network still to be trained, before its training."""
    if _to_be_made(cell.data):
        return 3e-5
    data = load(cell.data, context)
    if model.builder.name == "trained":
        net = fresh_network(data, model.builder.kwargs["arch"], seed=0).to(context.device).eval()
    else:
        net = load_model(model, context).net
    x = data.images(torch.arange(min(64, len(data)))).to(context.device)
    with exact_arithmetic(), torch.no_grad():
        net(x)
        start = time.perf_counter()
        for _ in range(5):
            net(x)
    return (time.perf_counter() - start) / (5 * len(x))


def _to_be_made(data: Artifact) -> bool:
    return data.stored or any(part.stored for part in data.inputs)


def _share_left(model: Artifact, cell: Cell, context: Context) -> float:
    """Share of a few samples that a short attack at the cell's threat does not break; ``LEFT`` where it cannot be tried."""
    from robench.attacks import pgd

    threat = ThreatModel.parse(str(cell.scenario.kwargs["threat"]))
    known = catalog.ATTACKS["pgd"].facts["norms"]
    if model.builder.name == "trained" or _to_be_made(cell.data) or threat.norm not in known:
        return LEFT
    data, net = load(cell.data, context), load_model(model, context).net
    rows = torch.arange(min(TRIED, len(data)))
    x, y = data.images(rows).to(context.device), data.labels[rows].to(context.device)
    try:
        tried = pgd(net, x, y, threat=threat, steps=TRIAL)
    except RobenchError:
        return LEFT
    with torch.no_grad():
        return float((net(tried).argmax(1) == y).float().mean())


def _forwards(cell: Cell, plan: Plan, *, left: float = LEFT) -> float:
    """Forward passes of a cell over all samples, of which attacks leave a share; a gradient counts as two more."""
    samples = plan.suite.limit or 1000
    name = cell.scenario.name
    if name == "evasion_train":
        return plan.suite.robust_gap.limit * (EVERY + left * _attack_passes(cell.scenario.kwargs["attack"]))
    if name == "spatial":
        grid = cell.scenario.kwargs
        return samples * TURN * len(grid["angles"]) * len(grid["shifts"]) ** 2
    if name == "evasion":
        return samples * (EVERY + left * _attack_passes(cell.scenario.kwargs["attack"]))
    if name == "sentinel":
        every, few, more = SENTINEL
        return samples * every + min(samples, few) * more
    if name == "ood":
        steps = 4.0 if any(Ref.parse(d).name == "odin" for d in cell.scenario.kwargs["detectors"]) else 0.0
        return samples * steps * (1 + len(cell.scenario.kwargs["sources"]))
    if name == "twin":
        return samples * (6.0 + 2.0 * len(cell.extra) + 2 * _attack_passes("pgd(steps=20)"))
    if name == "efficiency":
        return TIMED
    if name == "explanation_change":
        return plan.suite.explain_limit * COMPARED * len(cell.scenario.kwargs["explainers"])
    per_sample = {"clean": 1.0, "corruption": 6.0, "flips": 31.0, "disagreement": 0.0}.get(name, 1.0)
    if name == "explanation":
        return plan.suite.explain_limit * 400.0 * len(cell.scenario.kwargs["explainers"])
    return samples * per_sample


def _attack_passes(attack: str) -> float:
    """Forward passes' worth of a sample that an attack does not break."""
    ref = catalog.ATTACKS.resolve(attack)
    if ref.name in PROTOCOLS:
        return PROTOCOLS[ref.name]
    if ref.name == "through":
        return 2 * _attack_passes(str(ref.kwargs["attack"]))
    entry = catalog.ATTACKS[ref.name]
    steps = next((float(ref.kwargs[name]) for name in LOOPS if name in ref.kwargs), 100.0 if ":" in ref.name else 1.0)
    for name in TIMES:
        steps *= max(float(ref.kwargs.get(name) or 1), 1.0)
    gradients = 0 if entry.facts.get("access") in ("score", "decision", "noise") else _gradients(ref)
    return steps * (1 + 2 * gradients)


def _gradients(ref: Ref) -> int:
    """Gradients of one step: attacks that look for the nearest class take one for each."""
    return 9 if ref.name in ("fab", "deepfool") else 1


def _building(artifact: Artifact, forward: float) -> float:
    if artifact.builder.name == "trained":
        arguments = artifact.builder.kwargs
        inner = catalog.RECIPES.resolve(arguments["recipe"]).kwargs.get("steps", 0)
        return float(arguments["steps"]) * arguments["batch_size"] * (4 + 3 * inner) * forward
    if artifact.builder.name == "attacked":
        images = artifact.inputs[1].builder.kwargs.get("limit") or 1000
        return float(images) * (EVERY + LEFT * _attack_passes(artifact.builder.kwargs["attack"])) * forward
    if artifact.builder.name == "tuned":
        arguments = catalog.COMPRESSIONS.resolve(artifact.builder.kwargs["method"]).kwargs
        return float(arguments["steps"]) * arguments.get("batch_size", 64) * 5 * forward
    return 0.5
