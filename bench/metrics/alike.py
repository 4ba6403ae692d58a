"""Which attacks on different models are the same test, and which a stronger one stands for."""

from __future__ import annotations

from collections.abc import Iterable

from robench.spec import Ref

STANDARD = ("compressed-union", "robench-standard")
"""Ensembles that are the same test: the stages with gradients of both are those of ``robench-standard``."""
STRONGER = ("autoattack-plus", "autoattack-standard", "robench-deep")
"""Ensembles that search longer, each a test of its own."""
ENSEMBLE = "an ensemble of attacks such as robench-standard"
WEAKER = {
    "noise": ("draws",),
    "fgsm": (),
    "pgd": ("steps", "restarts"),
    "apgd": ("steps", "restarts"),
    "transfer": ("steps",),
}
"""Attacks that an ensemble stands for, and the arguments whose product is at most ``MOST`` then."""
MOST = 100
_AT = " at "


def alike(attack: str) -> str:
    """An attack's name as other models meet it: that of what ``through`` lends, ``ENSEMBLE`` for those of ``STANDARD``."""
    name = attack.partition("(")[0]
    if name in STANDARD:
        return ENSEMBLE
    inner = str(Ref.parse(attack).kwargs.get("attack", "")) if name == "through" else ""
    return alike(inner) if inner else attack


def is_transfer(attack: str) -> bool:
    """Whether the attack of a row took its images from a named surrogate."""
    return attack.startswith("transfer(") and bool(Ref.parse(attack).kwargs.get("source"))


def unmet(tests: Iterable[str], wanted: Iterable[str], model: str) -> list[str]:
    """What of ``wanted`` a model did not meet and nothing that it met stands for, by the names of ``alike``, sorted.

    An ensemble stands for short single attacks at its threat, and a stronger one for ``ENSEMBLE`` too. A transfer from the
    model itself tells nothing about it.

    Args:
        tests: Attacks, ``ATTACK at THREAT``, or other tests (corruptions), that the model met.
        wanted: Those that the models beside it met.
        model: Its name.
    """
    met = {_named(test) for test in tests}
    strong = {where for attack, where in met if attack == ENSEMBLE or attack.partition("(")[0] in STRONGER}
    found = set()
    for attack, where in {_named(test) for test in wanted} - met:
        stood_for = where in strong and (attack == ENSEMBLE or _is_weaker(attack))
        if not stood_for and not (is_transfer(attack) and Ref.parse(attack).kwargs["source"] == model):
            found.add(f"{attack}{_AT}{where}" if where else attack)
    return sorted(found)


def _named(test: str) -> tuple[str, str]:
    """The name of an attack and the threat of ``ATTACK at THREAT``, empty without one."""
    attack, _, where = test.partition(_AT)
    return alike(attack), where


def _is_weaker(attack: str) -> bool:
    if attack.partition("(")[0] not in WEAKER:
        return False
    ref = Ref.parse(attack)
    total = 1.0
    for name in WEAKER[ref.name]:
        total *= float(ref.kwargs.get(name, 1))
    return total <= MOST
