"""Any evasion attack of the Adversarial Robustness Toolbox, under the house's rules."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robench.errors import AttackError, ConfigError, RobenchError, must, suggestion
from robench.inference import chunks, untouched
from robench.ops.random import Draws
from robench.registry import facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim

CHUNK = 32
"""Samples that meet one attack object; a chunk is the same 32 neighbours by id, whatever the caller's batch."""

_ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
_NOT_LITERAL = {"self", "estimator", "classifier", "estimator_orig", "summary_writer"}


@facts(
    version=2,
    norms=("linf", "l2", "l1"),
    access="white",
    randomness="call",
    open_arguments=True,
    family="art.attacks.evasion",
    distribution="adversarial-robustness-toolbox",
)
def art(
    victim: Victim | nn.Module, x: Tensor, y: Tensor, *, name: str, threat: ThreatModel, seeds: Draws, **params: Any
) -> Tensor:
    """What ART's attack ``name`` returns, (N, ...): images in the ball are booked, others are left to the judge.

    The attack gets true labels, [0, 1] as clip values, the threat's norm and eps where it takes them, an ``eps_step``
    in ART's own proportion to eps, and float32 images whatever it computes in. Global random generators are seeded
    per chunk of 32 samples by (seed, first id) and restored. ART does not say which sample a pass was for: a chunk's
    passes are charged to its samples evenly, rounded up.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        name: A class of ``art.attacks.evasion``, such as ``ProjectedGradientDescent``.
        threat: linf, l2 or l1.
        seeds: Seed and ids that the chunks are made from.
        **params: The class's own arguments.

    Raises:
        ConfigError: ART has no such attack, or the attack no such argument.
        AttackError: Anything that ART raises while it runs.

    Source: Nicolae et al., arXiv:1807.01069 (the toolbox).
    """
    victim = as_victim(victim, x, y, threat)
    victim.require("white")
    attack = _attack(name)
    given = _arguments(attack, params, threat, x[0].numel())
    x_adv = x.clone()
    if threat.eps > 0:
        order = torch.argsort(seeds.ids, stable=True)
        with untouched(victim.model):
            for a, b in chunks(len(x), CHUNK):
                rows = order[a:b]
                with _seeded(seeds[rows[:1]]):
                    x_adv[rows] = _generate(attack, given, victim, rows)
    return _book(victim, x_adv)


def _book(victim: Victim, x_adv: Tensor) -> Tensor:
    """Charge and record the images in the ball; hand on the others as they are."""
    inside = victim.ball.contains(x_adv)
    rows = inside.nonzero()[:, 0]
    if len(rows):
        victim.margins(x_adv[rows], rows)
    result = victim.result().clone()
    stray = ~inside & ~victim.broken
    result[stray] = x_adv[stray]
    return result


def _attack(name: str) -> type[EvasionAttack]:
    known = {n: c for n, c in vars(evasion).items() if inspect.isclass(c) and issubclass(c, EvasionAttack)}
    if name not in known:
        raise ConfigError(must("the name after 'art:'", "an evasion attack of ART", name, suggestion(name, known)))
    return known[name]


def _arguments(attack: type[EvasionAttack], params: dict[str, Any], threat: ThreatModel, size: int) -> dict[str, Any]:
    """The user's arguments, with norm, eps, step and habits filled in where the attack takes them."""
    signature = inspect.signature(attack.__init__).parameters
    known = {key: p.default for key, p in signature.items() if key not in _NOT_LITERAL}
    for key in params:
        if key not in known:
            raise ConfigError(must(f"an argument of art:{attack.__name__}", "a known one", key, suggestion(key, known)))
    if params.get("targeted"):
        raise ConfigError(must("targeted", "False", True, "leave it out: the labels given to ART are the true ones"))
    eps = min(threat.eps, size ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[threat.norm])
    filled = {"norm": _ORDERS[threat.norm], "eps": eps, "batch_size": CHUNK, "targeted": False, "verbose": False}
    if "eps_step" in known and "eps" in known:
        filled["eps_step"] = float(params.get("eps", eps)) * known["eps_step"] / known["eps"]
    return {**{k: v for k, v in filled.items() if k in known}, **params}


class _Bridge(nn.Module):
    """The model as ART may hold it: a leaf without children, so that ART cannot change modes, devices or layers."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self._call = [victim.model]
        self._like = victim.x
        self.forwards = self.backwards = 0

    def forward(self, points: Tensor) -> Tensor:
        self.forwards += len(points)
        if torch.is_grad_enabled() and points.requires_grad:
            points.register_hook(self._graded)
        return self._call[0](points.to(self._like)).to(points.device)

    def _graded(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def charge(self, victim: Victim, rows: Tensor) -> None:
        """Share the passes evenly among the rows."""
        victim.forwards[rows] += math.ceil(self.forwards / len(rows))
        victim.backwards[rows] += math.ceil(self.backwards / len(rows))


def _generate(attack: type[EvasionAttack], given: dict[str, Any], victim: Victim, rows: Tensor) -> Tensor:
    x, y = victim.x[rows], victim.y[rows]
    with torch.no_grad():
        classes = victim.model(x[:1]).shape[-1]
    labels = np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
    bridge = _Bridge(victim)
    try:
        classifier = PyTorchClassifier(
            model=bridge, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes,
            clip_values=(0.0, 1.0), device_type="cpu",
        )  # fmt: skip
        with torch.enable_grad():
            found = attack(classifier, **given).generate(x=x.cpu().numpy().astype(np.float32), y=labels)
    except (RobenchError, MemoryError, torch.OutOfMemoryError):
        raise
    # ART's attacks raise whatever their code meets, from IndexError to its own classes: none may pass for a result.
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        what = f"art:{attack.__name__}"
        raise AttackError(must(what, "able to run on this model", text, "change its arguments")) from error
    bridge.charge(victim, rows)
    if not isinstance(found, np.ndarray) or found.shape != tuple(x.shape):
        shape = getattr(found, "shape", type(found).__name__)
        raise AttackError(must(f"what art:{attack.__name__} returns", f"images {tuple(x.shape)}", shape, "choose another"))
    return torch.from_numpy(found).to(x)


@contextmanager
def _seeded(seeds: Draws) -> Iterator[None]:
    """Global generators started from one sample's draws, and given back as they were."""
    words = seeds.bits("art", (3,))[0].tolist()
    held = random.getstate(), np.random.get_state(), torch.default_generator.get_state(), np.random.RandomState
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
    np.random.RandomState = _Derived  # type: ignore[misc]
    try:
        yield
    finally:
        np.random.RandomState = held[3]  # type: ignore[misc]
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.default_generator.set_state(held[2])


class _Derived(np.random.RandomState):
    """A generator that an attack makes without a seed (HopSkipJump does) gets one from numpy's global generator."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)
