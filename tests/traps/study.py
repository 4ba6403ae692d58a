"""The trap study: every trap and every honest model through the same protocol, and what its verdict was worth."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from torch import Tensor, nn

import robench
from robench.compress._int8 import int8
from robench.compress._prune import prune
from robench.data._digits import digits
from robench.defenses.training import train
from robench.errors import RobenchError
from robench.evaluation import Attacked, Evaluation
from robench.models._small_cnn import small_cnn
from robench.zoo import load

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
    name = kind.__name__ + ("" if base == "tiny" else f" on {base}")
    name += "" if threat == f"linf({EPS})" else f" {threat}"
    return Case(name, lambda: kind(copy.deepcopy(base_net(base))), digit_images, threat, lambda: base_net(base))


def honest(name: str, make: Callable[[], nn.Module], threat: str = f"linf({EPS})") -> Case:
    return Case(name if threat == f"linf({EPS})" else f"{name} {threat}", make, digit_images, threat)


@cache
def trained(width: int, recipe: str, steps: int, seed: int) -> nn.Module:
    """A net of another width, trained here for some seconds."""
    data = digits(split="train")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = small_cnn(width=width)
    train(net, data.images(), data.labels, recipe=recipe, steps=steps, seed=seed)
    return net.eval()


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


def attacked(model: nn.Module, case: Case, count: int, protocol: str) -> Evaluation | Attacked:
    """What a protocol finds on the first ``count`` images, or some plain attacks where none is named."""
    x, y = (part[:count] for part in case.images())
    if protocol:
        return robench.attack(model, x, y, threat=case.threat, protocol=protocol)
    return robench.evaluate(model, x, y, threat=case.threat, attacks=PLAIN)


def fallen(found: Evaluation | Attacked) -> float:
    """The share of the images that are misclassified, clean or attacked; what is unknown is not."""
    return float(found.rows["score_adv"].eq(0).groupby(found.rows["sample"]).any().mean())


def examine(case: Case, count: int, protocol: str = "robench-standard") -> dict:
    """What was broken of ``count`` images, of the undefended net's too, and the verdict, as one row."""
    start = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            found = attacked(case.make(), case, count, protocol)
            broken, sound, reasons = fallen(found), found.validity.sound, found.validity.reasons
        except RobenchError as error:
            broken, sound, reasons = 0.0, False, (f"refused: {error}",)
    seconds = time.process_time() - start
    before = None if case.honest else share(case, count, protocol)
    row = {"name": case.name, "honest": case.honest, "n": count, "broken": broken, "undefended": before}
    return {**row, "outcome": outcome(case, broken, before, sound), "reasons": reasons, "seconds": round(seconds, 1)}


_SHARES: dict[tuple[str, str, int], float] = {}


def share(case: Case, count: int, protocol: str) -> float:
    """The share of the images that the same attacks break of the undefended net."""
    net = case.undefended()
    weights = torch.cat([p.flatten() for p in net.parameters()]).double()
    key = (f"{weights.sum():.17g}", case.threat + protocol, count)
    if key not in _SHARES:
        _SHARES[key] = fallen(attacked(net, case, count, protocol))
    return _SHARES[key]


def outcome(case: Case, broken: float, before: float | None, sound: bool) -> str:
    """``broken``, ``suspicious`` or ``missed`` of a trap, ``sound`` or ``false alarm`` of an honest model."""
    if case.honest:
        return "sound" if sound else "false alarm"
    if broken >= before - NEAR:
        return "broken"
    return "missed" if sound else "suspicious"


def halves(cases: list[Case]) -> Iterator[tuple[str, Case]]:
    """Every other case fixes the thresholds, the others report."""
    for group in ([c for c in cases if not c.honest], [c for c in cases if c.honest]):
        for place, case in enumerate(group):
            yield ("fix", "report")[place % 2], case


def study(cases: list[Case], count: int, protocol: str = "robench-standard") -> pd.DataFrame:
    """One row per case."""
    return pd.DataFrame([{"half": half, **examine(case, count, protocol)} for half, case in halves(cases)])


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Outcomes counted per half and kind of model."""
    kind = rows["honest"].map({True: "honest", False: "trap"})
    columns = ["broken", "suspicious", "missed", "sound", "false alarm"]
    table = pd.crosstab([rows["half"], kind.rename("model")], rows["outcome"])
    return table.reindex(columns=columns, fill_value=0)
