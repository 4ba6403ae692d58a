"""What every attack of the catalog keeps to, and a planted offender per contract that shows the contract looks.

A new attack is examined here by its line in ``robench.attacks.TABLE``, or by its entry point, alone.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench import attacks, catalog
from robench.errors import ConfigError
from robench.inference import fingerprint, predict
from robench.ops.norms import distance, steepest, tolerance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION
from robench.victim import Victim, as_victim

logging.getLogger("art").setLevel(logging.ERROR)
EPS = {"linf": "0.1", "l2": "0.5", "l1": "2", "l0": "4"}
SIDE, COUNT, CLASSES = 6, 15, 5
Attack = Callable[..., Tensor]
Facts = dict[str, Any]


# --- what is attacked


class Rounded(nn.Module):
    """A model whose output depends on its input, but whose gradient is zero everywhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.round())


class Constant(nn.Module):
    """A model that answers class 1 to everything, with an input gradient that is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(CLASSES).eq(1).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


def build(classes: int = CLASSES) -> nn.Module:
    """A small smooth net with fixed random weights, the same at every call."""
    generator = torch.Generator().manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


@dataclass(frozen=True)
class Case:
    """A model and images with their labels."""

    net: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor

    def take(self, rows: slice) -> Case:
        return Case(self.net, self.x[rows], self.y[rows], self.ids[rows])


def case(net: nn.Module | None = None, *, count: int = COUNT, dtype: torch.dtype = torch.float32) -> Case:
    """Images, many of whose pixels lie on the box's edges, that the net classifies right; ids are no positions."""
    net = (net or build()).to(dtype)
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(count, 1, SIDE, SIDE, generator=generator) * 2 - 0.5).clamp(0, 1).to(dtype)
    return Case(net, x, predict(net, x, width=64).argmax(1), 1000 + 7 * torch.arange(count))


def attacked(attack: Attack, given: Case, threat: ThreatModel, *, seed: int = 0) -> tuple[Victim, Tensor]:
    """The victim and the images after an attack on a copy of the model; a crash is a breach."""
    victim = Victim(copy.deepcopy(given.net), given.x, given.y, threat=threat)
    return victim, called(attack, victim, given, threat, seed=seed)


def called(attack: Attack, target: Any, given: Case, threat: ThreatModel, *, seed: int = 0) -> Tensor:
    try:
        found = attack(target, given.x.clone(), given.y.clone(), threat=threat, seeds=Draws(seed, given.ids))
    except AssertionError:
        raise
    except Exception as error:  # whatever an attack dies of, it broke the contract that ran it
        raise AssertionError(f"crashed: {type(error).__name__}: {error}") from error
    assert isinstance(found, Tensor), type(found)
    assert found.shape == given.x.shape, (found.shape, given.x.shape)
    assert found.dtype == given.x.dtype, (found.dtype, given.x.dtype)
    assert not found.requires_grad
    return found


def threats(facts: Facts) -> list[ThreatModel]:
    return [ThreatModel.parse(f"{norm}({EPS[norm]})") for norm in facts["norms"]]


def require_inside(found: Tensor, given: Case, threat: ThreatModel) -> None:
    assert found.isfinite().all(), "not finite"
    far = distance(given.x, found, threat.norm)
    assert (far <= threat.eps + tolerance(threat.eps)).all(), f"{threat}: {far.max():.9g}"


def require_honest(victim: Victim, found: Tensor, given: Case) -> None:
    """Every success in the victim's book is one of the original model on the image that was returned."""
    margin = CLASSIFICATION.margin(predict(given.net, found, width=64), given.y)
    assert (margin[victim.broken] <= 0).all(), "a success was counted on an image that is classified right"


# --- the contracts


def ball(attack: Attack, facts: Facts) -> None:
    for threat in threats(facts):
        for one in (threat, threat.at("0"), threat.at("inf")):
            given = case()
            require_inside(attacked(attack, given, one)[1], given, one)


def box(attack: Attack, facts: Facts) -> None:
    for threat in threats(facts):
        _, found = attacked(attack, case(), threat)
        assert ((found >= 0) & (found <= 1)).all(), f"{threat}: [{found.min():.9g}, {found.max():.9g}]"


def weights(attack: Attack, facts: Facts) -> None:
    for training in (False, True):
        given = case()
        given.net.train(training)
        given.net[1].weight.requires_grad_(False)
        victim, _ = attacked(attack, given, threats(facts)[0])
        assert fingerprint(victim.model) == fingerprint(given.net), "weights or hooks changed"
        assert all(p.grad is None for p in victim.model.parameters()), "a parameter holds a gradient"
        flags = [[p.requires_grad for p in net.parameters()] for net in (victim.model, given.net)]
        assert flags[0] == flags[1], "requires_grad changed"
        assert all(module.training is training for module in victim.model.modules()), "the mode changed"


def repeatable(attack: Attack, facts: Facts) -> None:
    results = []
    for noise in (1, 2):
        random.seed(noise), np.random.seed(noise), torch.manual_seed(noise)
        results.append([attacked(attack, case(), threat, seed=5)[1] for threat in threats(facts)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "the same seed gave other images"


def generators(attack: Attack, facts: Facts) -> None:
    given = case()
    held = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for threat in threats(facts):
        attacked(attack, given, threat)
    assert random.getstate() == held[0], "random"
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), held[1], strict=True)), "numpy.random"
    assert torch.equal(torch.get_rng_state(), held[2]), "torch"


def batch_split(attack: Attack, facts: Facts) -> None:
    given = case()
    for threat in threats(facts):
        _, whole = attacked(attack, given, threat)
        for size in (1, 7):
            parts = [given.take(slice(a, a + size)) for a in range(0, COUNT, size)]
            found = torch.cat([attacked(attack, part, threat)[1] for part in parts])
            assert torch.equal(found, whole), f"{threat}: other images in groups of {size}"


def batch_of_one(attack: Attack, facts: Facts) -> None:
    for threat in threats(facts):
        given = case(count=1)
        require_inside(attacked(attack, given, threat)[1], given, threat)


def zero_gradient(attack: Attack, facts: Facts) -> None:
    for net in (Constant(), Rounded(build())):
        for threat in threats(facts):
            given = case(net)
            victim, found = attacked(attack, given, threat)
            require_inside(found, given, threat)
            require_honest(victim, found, given)
            assert not isinstance(net, Constant) or not victim.broken.any()


def two_classes(attack: Attack, facts: Facts) -> None:
    given = case(build(2))
    for threat in threats(facts):
        victim, found = attacked(attack, given, threat)
        require_inside(found, given, threat)
        require_honest(victim, found, given)


def float64(attack: Attack, facts: Facts) -> None:
    given = case(dtype=torch.float64)
    for threat in threats(facts):
        require_inside(attacked(attack, given, threat)[1], given, threat)


def misclassified(attack: Attack, facts: Facts) -> None:
    right = case()
    wrong = (right.y + 1) % CLASSES
    mixed = torch.where(torch.arange(COUNT) % 2 == 0, wrong, right.y)
    for y in (wrong, mixed):
        given = Case(right.net, right.x, y, right.ids)
        for threat in threats(facts):
            victim, found = attacked(attack, given, threat)
            require_inside(found, given, threat)
            require_honest(victim, found, given)


def norms(attack: Attack, facts: Facts) -> None:
    assert facts["norms"], "no norm is declared"
    for threat in threats(facts):
        given = case()
        _, found = attacked(attack, given, threat)
        assert (distance(given.x, found, threat.norm) > 0).any(), f"nothing was attacked under {threat}"


def access(attack: Attack, facts: Facts) -> None:
    given = case()
    threat = threats(facts)[0]
    victim = Victim(copy.deepcopy(given.net), given.x, given.y, threat=threat, access=facts["access"])
    called(attack, victim, given, threat)


def plain_module(attack: Attack, facts: Facts) -> None:
    given, threat = case(), threats(facts)[0]
    bare = called(attack, copy.deepcopy(given.net), given, threat)
    assert torch.equal(bare, attacked(attack, given, threat)[1]), "another result without a victim"


CONTRACTS = {
    contract.__name__: contract
    for contract in (
        ball, box, weights, repeatable, generators, batch_split, batch_of_one, zero_gradient, two_classes, float64,
        misclassified, norms, access, plain_module,
    )
}  # fmt: skip


# --- the catalog under the contracts

FAMILIES = {"art": ("art:ProjectedGradientDescent", {"max_iter": 5})}
"""One representative of each family of names, with its arguments."""

BUDGETS: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 12}, "apgd_t": {"steps": 8, "targets": 2}, "fab": {"steps": 8}, "fab_t": {"steps": 8, "targets": 2},
    "square": {"queries": 20}, "sparse_rs": {"queries": 20}, "nes": {"queries": 60}, "spsa": {"queries": 60},
    "hop_skip_jump": {"queries": 60},
    "ddn": {"steps": 30}, "fmn": {"steps": 12}, "cw": {"steps": 8}, "ead": {"steps": 8}, "sigma_zero": {"steps": 40},
}  # fmt: skip
"""Small budgets, so that the contracts take seconds."""

PROTOCOLS = {name for name, entry in catalog.ATTACKS.items() if entry.facts.get("protocol")}
"""They decide over whole sets of samples and have contracts of their own (tests/attacks/test_protocols.py)."""

ENTRIES = {name: BUDGETS.get(name, {}) for name in catalog.ATTACKS if name not in PROTOCOLS} | dict(FAMILIES.values())

EXEMPT = {
    (name, "batch_split"): "its draws are made in call order; the evasion scenario holds a fixed number of its samples"
    for name in ENTRIES
    if catalog.ATTACKS[name].facts.get("randomness") == "call"
}
"""(entry, contract) → why the entry need not keep it."""

LONG = ("cw", "ead", "fmn", "nes", "spsa", "hop_skip_jump", "apgd_t", "fab_t")
"""Attacks whose contract ``batch_split`` takes seconds: it is marked slow."""

PAIRS = [(entry, contract) for entry in ENTRIES for contract in CONTRACTS if (entry, contract) not in EXEMPT]


def relative(model: nn.Module) -> nn.Module:
    """Another model of the same kind: the weights moved a little."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def bound(name: str) -> Attack:
    """The entry as the evasion scenario calls it: family name, own arguments, and a surrogate that must stay as it is."""
    entry, params = catalog.ATTACKS[name], dict(ENTRIES[name])
    function = entry.load()
    if ":" in name:
        params["name"] = name.partition(":")[2]

    def attack(target: Any, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        if not entry.facts.get("surrogate"):
            return function(target, x, y, **params, **options)
        surrogate = relative(target.model if isinstance(target, Victim) else target)
        before = fingerprint(surrogate)
        found = function(target, x, y, surrogate=surrogate, **params, **options)
        assert fingerprint(surrogate) == before, "the surrogate changed"
        assert all(p.grad is None for p in surrogate.parameters()), "the surrogate holds a gradient"
        return found

    return attack


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        pytest.param(*p, id="-".join(p), marks=[pytest.mark.slow] if p[0] in LONG and p[1] == "batch_split" else [])
        for p in PAIRS
    ],
)
def test_the_entry_keeps_the_contract(name, contract):
    CONTRACTS[contract](bound(name), catalog.ATTACKS[name].facts)


def test_every_entry_meets_every_contract_but_for_the_exemptions():
    assert set(FAMILIES) == set(catalog.ATTACKS.prefixes)
    assert set(catalog.ATTACKS) - PROTOCOLS < set(ENTRIES) and set(BUDGETS) <= set(ENTRIES)
    assert len(ENTRIES) == len(catalog.ATTACKS) - len(PROTOCOLS) + len(FAMILIES)
    assert len(PAIRS) == len(set(PAIRS)) == len(ENTRIES) * len(CONTRACTS) - len(EXEMPT)


def test_exemptions_name_existing_pairs_and_say_why():
    assert {name for name, _ in EXEMPT} <= set(ENTRIES)
    assert {contract for _, contract in EXEMPT} <= set(CONTRACTS)
    assert all(len(reason) > 20 for reason in EXEMPT.values())
    assert ("art:ProjectedGradientDescent", "batch_split") in EXEMPT
    assert not {name for name, _ in EXEMPT} & {"noise", "fgsm", "pgd", "transfer"}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_facts_are_complete(name):
    facts = catalog.ATTACKS[name].facts
    assert set(facts["norms"]) <= set(EPS)
    assert facts["access"] in ("white", "score", "decision", "transfer", "noise")
    assert facts["randomness"] in ("none", "per_sample", "call")
    assert facts["summary"]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_entry_is_a_function_for_users(name):
    """``from robench.attacks import pgd``: a plain module in train mode, a threat as text, a seed or no seed."""
    entry, params = catalog.ATTACKS[name], dict(ENTRIES[name])
    family, _, params["name"] = name.rpartition(":")
    function = getattr(attacks, family or name)
    params |= {"surrogate": relative(build())} if entry.facts.get("surrogate") else {}
    params = params if family else {k: v for k, v in params.items() if k != "name"}
    given, norm = case(), entry.facts["norms"][0]
    found = function(copy.deepcopy(given.net).train(), given.x, given.y, threat=f"{norm}({EPS[norm]})", **params)
    told = {"threat": ThreatModel.parse(f"{norm}({EPS[norm]})"), "seeds": Draws(0, torch.arange(COUNT))}
    assert torch.equal(found, entry.load()(copy.deepcopy(given.net), given.x, given.y, **told, **params))
    seeded = function(given.net, given.x, given.y, **{**told, "seeds": Draws(4, given.ids)}, **params)
    assert torch.equal(seeded, called(bound(name), copy.deepcopy(given.net), given, told["threat"], seed=4))


def test_the_contracts_look_at_broken_and_at_unbroken_samples():
    for net in (build(), build(2)):
        for norm in ("linf", "l2"):
            victim, _ = attacked(bound("pgd"), case(net), ThreatModel.parse(f"{norm}({EPS[norm]})"))
            assert 0 < victim.broken.sum() < COUNT


def test_steps_below_one_are_refused_before_anything_is_divided_by_them():
    given, threat = case(), ThreatModel.parse("linf(0.1)")
    for name in ("pgd", "transfer"):
        with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
            bound(name)(given.net, given.x, given.y, threat=threat, seeds=Draws(0, given.ids), steps=0)


# --- the planted offenders: each is the honest attack with one fault

HONEST = {"norms": ("linf", "l2"), "access": "white", "randomness": "per_sample"}


def honest(target: Any, x: Tensor, y: Tensor, *, threat: ThreatModel, seeds: Draws, step: int = 0) -> Tensor:
    """A random point of the ball, then a gradient step: keeps every contract."""
    victim = as_victim(target, x, y, threat)
    rows = victim.alive()
    points = victim.ball.random(seeds, "contract", step=step)
    gradient = victim.gradient(points, rows).gradient
    rows = victim.alive()
    if len(rows):
        moved = points[rows] + min(threat.eps, 1.0) / 2 * steepest(gradient[rows], threat.norm)
        victim.margins(victim.ball[rows].project(moved), rows)
    return victim.result()


def model_of(target: Any) -> nn.Module:
    return target.model if isinstance(target, Victim) else target


def leaves_the_ball(target, x, y, *, threat, seeds):
    honest(target, x, y, threat=threat, seeds=seeds)
    size = {"linf": 1.0, "l2": x[0].numel() ** 0.5}[threat.norm]
    return x + (1 - 2 * x).sign() * min(threat.eps, 1.0) * 1.001 / size


def leaves_a_ball_of_radius_zero(target, x, y, *, threat, seeds):
    found = honest(target, x, y, threat=threat, seeds=seeds)
    return (found + 1e-4).clamp(0, 1) if threat.eps == 0 else found


def leaves_the_box(target, x, y, *, threat, seeds):
    found = honest(target, x, y, threat=threat, seeds=seeds)
    return torch.where(found == 0, found - 1e-7, found)


def changes_a_weight(target, x, y, *, threat, seeds):
    found = honest(target, x, y, threat=threat, seeds=seeds)
    with torch.no_grad():
        next(model_of(target).parameters()).flatten()[0].add_(1e-6)
    return found


def leaves_a_gradient(target, x, y, *, threat, seeds):
    model_of(target)(x).sum().backward()
    return honest(target, x, y, threat=threat, seeds=seeds)


def leaves_a_hook(target, x, y, *, threat, seeds):
    model_of(target).register_forward_hook(lambda *_: None)
    return honest(target, x, y, threat=threat, seeds=seeds)


def leaves_eval_mode_on(target, x, y, *, threat, seeds):
    model_of(target).eval()
    return honest(target, x, y, threat=threat, seeds=seeds)


def thaws_the_weights(target, x, y, *, threat, seeds):
    model_of(target).requires_grad_(True)
    return honest(target, x, y, threat=threat, seeds=seeds)


def listens_to_the_global_seed(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=seeds, step=torch.initial_seed() % 1000)


def draws_from_torch(target, x, y, *, threat, seeds):
    torch.rand(1)
    return honest(target, x, y, threat=threat, seeds=seeds)


def draws_from_numpy(target, x, y, *, threat, seeds):
    np.random.rand()
    return honest(target, x, y, threat=threat, seeds=seeds)


def draws_from_random(target, x, y, *, threat, seeds):
    random.random()
    return honest(target, x, y, threat=threat, seeds=seeds)


def draws_by_position(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=Draws(seeds.seed, torch.arange(len(x))))


def squeezes_the_batch(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=seeds).squeeze(0)


def divides_by_the_gradient(target, x, y, *, threat, seeds):
    victim = as_victim(target, x, y, threat)
    found = honest(victim, x, y, threat=threat, seeds=seeds)
    gradient = victim.gradient(x, torch.arange(len(x))).gradient.flatten(1)
    return found + 0 * (gradient / gradient.norm(dim=1, keepdim=True)).view_as(x)


def calls_no_gradient_a_success(target, x, y, *, threat, seeds):
    victim = as_victim(target, x, y, threat)
    found = honest(victim, x, y, threat=threat, seeds=seeds)
    victim.broken |= victim.zero_gradients > 0
    return found


def needs_three_classes(target, x, y, *, threat, seeds):
    with torch.no_grad():
        model_of(target)(x).topk(3)
    return honest(target, x, y, threat=threat, seeds=seeds)


def returns_float32(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=seeds).float()


def needs_an_unbroken_sample(target, x, y, *, threat, seeds):
    victim = as_victim(target, x, y, threat)
    victim.misclassified(x, torch.arange(len(x)))
    victim.alive().amin()
    return honest(model_of(target), x, y, threat=threat, seeds=seeds)


def knows_linf_only(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=seeds) if threat.norm == "linf" else x


def needs_a_victim(target, x, y, *, threat, seeds):
    target.require("score")
    return honest(target, x, y, threat=threat, seeds=seeds)


def asks_for_gradients(target, x, y, *, threat, seeds):
    return honest(target, x, y, threat=threat, seeds=seeds)


INSIDE = {"batch_of_one", "zero_gradient", "two_classes", "float64", "misclassified"}
"""Contracts that look at the ball too, on inputs of their own."""

OFFENDERS: list[tuple[Attack, set[str]]] = [
    (leaves_the_ball, {"ball", *INSIDE}),
    (leaves_a_ball_of_radius_zero, {"ball"}),
    (leaves_the_box, {"box"}),
    (changes_a_weight, {"weights"}),
    (leaves_a_gradient, {"weights"}),
    (leaves_a_hook, {"weights"}),
    (leaves_eval_mode_on, {"weights"}),
    (thaws_the_weights, {"weights"}),
    (listens_to_the_global_seed, {"repeatable"}),
    (draws_from_torch, {"generators"}),
    (draws_from_numpy, {"generators"}),
    (draws_from_random, {"generators"}),
    (draws_by_position, {"batch_split"}),
    (squeezes_the_batch, {"batch_of_one", "batch_split"}),
    (divides_by_the_gradient, {"zero_gradient"}),
    (calls_no_gradient_a_success, {"zero_gradient"}),
    (needs_three_classes, {"two_classes"}),
    (returns_float32, {"float64"}),
    (needs_an_unbroken_sample, {"misclassified"}),
    (knows_linf_only, {"norms"}),
    (asks_for_gradients, {"access"}),
    (needs_a_victim, {"plain_module"}),
]
"""An attack and the contracts that it breaks; it keeps all others."""


def breaches(attack: Attack, facts: Facts) -> set[str]:
    found = set()
    for name, contract in CONTRACTS.items():
        try:
            contract(attack, facts)
        except AssertionError:
            found.add(name)
    return found


def test_the_honest_attack_keeps_every_contract():
    assert breaches(honest, HONEST) == set()


@pytest.mark.parametrize(("attack", "expected"), OFFENDERS, ids=[attack.__name__ for attack, _ in OFFENDERS])
def test_the_offender_is_caught_by_the_contract_it_breaks_and_by_no_other(attack, expected):
    facts = {**HONEST, "access": "score"} if attack is asks_for_gradients else HONEST
    for name in expected:
        with pytest.raises(AssertionError):
            CONTRACTS[name](attack, facts)
    assert breaches(attack, facts) == expected


def test_every_contract_has_an_offender():
    assert set().union(*(broken for _, broken in OFFENDERS)) == set(CONTRACTS)
