"""The study of masked models from the generator and of honest ones: what the verdict says, held against the truth.

``python tests/traps/masked.py --kind report --count 60`` prints one line per model and the confusion table.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import robench
from robench.errors import RobenchError
from robench.evaluation import _opened, _watch
from robench.masking import PLACES, diagnose
from robench.zoo import load

ALLOWED = 0.03
"""How far above the truth a number may be and still pass as right."""
PROTOCOL = "robench-standard"


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    if f"traps_{name}" not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"traps_{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules[f"traps_{name}"]


generator, honest = beside("generator"), beside("honest")


@dataclass(frozen=True)
class Case:
    """A model to be judged, and the net whose robust accuracy is the truth (None: it is honest)."""

    name: str
    make: Callable[[], nn.Module]
    images: str
    threat: str
    plain: Callable[[], nn.Module] | None = None
    random: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a case. Masked: ``broken``, ``told``, ``random`` or ``missed``; honest: ``right`` or ``false alarm``.

    ``random``: called randomised, which is unranked and passes no audit, and left above the net inside: noise changes
    decisions, so that net is no truth for it.
    """

    name: str
    threat: str
    truth: float | None
    robust: float | None
    """None where the gradients alone told, and no attack was run."""
    status: str
    end: str
    reason: str
    seconds: float


def base_net(name: str) -> nn.Module:
    """A net of the zoo, or a tiny one on which the whole protocol takes seconds."""
    return honest.taught("tiny", lambda: honest.small_cnn(width=4), steps=200) if name == "tiny" else load(name).eval()


def masked(part: str) -> Iterator[Case]:
    """The generator's models of a part, ``limits`` or ``report``."""
    for mechanism in generator.MECHANISMS:
        plain = lambda base=mechanism.base: base_net(base)  # noqa: E731
        for strength, wrap in mechanism.make.items() if mechanism.part == part else ():
            make = lambda wrap=wrap, plain=plain: wrap(plain())  # noqa: E731
            yield Case(f"{mechanism.name}, {strength}", make, "digits", mechanism.threat, plain)


def honest_ones() -> Iterator[Case]:
    for one in honest.HONEST:
        yield Case(one.name, one.make, one.images, one.threat, random=one.random)


def told_by_gradients(model: nn.Module, x: Tensor, y: Tensor, threat: str) -> list[str]:
    """What the sentinel's gradients say whatever an attack finds: such a model is never called sound."""
    names = ("zero_gradient", "nonfinite_gradient", "gradient_error", "slope", "slope_claimed", "hidden", "evenness")
    places = tuple(place + what for place in PLACES for what in ("mass_error", "mass_noise", "steep"))
    with _opened(model, x, y, threat=threat, attacks=["noise"], seed=0, device=None, batch_size=None) as objects:
        rows = _watch(objects, threat)
    if rows["random"].any():
        return []
    return diagnose(
        {name: rows[name].to_numpy(float) for name in (*names, *places, "line_error", "line_noise", "line_turns")}
    )


_TRUTH: dict[tuple[str, str, int], float] = {}


def truth(case: Case, x: Tensor, y: Tensor) -> float:
    """Robust accuracy of the net inside under the same protocol."""
    net = case.plain()
    weights = torch.cat([p.flatten() for p in net.parameters()]).double()
    key = (f"{weights.sum():.17g}", case.threat, len(y))
    if key not in _TRUTH:
        _TRUTH[key] = float(robench.attack(net, x, y, threat=case.threat, protocol=PROTOCOL).robust.float().mean())
    return _TRUTH[key]


def examine(case: Case, count: int, *, whole: bool = False) -> Outcome:
    """Judge one model on some images; a masked one that its gradients give away meets no attack, unless ``whole``."""
    start, (x, y) = time.process_time(), honest.first(case.images, count)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.make().eval()
        found = [] if case.plain is None or whole else told_by_gradients(model, x, y, case.threat)
        if found:
            spent = time.process_time() - start
            return Outcome(case.name, case.threat, None, None, "suspicious", "told", "; ".join(found), spent)
        protocol = "robench-l0" if case.threat.startswith("l0") else PROTOCOL
        try:
            attacked = robench.attack(model, x, y, threat=case.threat, protocol=protocol)
        except RobenchError as error:
            return Outcome(
                case.name, case.threat, None, None, "refused", "told" if case.plain else "false alarm", str(error), 0.0
            )
    left, status = float(attacked.robust.float().mean()), attacked.validity.status
    goal = None if case.plain is None else truth(case, x, y)
    return Outcome(case.name, case.threat, goal, left, status, ending(case, left, status, goal),
                   "; ".join(attacked.validity.reasons), time.process_time() - start)  # fmt: skip


def ending(case: Case, left: float, status: str, goal: float | None) -> str:
    """How the verdict stands beside the truth."""
    if goal is None:
        return "right" if status == ("randomised" if case.random else "sound") else "false alarm"
    if left <= goal + ALLOWED + 1e-9:
        return "broken"
    if status == "randomised":
        return "random"
    return "told" if status != "sound" else "missed"


def line(found: Outcome) -> str:
    numbers = "-" if found.robust is None else f"{100 * found.robust:.1f}"
    numbers = numbers if found.truth is None else f"{100 * found.truth:.1f} → {numbers}"
    return f"| {found.name} | {found.threat} | {numbers} | {found.status} | {found.end} | {found.reason[:160]} |"


def main() -> None:
    """Print one line per model as it ends, then how many ended how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("limits", "report", "honest"), default="report")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--part", default="0/1", help="this of so many parts, e.g. 0/2")
    parser.add_argument("--only", default="", help="only names that contain this")
    parser.add_argument("--whole", action="store_true", help="attack also what its gradients give away")
    told = parser.parse_args()
    torch.set_num_threads(1)
    cases = [*(honest_ones() if told.kind == "honest" else masked(told.kind))]
    here, parts = map(int, told.part.split("/"))
    ends: Counter[str] = Counter()
    for case in [c for c in cases if told.only in c.name][here::parts]:
        found = examine(case, told.count, whole=told.whole)
        ends[found.end] += 1
        sys.stdout.write(line(found) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"{told.kind}, n = {told.count}: {dict(ends)}\n")


if __name__ == "__main__":
    main()
