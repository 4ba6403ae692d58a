"""robench beside other libraries: the same model, images, eps and threads, one fresh process per tool, tools in turn.

``python -m robench.benchmark`` (or ``make bench-attacks``) prints a table and writes it as CSV. The peers are the extra
``robench[peers]``; one that is not installed is named and left out.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robench import catalog
from robench.attacks._engine import Engine
from robench.attacks._pgd import pgd
from robench.children import keep_memory
from robench.devices import exact_arithmetic
from robench.errors import ConfigError, must
from robench.files import write_atomically
from robench.inference import predict, untouched
from robench.judge import judge
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.sources import resolve_sources
from robench.spec import Artifact, Context, Ref, ThreatModel, canonical, sha256
from robench.workshop import load, load_model
from robench.zoo.entries import ZOO

PEERS = {"pyautoattack": "pyautoattack", "foolbox-pgd": "foolbox", "art-pgd": "art"}
"""Tool → module it needs."""
STEPS = 40
"""Steps of the plain PGDs, which all take 2.5·eps/steps a step from the clean image and return their last point."""


GRID: dict[str, dict[str, tuple[str, ...]]] = {
    "digits": {"linf": ("0.1", "0.05", "0.2"), "l2": ("1.0", "0.5", "1.5"), "l1": ("10", "5", "15")},
    "mnist": {"linf": ("0.2", "0.1", "0.3"), "l2": ("1.5", "1.0", "2.0"), "l1": ("10", "5", "20")},
    "cifar10": {"linf": ("8/255", "4/255", "16/255"), "l2": ("0.5", "0.25", "1.0"), "l1": ("12", "6", "20")},
}
"""Data set → attack norm → radii of a grid, the first of which a net is trained at; they lie where some images hold."""
TRAINED = ("linf", "l2")
"""Norms of the adversarial trainings of a grid."""


@dataclass(frozen=True)
class Job:
    """One tool on one model."""

    tool: str
    model: str
    data: str
    threat: str
    n: int
    threads: int
    trust: bool = False
    store: str = "runs/bench"
    """Folder that keeps the networks which ``trained(...)`` names."""


class Counted(nn.Module):
    """The model, with a count of the images it was shown and of those a gradient was asked for.

    A search in lower precision asks a copy instead; its passes are those that the engine booked.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        outputs: Tensor = self.inner(x)
        if outputs.requires_grad:
            outputs.register_hook(self._asked)
        return outputs

    def _asked(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def work(job: Job) -> dict[str, Any]:
    """Run one tool: which images stayed right under it, and what it cost.

    ``right`` is the judge's word for every tool alike: an image ``outside`` the ball or the box is projected back before it
    counts. ``largest`` is the largest distance, in the threat's norm, of an image as the tool gave it.
    """
    torch.set_num_threads(job.threads)
    keep_memory()
    model, x, y = opened(job)
    counted, threat = Counted(model).eval(), ThreatModel.parse(job.threat)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with exact_arithmetic(job.threads):
        start = time.process_time()
        found = TOOLS[job.tool](counted, x, y, threat, job.tool)
        seconds = time.process_time() - start
        x_adv = found.best if isinstance(found, Engine) else found[0] if isinstance(found, tuple) else found
        verdicts = judge(model, x, y, x_adv=x_adv.detach(), threat=threat)
    outside = int(verdicts.projected.sum())
    if outside:
        told = f"{outside} of {len(y)} images of {job.tool} lay outside {threat} and count as projected back"
        click.echo(told, err=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "right": (~verdicts.broken()).tolist(),
        "by": _breakers(found, len(y)),
        "seconds": seconds,
        "forwards": counted.forwards / len(y),
        "backwards": counted.backwards / len(y),
        "peak_mb": (peak - before) / 1024,
        "largest": float(distance(x, x_adv, threat.norm).max()),
        "outside": outside,
        "escalated": "; ".join(dict.fromkeys(found.escalated)) if isinstance(found, Engine) else "",
    }


def opened(job: Job) -> tuple[nn.Module, Tensor, Tensor]:
    """The job's model and its first n test images and labels."""
    sources, paths = resolve_sources(job.data, [job.model], trust=job.trust)
    label = job.model if job.model in sources.models else next(m for m in sources.models if m not in ZOO)
    context = Context(job.store, "cpu", trust=job.trust, sources=paths)
    ref = catalog.BUILDERS.resolve(Ref.of("images", source=job.data, split="test", limit=job.n, seed=0))
    images = load(Artifact("data", ref, sources.splits["test"], label=sources.data_label), context)
    return load_model(sources.models[label], context).net.eval(), images.images(), images.labels


Found = Tensor | tuple[Tensor, list[str]] | Engine
"""Images (N, ...), where the tool tells also with the name of what broke each; of our protocols the whole engine."""


def _protocol(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, tool: str) -> Engine:
    name, _, precision = tool.partition("@")
    engine = Engine(model, x, y, torch.arange(len(y)), threat, precision=precision or "float32")
    with untouched(model):
        catalog.ATTACKS[name].load()(engine)
    if precision and isinstance(model, Counted):
        model.forwards, model.backwards = (int(engine.books[book].sum()) for book in ("forwards", "backwards"))
    return engine


def _breakers(found: Found, count: int) -> list[str]:
    """What broke each image, where the tool tells."""
    if isinstance(found, Engine):
        return [found.waterfall[s].name if s >= 0 else "" for s in found.stage.tolist()]
    return found[1] if isinstance(found, tuple) else [""] * count


def _pgd(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, tool: str) -> Tensor:
    with untouched(model):
        found: Tensor = pgd(
            model, x, y, threat=threat, seeds=Draws(0, torch.arange(len(y))), steps=STEPS, random_start=False
        )
    return found


def _pyautoattack(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, tool: str) -> Found:
    """Its attacks one after the other on what the earlier ones left, as its own loop has it, to know which broke what."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    adversary = AutoAttack(model, norm=norm, eps=threat.eps, version="standard", device="cpu", seed=0)
    adversary.verbose = False
    x_adv, by = x.clone(), [""] * len(y)
    left = (predict(model, x, width=64).argmax(1) == y).nonzero()[:, 0]
    for attack in list(adversary.attacks_to_run):
        if not len(left):
            break
        adversary.attacks_to_run = [attack]
        found = adversary.run_standard_evaluation(x[left], y[left], batch_size=250)
        x_adv[left] = found[0] if isinstance(found, tuple) else found
        wrong = predict(model, x_adv[left], width=64).argmax(1) != y[left]
        for row in left[wrong].tolist():
            by[row] = attack
        left = left[~wrong]
    return x_adv, by


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, tool: str) -> Tensor:
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat.norm]
    attack = kind(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=False)
    found: Tensor = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=threat.eps)[1]
    return found


def _art(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, tool: str) -> Tensor:
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classes = predict(model, x[:1], width=1).shape[1]
    classifier = PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(
        classifier, norm=np.inf if threat.norm == "linf" else 2, eps=threat.eps, eps_step=2.5 * threat.eps / STEPS,
        max_iter=STEPS, batch_size=64, verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), np.eye(classes, dtype=np.float32)[y.numpy()]))


TOOLS: dict[str, Callable[..., Found]] = {
    "robench-standard": _protocol,
    "robench-standard@bfloat16": _protocol,
    "robench-deep": _protocol,
    "autoattack-standard": _protocol,
    "robench-pgd": _pgd,
    "pyautoattack": _pyautoattack,
    "foolbox-pgd": _foolbox,
    "art-pgd": _art,
}


def compare(jobs: Sequence[Job], reference: str = "pyautoattack", *, reuse: bool = False) -> pd.DataFrame:
    """One row per job: robust accuracy, images broken only by it or only by the reference, cost and ratio of times.

    ``ratio`` is the reference's time over the tool's, on the same model, data and threat; missing where one of the two was
    measured in another run.

    Args:
        jobs: What to run, in this order.
        reference: Tool that the others are set beside.
        reuse: Take what a peer found in an earlier run from the store, where it is there.
    """
    rows, masks = [], {}
    for job in jobs:
        found = _result(job, reuse=reuse and job.tool in PEERS)
        key = (job.model, job.data, job.threat, job.n)
        right = torch.tensor(found.pop("right"))
        masks[(*key, job.tool)] = right, found.pop("by")
        rows.append({"model": job.model, "data": job.data, "threat": job.threat, "n": job.n, "tool": job.tool,
                     "robust": float(right.double().mean()), **found})  # fmt: skip
        told = f"{rows[-1]['robust']:.4f} in {found['seconds']:.1f} s"
        click.echo(f"{job.tool} on {job.model}, {job.threat}: {told}", err=True)
    table = pd.DataFrame(rows)
    return pd.concat([table, pd.DataFrame([_beside(r, rows, masks, reference) for r in rows])], axis=1)


def _result(job: Job, *, reuse: bool) -> dict[str, Any]:
    """What ``work`` tells, from a fresh process or, where that is wanted, from the store; it is kept there in any case."""
    digest = sha256(canonical(list(astuple(job)[:-1])))
    place = Path(job.store) / "results" / f"{digest}.json"
    if reuse and place.is_file():
        stored: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return {"outside": None, **stored, "reused": True}  # None: of a version that did not look
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(work, (job,))
    write_atomically(place, json.dumps(found).encode())
    return {**found, "reused": False}


def _beside(row: dict[str, Any], rows: list[dict[str, Any]], masks: dict[Any, Any], reference: str) -> dict[str, Any]:
    """What one of the two broke and the other did not, with the places of the images and what broke them."""
    key = (row["model"], row["data"], row["threat"], row["n"])
    other = next((r for r in rows if (r["model"], r["data"], r["threat"], r["n"], r["tool"]) == (*key, reference)), None)
    if other is None:
        return {"only_this": None, "only_reference": None, "ratio": None}
    (mine, by), (theirs, found_by) = masks[(*key, row["tool"])], masks[(*key, reference)]
    gained, missed = ((a & ~b).nonzero()[:, 0].tolist() for a, b in ((theirs, mine), (mine, theirs)))
    return {
        "only_this": len(gained),
        "only_reference": len(missed),
        "gained": ", ".join(f"{i} ({by[i]})" for i in gained),
        "missed": ", ".join(f"{i} ({found_by[i]})" for i in missed),
        "ratio": None if row["reused"] != other["reused"] else other["seconds"] / row["seconds"],
    }


def grid(data: str) -> tuple[dict[str, str], list[str]]:
    """Trainings (model → training norm) and threats of the grid of a data set: no attack is tuned on one kind of net alone.

    Raises:
        ConfigError: A data set that has no radii.
    """
    name = Ref.parse(data).name
    if name not in GRID:
        expected = "one of " + ", ".join(GRID)
        raise ConfigError(must("the data of a grid", expected, name, "name models and threats with --model and --threat"))
    models = {"trained(arch='small_cnn', recipe='standard', steps=1000)": "none"}
    for norm in TRAINED:
        recipe = f'pgd_at(eps={GRID[name][norm][0]}, steps=5, norm="{norm}")'
        models[f"trained(arch='small_cnn', recipe='{recipe}', steps=1000)"] = norm
    return models, [f"{norm}({eps})" for norm, radii in GRID[name].items() for eps in radii]


def pooled(table: pd.DataFrame, trainings: dict[str, str], reference: str = "pyautoattack") -> pd.DataFrame:
    """One row per tool, training norm and attack norm: images that one of the two broke alone, worst row, ratios of times.

    Args:
        table: What ``compare`` returns; rows of the reference itself are left out.
        trainings: Model → norm it was trained in.
    """
    rows = table[table["only_this"].notna() & table["tool"].ne(reference)].copy()
    rows["trained in"], rows["attacked in"] = (
        rows["model"].map(trainings),
        rows["threat"].str.replace(r"\(.*", "", regex=True),
    )
    rows["worst row"] = rows["only_reference"] - rows["only_this"]
    rows["log"] = np.log(rows["ratio"].astype(float))
    found = rows.groupby(["tool", "trained in", "attacked in"], sort=False).agg(
        rows=("n", "size"), images=("n", "sum"), only_this=("only_this", "sum"), only_reference=("only_reference", "sum"),
        worst_row=("worst row", "max"), ratio=("log", "mean"), lowest=("ratio", "min"),
    )  # fmt: skip
    return found.assign(ratio=np.exp(found["ratio"])).reset_index()


@click.command()
@click.option("--model", "models", multiple=True, help="A model of the zoo or a factory (path.py:function, with --trust).")
@click.option("--data", default="digits", show_default=True)
@click.option("--threat", "threats", multiple=True, help="linf(0.1) where none is given and no grid.")
@click.option("--grid", "wants_grid", is_flag=True, help="Nets trained in each norm, attacked in each norm at three radii.")
@click.option("--tool", "tools", multiple=True, help="Tools to run; by default all that are installed.")
@click.option("--n", default=200, show_default=True, help="Test images.")
@click.option("--threads", default=1, show_default=True)
@click.option("--trust", is_flag=True, help="Factories are code: run them.")
@click.option("--reuse", is_flag=True, help="Take what peers found in earlier runs from the store.")
@click.option("--store", default="runs/bench", show_default=True, help="Folder that keeps networks named as trained(...).")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench-attacks.csv"), show_default=True)
def main(
    models: tuple[str, ...], data: str, threats: tuple[str, ...], wants_grid: bool, tools: tuple[str, ...], n: int,
    threads: int, trust: bool, reuse: bool, store: str, out: Path,
) -> None:  # fmt: skip
    """Compare attacks across libraries on the same images."""
    missing = {t for t, module in PEERS.items() if importlib.util.find_spec(module) is None}
    chosen = [t for t in tools or TOOLS if t not in missing]
    for tool in sorted(missing & set(tools or TOOLS)):
        click.echo(f"{tool} left out: its package is not installed (pip install 'robench[peers]')", err=True)
    trainings, radii = grid(data) if wants_grid else ({}, ["linf(0.1)"])
    named = (*models, *trainings) or ("digits-pgd-at", "digits-trades", "digits-standard", "digits-vit")
    met = threats or radii
    jobs = [Job(tool, m, data, threat, n, threads, trust, store) for m in named for threat in met for tool in chosen]
    table = compare(jobs, reuse=reuse)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    click.echo(table.to_markdown(index=False, floatfmt=".3f"))
    if wants_grid:
        told = pooled(table, {**dict.fromkeys(models, "given"), **trainings})
        click.echo(told.to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    main()
