"""Attacks × threats on models as they are and behind defences, security curves, and who watches the attacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from robench import catalog
from robench.errors import ConfigError, must
from robench.plan.draft import Draft
from robench.plan.plain import measured
from robench.spec import Artifact, Ref, ThreatModel


def section(draft: Draft) -> None:
    """The suite's attacks on its models, its curves, and its defended models."""
    suite = draft.suite
    require_norms(suite.attacks, suite.threats)
    for curve in suite.curves:
        require_norms(curve.attacks, [f"{curve.norm}({eps})" for eps in curve.eps])
    for model in measured(draft):
        attacked(draft, model, suite.threats, suite.attacks)
        for curve in suite.curves:
            attacked(draft, model, [f"{curve.norm}({eps})" for eps in curve.eps], curve.attacks)
    for pair in suite.defenses:
        built, condition = defended(draft, draft.model(pair.model), pair.defense)
        draft.clean(built, condition=condition)
        attacks = [*suite.attacks, transfer_from(pair.model)]
        attacked(draft, built, pair.threats or suite.threats, attacks, condition=condition)


def require_norms(attacks: Iterable[str], threats: Iterable[str]) -> None:
    """Refuse an attack that knows none of the norms it is to be run in; it would be left out without a word.

    Raises:
        ConfigError: Names the first one.
    """
    asked = dict.fromkeys(ThreatModel.parse(t).norm for t in threats)
    for attack in attacks:
        name = catalog.ATTACKS.resolve(attack).name
        known = catalog.ATTACKS[name].facts.get("norms", ())
        if asked and not set(known) & set(asked):
            remedy = "add such a threat, or leave the attack out"
            raise ConfigError(must(f"a threat for {name}", "of norm " + " or ".join(known), ", ".join(asked), remedy))


def attacked(draft: Draft, model: Artifact, threats: Iterable[str], attacks: Iterable[str], **more: Any) -> None:
    """Attacks × threats on one model, and one sentinel, at the first threat that is attacked.

    Args:
        draft: Where the cells go.
        model: The model under attack.
        threats: Such as ``linf(8/255)``.
        attacks: References; those that do not know a threat's norm are passed over there.
        more: Further fields of the cells: ``condition``, ``data``, ``seed``.
    """
    threats, attacks = list(threats), list(attacks)
    for text in threats:
        threat = ThreatModel.parse(text)
        for attack in attacks:
            ref = catalog.ATTACKS.resolve(attack)
            entry = catalog.ATTACKS[ref.name]
            if threat.norm not in entry.facts.get("norms", ()):
                continue
            surrogate = {"extra": (_surrogate(draft, ref, model),)} if entry.facts.get("surrogate") else {}
            scenario = Ref.of("evasion", attack=str(Ref.parse(attack)), threat=str(threat))
            draft.add(scenario, model, plugins=[str(ref), entry.version], **{**more, **surrogate})
    if threats and attacks and not draft.watched(model, **more):
        draft.add(Ref.of("sentinel", threat=str(ThreatModel.parse(threats[0]))), model, **more)


def _surrogate(draft: Draft, ref: Ref, target: Artifact) -> Artifact:
    name, classes = str(ref.kwargs.get("source", "")), draft.sources.classes
    if name not in draft.sources.models:
        known = ", ".join(sorted(draft.sources.models))
        raise ConfigError(must("a transfer's source", "a model of the run or the zoo", name, f"known: {known}"))
    own = classes.get(target.label)
    if own is not None and classes.get(name, own) != own:
        remedy = "name a source that was trained on the same classes"
        raise ConfigError(must(f"the classes of the source {name}", f"the {own} of {target.label}", classes[name], remedy))
    return draft.sources.models[name]


def transfer_from(name: str) -> str:
    """The attack that tries another model's adversarial images."""
    return str(Ref.of("transfer", source=name))


def defended(draft: Draft, parent: Artifact, defense: Ref | str) -> tuple[Artifact, str]:
    """A model behind an inference-time defence, and the condition that says so."""
    ref = catalog.DEFENSES.resolve(defense)
    version = f"{catalog.BUILDERS['defended'].version}|{catalog.DEFENSES[ref.name].version}"
    built = Artifact("model", Ref.of("defended", defense=str(ref)), version, (parent,), label=parent.label)
    return built, str(Ref.parse(defense) if isinstance(defense, str) else defense)
