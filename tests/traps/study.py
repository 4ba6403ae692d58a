"""The trap study: every trap and every honest model through the same protocol, and what its verdict was worth.

``python tests/traps/study.py --help`` prints the tables; with ``--shared ../shared/data`` MNIST and CIFAR-10 take part.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

import robench
from robench.compress._int8 import int8
from robench.compress._prune import prune
from robench.data._digits import digits
from robench.defenses.training import train
from robench.errors import RobenchError
from robench.evaluation import Attacked, Evaluation
from robench.models._mlp import mlp
from robench.models._residual import wrn
from robench.models._small_cnn import small_cnn
from robench.models._vit import vit
from robench.zoo import load


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"traps_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


models, fresh = beside("models"), beside("fresh")

EPS = 0.1
NEAR = 0.02
"""A trap is broken when the attack comes this near to the share it breaks of the undefended net."""


PLAIN = ("noise", "pgd(steps=40)", "pgd(steps=40, loss='margin')")


@dataclass(frozen=True)
class Case:
    """A model to be judged."""

    name: str
    make: Callable[[], nn.Module]
    images: Callable[[], tuple[Tensor, Tensor]]
    threat: str = f"linf({EPS})"
    undefended: Callable[[], nn.Module] | None = None
    """The net inside a trap; None for an honest model."""
    new: bool = False
    """Whether it was written after the thresholds were fixed."""

    @property
    def honest(self) -> bool:
        return self.undefended is None


@cache
def digit_images(count: int = 500) -> tuple[Tensor, Tensor]:
    data = digits(split="test")
    return data.images()[:count], data.labels[:count]


def base_net(name: str) -> nn.Module:
    """A zoo net, or a tiny one, on which the whole protocol takes seconds."""
    return trained(4, "standard", 200, 0) if name == "tiny" else load(name)


def trap(kind: type[nn.Module], base: str = "tiny", threat: str = f"linf({EPS})") -> Case:
    told = {"threat": threat, "undefended": lambda: base_net(base), "new": issubclass(kind, fresh.Trap)}
    name = kind.__name__ + ("" if base == "tiny" else f" on {base}")
    return Case(named(name, threat), lambda: kind(copy.deepcopy(base_net(base))), digit_images, **told)


def honest(name: str, make: Callable[[], nn.Module], threat: str = f"linf({EPS})", *, new: bool = False) -> Case:
    return Case(named(name, threat), make, digit_images, threat, new=new)


def named(name: str, threat: str) -> str:
    return name if threat == f"linf({EPS})" else f"{name} {threat}"


def trained(width: int, recipe: str, steps: int, seed: int) -> nn.Module:
    """A small net of another width, trained here for some seconds."""
    return taught(lambda: small_cnn(width=width), recipe, steps, seed)


_TAUGHT: dict[tuple, nn.Module] = {}


def taught(make: Callable[[], nn.Module], recipe: str, steps: int, seed: int, data: str = "digits") -> nn.Module:
    """A net trained here for some seconds, the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
    key = (str(net), recipe, steps, seed, data)
    if key not in _TAUGHT:
        train(net, *pictures(data, "train"), recipe=recipe, steps=steps, seed=seed)
        _TAUGHT[key] = net.eval()
    return _TAUGHT[key]


@cache
def pictures(data: str, split: str) -> tuple[Tensor, Tensor]:
    """Images and labels: ``digits``, or the path of a folder of MNIST or CIFAR-10 as the shared data hold them."""
    if data == "digits":
        found = digits(split=split)
        return found.images(), found.labels
    folder = Path(data)
    if folder.name == "mnist":
        held, count = np.load(folder / "mnist.npz"), {"train": 20_000, "test": 500}[split]
        images, labels = held[f"{split}_x"][:count, None], held[f"{split}_y"][:count]
    else:
        images, labels = photographs(folder / f"{split}_jpegs.npz", {"train": 10_000, "test": 500}[split])
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def photographs(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first JPEG images of an archive, uint8 (N, 3, H, W), and their labels."""
    held = np.load(path)
    data, offset = held["data"], held["offset"]
    opened = (Image.open(io.BytesIO(data[offset[i] : offset[i + 1]].tobytes())).convert("RGB") for i in range(count))
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in opened]), held["label"][:count]


def compressed(kind: str, base: str) -> nn.Module:
    net = load(base)
    return int8(net, calibration=digits(split="train").images()[:128]) if kind == "int8" else prune(net, amount=0.5)


HONEST = [
    *(
        honest(name, lambda name=name: load(name))
        for name in ("digits-standard", "digits-augmented", "digits-pgd-at", "digits-trades", "digits-vit", "digits-mlp")
    ),
    honest("int8 of standard", lambda: compressed("int8", "digits-standard")),
    honest("int8 of pgd-at", lambda: compressed("int8", "digits-pgd-at")),
    honest("pruned standard", lambda: compressed("prune", "digits-standard")),
    honest("pruned trades", lambda: compressed("prune", "digits-trades")),
    honest("width 8", lambda: trained(8, "standard", 300, 1)),
    honest("width 8 pgd-at", lambda: trained(8, f"pgd_at(eps={EPS})", 400, 2)),
    honest("digits-pgd-at", lambda: load("digits-pgd-at"), "linf(0.2)"),
    honest("digits-trades", lambda: load("digits-trades"), "linf(0.03)"),
    honest("digits-standard", lambda: load("digits-standard"), "l2(0.5)"),
    honest("digits-pgd-at", lambda: load("digits-pgd-at"), "l2(1.5)"),
    honest("digits-vit", lambda: load("digits-vit"), "linf(0.03)"),
    honest("digits-mlp", lambda: load("digits-mlp"), "l2(1)"),
]


NEW_HONEST = [
    honest("new mlp depth 3", lambda: taught(lambda: mlp(hidden=64, depth=3), "standard", 300, 21), new=True),
    honest("new mlp pgd-at", lambda: taught(mlp, f"pgd_at(eps={EPS}, steps=5)", 500, 22), new=True),
    honest("new linear", lambda: taught(lambda: mlp(depth=0), "standard", 300, 23), new=True),
    honest("new vit", lambda: taught(lambda: vit(dim=32, heads=2, depth=2), "standard", 300, 24), new=True),
    honest("new vit augmented", lambda: taught(lambda: vit(dim=32, heads=2, depth=2), "augmented", 300, 25),
           "linf(0.02)", new=True),
    honest("new residual", lambda: taught(lambda: wrn(depth=10, width=1), "standard", 120, 26), new=True),
    honest("new width 12 trades", lambda: taught(lambda: small_cnn(width=12), f"trades(eps={EPS}, steps=5)", 300, 27),
           new=True),
    honest("new width 12 augmented", lambda: taught(lambda: small_cnn(width=12), "augmented", 300, 28), "l2(1)", new=True),
    honest("new width 6 pgd-at", lambda: taught(lambda: small_cnn(width=6), "pgd_at(eps=0.15, steps=5)", 400, 29),
           "l2(1.5)", new=True),
    honest("new int8 of trades", lambda: compressed("int8", "digits-trades"), new=True),
]  # fmt: skip


def photographed(shared: Path) -> list[Case]:
    """Honest nets trained here on MNIST and CIFAR-10, and traps around them."""
    mnist, cifar = str(shared / "mnist"), str(shared / "cifar10")
    small, coloured = (lambda: small_cnn(size=28)), (lambda: small_cnn(in_channels=3))
    nets = [
        ("mnist cnn", mnist, small, "standard", 400, "linf(0.1)"),
        ("mnist cnn pgd-at", mnist, small, "pgd_at(eps=0.2, steps=5)", 500, "linf(0.2)"),
        ("mnist mlp", mnist, lambda: mlp(size=28), "standard", 400, "linf(0.05)"),
        ("mnist vit", mnist, lambda: vit(size=28, patch=7, dim=32, heads=2, depth=2), "standard", 400, "linf(0.05)"),
        ("cifar cnn", cifar, coloured, "standard", 500, "linf(2/255)"),
        ("cifar cnn pgd-at", cifar, coloured, "pgd_at(eps=8/255, steps=3)", 400, "linf(8/255)"),
        ("cifar cnn pgd-at l2", cifar, coloured, "pgd_at(eps=8/255, steps=3)", 400, "l2(0.5)"),
        ("cifar mlp", cifar, lambda: mlp(in_channels=3, hidden=128), "standard", 500, "linf(4/255)"),
        ("cifar vit pgd-at", cifar, lambda: vit(in_channels=3, dim=32, heads=2, depth=2), "pgd_at(eps=4/255, steps=3)", 300,
         "linf(4/255)"),
    ]  # fmt: skip
    found = []
    for name, folder, make, recipe, steps, threat in nets:
        told = {"images": lambda folder=folder: pictures(folder, "test"), "threat": threat, "new": True}
        net = lambda make=make, recipe=recipe, steps=steps, folder=folder: taught(make, recipe, steps, 31, folder)  # noqa: E731
        found.append(Case(f"new {name}", net, **told))
        for kind in (fresh.Sparse, fresh.Sawtooth) if name.endswith("cnn pgd-at") else ():
            shut = lambda kind=kind, net=net: kind(copy.deepcopy(net()))  # noqa: E731
            found.append(Case(f"{kind.__name__} on {name}", shut, undefended=net, **told))
    return found


def known() -> list[Case]:
    """What was there when the thresholds were fixed."""
    others = [trap(k, "digits-pgd-at") for k in (models.Thousandfold, models.WinnersTakeAll, models.Ripple)]
    others += [trap(k, "digits-mlp") for k in (models.Hundredths, models.HalfDetached)]
    others += [trap(k, threat="l2(1)") for k in (models.Thousandfold, models.Static)]
    filtered = honest("tiny behind a median", lambda: models.Filtered(base_net("tiny")))
    kinds = [v for v in vars(models).values() if isinstance(v, type) and issubclass(v, models.Trap)]
    return [*(trap(kind) for kind in kinds if kind is not models.Trap), *others, *HONEST, filtered]


def added() -> list[Case]:
    """What was written afterwards."""
    others = [trap(k, "digits-pgd-at") for k in (fresh.ColdDouble, fresh.Smeared, fresh.Sawtooth, fresh.Dropping)]
    others += [trap(k, "digits-mlp") for k in (fresh.Bordered, fresh.Sorted)]
    others += [trap(k, threat="l2(1)") for k in (fresh.FlippedAfar, fresh.DeadZone)]
    return [*map(trap, fresh.TRAPS), *others, *NEW_HONEST]


def attacked(model: nn.Module, case: Case, count: int, protocol: str) -> Evaluation | Attacked:
    """What a protocol finds on the first ``count`` images, or some plain attacks where none is named."""
    x, y = (part[:count] for part in case.images())
    if protocol:
        return robench.attack(model, x, y, threat=case.threat, protocol=protocol)
    return robench.evaluate(model, x, y, threat=case.threat, attacks=PLAIN)


def robustness(found: Evaluation | Attacked, score: str = "score_adv") -> float:
    """The share of the images that no attack broke (or that are right clean); what is unknown counts as not broken."""
    return 1 - float(found.rows[score].eq(0).groupby(found.rows["sample"]).any().mean())


def examine(case: Case, count: int, protocol: str = "robench-standard") -> dict:
    """Robust accuracy on ``count`` images, the undefended net's too, and the verdict, as one row."""
    start = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            found = attacked(case.make(), case, count, protocol)
            clean, left = robustness(found, "score_clean"), robustness(found)
            sound, reasons = found.validity.sound, found.validity.reasons
        except RobenchError as error:
            clean, left, sound, reasons = 1.0, 1.0, False, (f"refused: {error}",)
    seconds = round(time.process_time() - start, 1)
    before = None if case.honest else share(case, count, protocol)
    verdict = "sound" if sound else "suspicious"
    row = {"half": half(case), "name": case.name, "honest": case.honest, "n": count}
    row |= {"clean": clean, "undefended": before, "robust": left, "verdict": verdict}
    return {**row, "outcome": outcome(case, left, before, sound), "reasons": reasons, "seconds": seconds}


_SHARES: dict[tuple[str, str, int], float] = {}


def share(case: Case, count: int, protocol: str) -> float:
    """Robust accuracy of the undefended net under the same attacks."""
    net = case.undefended()
    weights = torch.cat([p.flatten() for p in net.parameters()]).double()
    key = (f"{weights.sum():.17g}", case.threat + protocol, count)
    if key not in _SHARES:
        _SHARES[key] = robustness(attacked(net, case, count, protocol))
    return _SHARES[key]


def outcome(case: Case, left: float, before: float | None, sound: bool) -> str:
    """``broken``, ``suspicious`` or ``missed`` of a trap, ``sound`` or ``false alarm`` of an honest model."""
    if case.honest:
        return "sound" if sound else "false alarm"
    if left <= before + NEAR + 1e-9:
        return "broken"
    return "missed" if sound else "suspicious"


def half(case: Case) -> str:
    """``fresh`` for what no threshold has seen; of the rest the name's checksum tells, so that nobody chooses."""
    return "fresh" if case.new else ("calibration", "held-out")[zlib.crc32(case.name.encode()) % 2]


def study(cases: list[Case], count: int, protocol: str = "robench-standard") -> pd.DataFrame:
    """One row per case."""
    return pd.DataFrame([examine(case, count, protocol) for case in cases])


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Per half and kind of model: verdicts, and of the traps how each ended."""
    kind = rows["honest"].map({True: "honest", False: "trap"}).rename("model")
    index = [rows["half"], kind]
    verdicts = pd.crosstab(index, rows["verdict"]).reindex(columns=["sound", "suspicious"], fill_value=0)
    ends = rows["outcome"].replace({"suspicious": "told", "sound": "right"})
    table = pd.crosstab(index, ends).reindex(columns=["broken", "told", "missed", "false alarm"], fill_value=0)
    return verdicts.join(table)


def lines(rows: pd.DataFrame) -> list[str]:
    """One line per case: the net's robust accuracy undefended, what was measured, the verdict, and why."""
    found = []
    for row in rows.to_dict("records"):
        before = "" if row["honest"] else f"{row['undefended']:.1%} -> "
        near = "within 2 points; " if row["outcome"] == "broken" else ""
        why = near + ("; ".join(row["reasons"]) or "no reason")
        numbers = f"clean {row['clean']:.1%}, robust {before}{row['robust']:.1%}"
        found.append(f"{row['half']} | {row['name']} | {numbers} | {row['verdict']} | {row['outcome']} | {why}")
    return found


def main() -> None:
    """Print one line per case as it ends, then the confusion table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", default="robench-standard", help="empty for plain attacks")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--only", choices=["known", "fresh"])
    told = parser.parse_args()
    torch.set_num_threads(1)
    cases = [] if told.only == "fresh" else known()
    cases += [] if told.only == "known" else added() + (photographed(told.shared) if told.shared else [])
    rows = []
    for case in cases:
        rows.append(examine(case, told.n, told.protocol))
        print(*lines(pd.DataFrame(rows[-1:])), f"({rows[-1]['seconds']} s)", flush=True)
    print(confusion(pd.DataFrame(rows)).to_string())


if __name__ == "__main__":
    main()
