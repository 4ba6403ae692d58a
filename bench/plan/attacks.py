"""Attacks × threats on models as they are and behind defences, security curves, and who watches the attacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from robench import catalog
from robench.errors import ConfigError, UnfitError, must
from robench.metrics.alike import STANDARD, STRONGER
from robench.plan.draft import Draft
from robench.plan.plain import measured
from robench.spec import Artifact, Ref, ThreatModel
from robench.zoo.entries import ZOO


def section(draft: Draft) -> None:
    """The suite's attacks on its models, its curves, and its defended models."""
    suite = draft.suite
    attacks = fitting(draft, suite.attacks, suite.threats)
    for curve in suite.curves:
        require_norms(curve.attacks, [f"{curve.norm}({eps})" for eps in curve.eps])
    for model in measured(draft):
        attacked(draft, model, suite.threats, attacks)
        for curve in suite.curves:
            attacked(draft, model, [f"{curve.norm}({eps})" for eps in curve.eps], curve.attacks)
    for pair in suite.defenses:
        for name in [pair.model] if pair.model else suite.models:
            built, condition = defended(draft, draft.model(name), pair.defense)
            draft.clean(built, condition=condition)
            threats = pair.threats or suite.threats
            attacked(draft, built, threats, [*attacks, transfer_from(name)], condition=condition)


def fitting(draft: Draft, attacks: Iterable[str], threats: Iterable[str]) -> list[str]:
    """The attacks that know a norm of the threats; in a suite that adapts the others are noted.

    Raises:
        UnfitError: An attack that must be run knows none of the norms, or a threat that must be attacked has no attack.
    """
    attacks, threats, kept = list(attacks), list(threats), []
    for attack in attacks:
        with draft.optional(attack, attack):
            require_norms([attack], threats)
            kept.append(attack)
    for threat in threats if attacks else ():
        norm = ThreatModel.parse(threat).norm
        if not any(norm in norms_of(attack) for attack in kept):
            with draft.optional(threat, threat):
                remedy = "add such an attack, e.g. --attack robench-standard, for l0 robench-l0"
                raise UnfitError(must(f"the attacks at {threat}", f"some that know {norm}", ", ".join(attacks), remedy))
    return kept


def require_norms(attacks: Iterable[str], threats: Iterable[str]) -> None:
    """Refuse an attack that knows none of the norms it is to be run in; it would be left out without a word.

    Raises:
        UnfitError: Names the first one.
    """
    asked = dict.fromkeys(ThreatModel.parse(t).norm for t in threats)
    for attack in attacks:
        name, known = catalog.ATTACKS.resolve(attack).name, norms_of(attack)
        if asked and not set(known) & set(asked):
            remedy = "add such a threat, or leave the attack out"
            raise UnfitError(must(f"a threat for {name}", "of norm " + " or ".join(known), ", ".join(asked), remedy))


def _versioned(attack: str) -> list[str]:
    """An attack as identity knows it, arguments filled in and versions; with the attack that it runs."""
    ref = catalog.ATTACKS.resolve(attack)
    own = [str(ref), catalog.ATTACKS[ref.name].version]
    return [*own, *(_versioned(str(ref.kwargs["attack"])) if "attack" in ref.kwargs else ())]


def norms_of(attack: str) -> tuple[str, ...]:
    """The norms that an attack knows; one that runs another knows those that both know."""
    ref = catalog.ATTACKS.resolve(attack)
    known: tuple[str, ...] = catalog.ATTACKS[ref.name].facts.get("norms", ())
    inner = str(ref.kwargs["attack"]) if "attack" in ref.kwargs else ""
    return tuple(norm for norm in known if not inner or norm in norms_of(inner))


def attacked(
    draft: Draft,
    model: Artifact,
    threats: Iterable[str],
    attacks: Iterable[str],
    *,
    scenario: str = "evasion",
    parent: Artifact | None = None,
    **more: Any,
) -> None:
    """Attacks × threats on one model, and one sentinel, at the first threat that is attacked.

    Args:
        draft: Where the cells go.
        model: The model under attack.
        threats: Such as ``linf(8/255)``.
        attacks: References; those that do not know a threat's norm are passed over there.
        scenario: ``evasion``, or one that takes the same arguments.
        parent: What a compressed model was made from, where that is none of the sources: it goes by the model's own name.
        more: Further fields of the cells: ``condition``, ``data``, ``seed``.
    """
    threats, attacks = list(threats), list(attacks)
    for text in threats:
        threat = ThreatModel.parse(text)
        for attack in attacks:
            ref = catalog.ATTACKS.resolve(attack)
            entry = catalog.ATTACKS[ref.name]
            if threat.norm not in norms_of(attack):
                continue
            with draft.optional(attack, attack):
                surrogate = {"extra": (_surrogate(draft, attack, model, parent),)} if entry.facts.get("surrogate") else {}
                chosen = Ref.of(scenario, attack=str(Ref.parse(attack)), threat=str(threat))
                draft.add(chosen, model, plugins=_versioned(attack), **{**more, **surrogate})
                _note_precision(draft, attack, threat)
    if threats and attacks and not draft.watched(model, **more):
        draft.add(Ref.of("sentinel", threat=str(ThreatModel.parse(threats[0]))), model, **more)


def _note_precision(draft: Draft, attack: str, threat: ThreatModel) -> None:
    """Say which protocols the search precision, which is part of every digest, does not reach."""
    precision, entry = draft.settings.search_precision, catalog.ATTACKS[catalog.ATTACKS.resolve(attack).name]
    if precision != "float32" and entry.facts.get("protocol") and threat.norm not in entry.facts.get("lowers", ()):
        draft.note(f"{precision} in {attack} at {threat.norm}: {searches_lower()} search with it, all else does not")


def searches_lower() -> str:
    """The protocols that search in another precision where it is wished, with their norms."""
    found = [(name, entry.facts.get("lowers", ())) for name, entry in catalog.ATTACKS.items() if not entry.broken]
    return ", ".join(f"{name} ({', '.join(norms)})" for name, norms in found if norms)


def _surrogate(draft: Draft, attack: str, target: Artifact, parent: Artifact | None) -> Artifact:
    """The model that a transfer takes its images from.

    Raises:
        ConfigError: An unknown name.
        UnfitError: A model of other channels, of another number of classes, or that is not in this run.
    """
    name, classes = str(Ref.parse(attack).kwargs.get("source", "")), draft.sources.classes
    if parent is not None and name == parent.label:
        return parent
    if name not in draft.sources.models:
        known = ", ".join(sorted(draft.sources.models))
        kind = UnfitError if name in ZOO else ConfigError
        raise kind(must("a transfer's source", "a model of the run, or of the zoo for such images", name, f"known: {known}"))
    own = classes.get(target.label)
    if own is None and not draft.suite.requires(attack):
        own = len(draft.sources.names.get(draft.sources.data, ())) or None
    if own is not None and classes.get(name, own) != own:
        remedy = "name a source that was trained on the same classes"
        raise UnfitError(must(f"the classes of the source {name}", f"the {own} of {target.label}", classes[name], remedy))
    return draft.sources.models[name]


def transfer_from(name: str) -> str:
    """The attack that tries another model's adversarial images."""
    return str(Ref.of("transfer", source=name))


def against(model: Artifact, attacks: Iterable[str]) -> list[str]:
    """Attacks on a compressed model as they can be meant, and what every such model meets besides.

    That is its parent's images and, unless an ensemble was asked for on a model with a gradient, the union of all that an
    adversary has: gradients, parent and a search without gradients. Of a model without a gradient, gradient attacks take
    its substitute's (``through``).

    Args:
        model: An artifact of the builder ``compressed``.
        attacks: References; one that transfers and names no source takes the parent's images.
    """
    asked = [_from_parent(attack, model.label) for attack in attacks]
    union = [str(Ref.of("compressed-union", source=model.label))]
    if without_gradient(model):
        asked = [_lent(attack) for attack in asked]
    elif any(Ref.parse(attack).name in (*STANDARD, *STRONGER) for attack in asked):
        union = []
    return list(dict.fromkeys([*asked, transfer_from(model.label), *union]))


def parent_of(model: Artifact) -> Artifact:
    """The float model that an adversary of a compressed one has: what a runtime took over, else the uncompressed one."""
    if without_gradient(model):
        return model.inputs[0]
    while model.builder.name in ("compressed", "tuned"):
        model = model.inputs[0]
    return model


def without_gradient(model: Artifact) -> bool:
    """Whether what executes a compressed model gives no gradient."""
    method = Ref.parse(str(model.builder.kwargs["method"]))
    return not catalog.COMPRESSIONS[method.name].facts.get("gradient", True)


def _from_parent(attack: str, name: str) -> str:
    ref = Ref.parse(attack)
    own = catalog.ATTACKS[ref.name].facts.get("surrogate") and not ref.kwargs.get("source")
    return str(Ref.of(ref.name, **{**ref.kwargs, "source": name})) if own else attack


def _lent(attack: str) -> str:
    facts = catalog.ATTACKS[Ref.parse(attack).name].facts
    plain = facts.get("access") == "white" and not facts.get("protocol") and not attack.startswith("through(")
    return str(Ref.of("through", attack=str(Ref.parse(attack)))) if plain else attack


def defended(draft: Draft, parent: Artifact, defense: Ref | str) -> tuple[Artifact, str]:
    """A model behind an inference-time defence, and the condition that says so."""
    ref = catalog.DEFENSES.resolve(defense)
    version = f"{catalog.BUILDERS['defended'].version}|{catalog.DEFENSES[ref.name].version}"
    built = Artifact("model", Ref.of("defended", defense=str(ref)), version, (parent,), label=parent.label)
    return built, str(Ref.parse(defense) if isinstance(defense, str) else defense)
