"""Crossings: chains such as ``scarcity(fraction=0.1) | prune(0.7) | corruption(fog, 3) | attack(robench-standard)``.

A step changes the model or the images and hands both on; ``attack`` ends a chain. Every step names an artifact, so what
two chains share is trained, compressed, corrupted and predicted once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from robench import catalog
from robench.errors import ConfigError, must, suggestion
from robench.plan import attacks, compression, corruption, scarcity
from robench.plan.draft import Draft
from robench.spec import Artifact, Ref

_WORD = re.compile(r"[A-Za-z_][\w:.\-]*(\(.*\))?\Z", re.DOTALL)
"""A bare name or reference as an argument: ``fog``, ``robench-standard``, ``pgd(steps=40)``."""
_OPEN, _CLOSED = "([{", ")]}"


@dataclass(frozen=True)
class Subject:
    """A model under conditions, and the images it is asked about."""

    model: Artifact
    data: Artifact
    conditions: tuple[str, ...] = ()
    compressed: Artifact | None = None
    """The latest compressed model of the chain."""
    original: Artifact | None = None
    """The model before the chain's first compression."""

    @property
    def condition(self) -> str:
        """The column of that name: the steps so far."""
        return " | ".join(self.conditions)

    @property
    def uncompressed(self) -> str:
        """The condition without its compressions."""
        return " | ".join(c for c in self.conditions if Ref.parse(c).name not in catalog.COMPRESSIONS)


Step = Callable[[Draft, Subject, Ref], Subject]


def section(draft: Draft) -> None:
    """Every chain of the suite on every model it is for."""
    for crossing in draft.suite.chains:
        for name in crossing.models or draft.suite.models:
            with draft.optional(f"chain {crossing.chain}", crossing.chain):
                _walk(draft, Subject(draft.model(name), draft.test()), parse_chain(crossing.chain))


def _walk(draft: Draft, subject: Subject, steps: tuple[Ref, ...]) -> None:
    """The steps in order; then the subject is asked about clean images, and attacked where the chain says so."""
    changes = [step for step in steps if step.name != "attack"]
    for step in changes:
        subject = _step_of(step.name)(draft, subject, step)
    draft.clean(subject.model, data=subject.data, condition=subject.condition)
    if subject.original is not None and subject.model is subject.compressed:
        compression.compared(draft, subject.model, subject.original, condition=subject.condition,
                             parent_condition=subject.uncompressed, data=subject.data)  # fmt: skip
    for step in steps[len(changes) :]:
        threats = [step.kwargs["threat"]] if "threat" in step.kwargs else draft.suite.threats
        named = [step.kwargs["attack"]] if "attack" in step.kwargs else draft.suite.attacks
        attacks.require_norms(named, threats)
        parent = None
        if subject.compressed is not None:
            parent = attacks.parent_of(subject.compressed)
            named = attacks.against(subject.compressed, named)
        asked = (draft, subject.model, threats, named)
        attacks.attacked(*asked, parent=parent, data=subject.data, condition=subject.condition)


def parse_chain(text: str) -> tuple[Ref, ...]:
    """The steps of a chain, arguments by keyword.

    Positional arguments take the names of the step's parameters in order; bare words are strings.

    Args:
        text: Steps divided by ``|``, each ``name`` or ``name(argument, ...)``; ``attack`` only at the end.

    Raises:
        ConfigError: No step, an unknown one, arguments that cannot be read or are too many, or steps after an attack.
    """
    steps = tuple(_parse_step(part.strip()) for part in _split(text, "|"))
    names = [step.name for step in steps]
    if "attack" in names and any(name != "attack" for name in names[names.index("attack") :]):
        raise ConfigError(must("attacks in a chain", "at its end", text, "move attack(...) behind all other steps"))
    return steps


def _parse_step(text: str) -> Ref:
    name, paren, inner = text.partition("(")
    name = name.strip()
    _step_of(name)
    if not paren:
        return Ref(name)
    if not inner.endswith(")"):
        raise ConfigError(must("a step of a chain", "name(argument, ...)", text, "close its brackets"))
    named: dict[str, object] = {}
    free = iter(_parameters(name))
    for argument in (a.strip() for a in _split(inner[:-1], ",") if a.strip()):
        key, equals, value = argument.partition("=")
        by_name = bool(equals) and key.strip().isidentifier()
        key = key.strip() if by_name else next((k for k in free if k not in named), "")
        if not key or key in named:
            raise ConfigError(must(f"the arguments of {name}", "as many as it takes, each once", text, "leave some out"))
        named[key] = _value(value if by_name else argument)
    return Ref.of(name, **named)


def _value(text: str) -> object:
    """A literal (``8/255`` included), else a bare word or reference as a string."""
    try:
        return Ref.parse(f"x(v={text})").kwargs["v"]
    except ConfigError:
        if _WORD.match(text.strip()):
            return text.strip()
    raise ConfigError(must("an argument in a chain", "a literal or a name", text, "put other text in quotes"))


def _split(text: str, mark: str) -> Iterator[str]:
    """Parts of a text at a mark outside brackets and quotes."""
    depth, quote, start = 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSED:
            depth -= 1
        elif char == mark and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def _parameters(name: str) -> tuple[str, ...]:
    """Names that positional arguments of a step take."""
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    table = catalog.COMPRESSIONS if name in catalog.COMPRESSIONS else catalog.DEFENSES
    return tuple(table[name].parameters)


def _step_of(name: str) -> Step:
    """What a step does.

    Raises:
        ConfigError: Unknown name.
    """
    if name in _STEPS:
        return _STEPS[name]
    if name in catalog.COMPRESSIONS:
        return _compressed
    if name in catalog.DEFENSES:
        return _defended
    known = [*_STEPS, *catalog.COMPRESSIONS, *catalog.DEFENSES]
    raise ConfigError(must("a step of a chain", "a known one", name, suggestion(name, known)))


def _only(step: Ref, *, needed: bool = True) -> None:
    """Check the arguments of a step that is no plug-in."""
    for key in step.kwargs:
        if key not in _ARGUMENTS[step.name]:
            known = _ARGUMENTS[step.name]
            raise ConfigError(must(f"an argument of {step.name}", "a known one", key, suggestion(key, known)))
    missing = [key for key in _ARGUMENTS[step.name] if key not in step.kwargs]
    if needed and missing:
        raise ConfigError(
            must(f"the arguments of {step.name}", ", ".join(_ARGUMENTS[step.name]), str(step), "add what is missing")
        )


def _changed(subject: Subject, step: Ref, **changes: object) -> Subject:
    return replace(subject, conditions=(*subject.conditions, str(step)), **changes)  # type: ignore[arg-type]


def _scarce(draft: Draft, subject: Subject, step: Ref) -> Subject:
    if subject.conditions:
        raise ConfigError(must("scarcity in a chain", "the first step", str(step), "a training starts from nothing else"))
    return _changed(subject, step, model=scarcity.retrained(draft, subject.model, **step.kwargs))


def _compressed(draft: Draft, subject: Subject, step: Ref) -> Subject:
    if subject.compressed is not None and subject.model is not subject.compressed:
        raise ConfigError(
            must("the compressions of a chain", "next to one another", str(step), "put the defence behind them")
        )
    built, _ = compression.compressed(draft, subject.model, step)
    return _changed(subject, step, model=built, compressed=built, original=subject.original or subject.model)


def _defended(draft: Draft, subject: Subject, step: Ref) -> Subject:
    built, _ = attacks.defended(draft, subject.model, step)
    return _changed(subject, step, model=built)


def _corrupted(draft: Draft, subject: Subject, step: Ref) -> Subject:
    _only(step)
    if subject.data.digest != draft.test().digest:
        raise ConfigError(must("a chain", "with one change of the images", str(step), "make a chain for each"))
    return _changed(subject, step, data=corruption.severity(draft, step.kwargs["name"], step.kwargs["severity"]))


def _attack(draft: Draft, subject: Subject, step: Ref) -> Subject:
    """An attack changes neither model nor images."""
    return subject


_STEPS: Mapping[str, Step] = {"scarcity": _scarce, "corruption": _corrupted, "attack": _attack}
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "scarcity": scarcity.RETRAINED,
    "corruption": ("name", "severity"),
    "attack": ("attack", "threat"),
}
