"""Images of other kinds: which sources, fitted detectors, and what an attack makes of the data set's own."""

from __future__ import annotations

from robench import catalog
from robench.data.names import parse_data
from robench.errors import ConfigError, UnfitError, must
from robench.plan.draft import Draft
from robench.plan.plain import measured
from robench.spec import Artifact, Ref, ThreatModel


def section(draft: Draft) -> None:
    """Every model of the suite on every source, with every detector; adversarial images in a cell of their own."""
    plan = draft.suite.ood
    if not plan.sources and not plan.attack:
        return
    detectors = tuple(str(Ref.parse(d)) for d in plan.detectors or sorted(catalog.DETECTORS))
    plugins = [f"{catalog.DETECTORS.resolve(d)}|{catalog.DETECTORS[Ref.parse(d).name].version}" for d in detectors]
    images = [_source(draft, text) for text in plan.sources]
    names = tuple(name for name, _ in images)
    if len(set(names)) < len(names):
        raise ConfigError(must("the names of OOD sources", "different", list(names), "rename one: NAME=folder:PATH"))
    if "train" not in draft.sources.splits:
        draft.note("OOD detectors that are fitted on training images: the data set has no split 'train'")
    for model in measured(draft):
        told = {"detectors": detectors, "fitted": "train" in draft.sources.splits}
        known = _known(draft, model)
        if images:
            seen = tuple(draft.predictions(model, data) for _, data in images)
            draft.add(Ref.of("ood", sources=names, **told), model, extra=(*known, *seen), plugins=plugins)
        if plan.attack:
            with draft.optional("adversarial images as OOD source"):
                hit = attacked(draft, model, plan.attack, plan.threat)
                name = f"{Ref.parse(plan.attack).name} {hit.builder.kwargs['threat']}"
                draft.add(Ref.of("ood", sources=(name,), **told), model, extra=(*known, hit), plugins=plugins)


def _known(draft: Draft, model: Artifact) -> tuple[Artifact, ...]:
    """Predictions on training images, if there are any, and on test images."""
    test = draft.predictions(model, draft.test())
    if "train" not in draft.sources.splits:
        return (test,)
    limit = draft.suite.ood.train_limit
    return draft.predictions(model, draft.images("train", limit)), test


def _source(draft: Draft, text: str) -> tuple[str, Artifact]:
    """The name and the images of a source: drawn, or ``NAME=DATA`` of the user's."""
    name, data = named_data(text)
    if data:
        return name, _of_user(draft, text, data)
    ref = catalog.OOD_SOURCES.resolve(text)
    builder = Ref.of("drawn", source=str(ref), seed=draft.seed)
    version = f"{catalog.BUILDERS['drawn'].version}|{catalog.OOD_SOURCES[ref.name].version}"
    return str(Ref.parse(text)), Artifact("data", builder, version, (draft.test(),), label=draft.data_label)


def named_data(text: str) -> tuple[str, str]:
    """``NAME`` and ``DATA`` of ``NAME=DATA``; the text and nothing of a drawn source."""
    name, equals, data = text.partition("=")
    return (name.strip(), data.strip()) if equals and name.strip().isidentifier() else (text, "")


def read_as(data: str, shape: tuple[int, int, int] | None) -> str:
    """A data set's reference with size and channels of the ID images filled in, where its loader takes them."""
    ref = parse_data(data)
    taken = catalog.DATA[ref.name].parameters
    known = {"channels": shape[0], "size": shape[1]} if shape else {}
    return str(ref.with_defaults({k: v for k, v in known.items() if k in taken}))


def _of_user(draft: Draft, text: str, data: str) -> Artifact:
    read = read_as(data, draft.sources.shape)
    if read not in draft.sources.files:
        known = ", ".join(draft.sources.files) or "none"
        raise ConfigError(must("an OOD source of the user's", "read before planning", text, f"read: {known}"))
    ref = catalog.BUILDERS.resolve(Ref.of("images", source=read, split="test", limit=draft.suite.limit, seed=draft.seed))
    return Artifact("data", ref, draft.sources.files[read], label=data)


def attacked(draft: Draft, model: Artifact, attack: str, threat: str = "") -> Artifact:
    """What a single attack makes of the run's test images, with the model's predictions on it.

    Args:
        draft: The graph.
        model: The model under attack.
        attack: A reference; no protocol, and none that needs another model.
        threat: Its threat; by default the suite's first.

    Raises:
        ConfigError: Such an attack, no threat, or one of a norm that the attack does not know.
    """
    ref = catalog.ATTACKS.resolve(attack)
    entry = catalog.ATTACKS[ref.name]
    if entry.facts.get("protocol") or entry.facts.get("surrogate"):
        raise ConfigError(must("an attack that makes images", "a single one such as pgd(steps=10)", attack, "name another"))
    text = threat or next(iter(draft.suite.threats), "")
    if not text:
        raise UnfitError(must("the threat of adversarial images", "given", text, "add threats to the suite"))
    parsed = ThreatModel.parse(text)
    if parsed.norm not in entry.facts.get("norms", ()):
        expected = "of norm " + " or ".join(entry.facts.get("norms", ()))
        raise UnfitError(must(f"the threat of {attack}", expected, text, "name another threat or attack"))
    args = {"attack": str(Ref.parse(attack)), "threat": str(parsed), "seed": draft.seed, "width": draft.settings.width}
    version = f"{catalog.BUILDERS['attacked'].version}|{ref}|{entry.version}"
    images = draft.test()
    return Artifact("attacked", Ref.of("attacked", **args), version, (model, images), label=images.label, stored=True)
