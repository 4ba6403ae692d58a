"""Resolve step: what the user named becomes source artifacts with content hashes, before planning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import catalog
from robench.children import isolated
from robench.data.classes import fits, mapping_line, require_logits
from robench.data.names import parse_data
from robench.data.overlap import NATURAL, image_hashes
from robench.errors import ConfigError, DataError, ModelError, must, suggestion
from robench.models.load import is_code, require_trust
from robench.plan import Sources, made_of
from robench.plan.ood import read_as
from robench.plan.scarcity import SAMPLE, checked, trained_on
from robench.spec import Artifact, DatasetSpec, Ref
from robench.user_code import sha256_of
from robench.workshop import read_split
from robench.zoo import ZOO

_NO_NAME = re.compile(r"[(:/\\]")
"""What a model's name does not contain; a text with one of these before its ``=`` is a source."""

if TYPE_CHECKING:
    from robench.models.identity import Built


@dataclass(frozen=True)
class UserModel:
    """A model of a run: a weights file with its architecture, an exported program, a factory, or one by its name."""

    source: str
    """FILE.safetensors, .pt, .pth, .pt2, ``package.module:factory``, ``path.py:factory``, ``trained(...)``, zoo name."""
    arch: str = ""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input_range: tuple[float, float] = (0.0, 1.0)
    num_classes: int | None = None
    """Number of its logits; None: as many as the data has classes."""
    name: str = ""
    """Name in tables; by default the file's name, or the source itself where it is no file."""

    @property
    def label(self) -> str:
        """The model's name in tables."""
        by_itself = self.source in ZOO or self.source.startswith("trained(")
        return self.name or (self.source if by_itself else Path(self.source).name)


def split_name(text: str) -> tuple[str, str]:
    """Name and source of ``NAME=SOURCE``; an empty name where the text has none.

    A text that is an existing file is a source, whatever its name is.

    Raises:
        ConfigError: An empty name or source.
    """
    name, equals, source = text.partition("=")
    if not equals or Path(text).is_file() or _NO_NAME.search(name):
        return "", text
    if not name.strip() or not source.strip():
        raise ConfigError(must("--model", "SOURCE or NAME=SOURCE", text, "e.g. --model release-2=net.safetensors"))
    return name.strip(), source.strip()


def listed(models: Iterable[str | UserModel] | Mapping[str, str | UserModel]) -> list[UserModel]:
    """Models as a run takes them: by source (``NAME=SOURCE`` names one), or by name.

    Raises:
        ConfigError: An empty name or source.
    """
    if isinstance(models, Mapping):
        named = {name: m if isinstance(m, UserModel) else UserModel(m) for name, m in models.items()}
        return [replace(model, name=name) for name, model in named.items()]
    return [_listed(model) for model in models]


def _listed(model: str | UserModel) -> UserModel:
    if isinstance(model, UserModel):
        return model
    name, source = split_name(model)
    return UserModel(source, name=name)


def resolve_sources(
    data: str, models: Iterable[str | UserModel], *, files: Iterable[str] = (), trust: bool = False
) -> tuple[Sources, tuple[tuple[str, str], ...]]:
    """Source artifacts of a data set and of models, and the (sha256, path) pairs of the user's files.

    A model that is made by code is built once, in a process of its own, so that its weights are part of its identity.

    Args:
        data: The data set.
        models: Names of the zoo and of models to train, or models of the user's.
        files: Further data sets (shifted ones), which must have images of the same shape.
        trust: Whether code named by the user may be executed.

    Raises:
        ConfigError: Unknown names.
        DataError: Missing or damaged data.
        ModelError: A missing model file, or code that fails or is not trusted.
    """
    models = listed(models)
    built = _built(models, trust)
    identities = {}
    test = read_split(data, "test")
    label, spec = parse_data(data).name, test.spec
    (splits, notes), shape = _versions(data, spec), spec.shape
    fitting = [name for name, entry in ZOO.items() if entry.spec.shape[0] == shape[0]]
    artifacts = {name: _zoo(name) for name in fitting}
    classes = {name: ZOO[name].spec.num_classes for name in fitting}
    paths = []
    taken: set[str] = set()
    for user in models:
        name = user.label
        if name in taken or (name in ZOO and name != user.source):
            raise ConfigError(must("the models' names", "different", name, "name them: --model NAME=SOURCE"))
        taken.add(name)
        if user.source in ZOO:
            _require_fit(user.source, data, spec)
            artifacts[name] = replace(_zoo(user.source), label=name)
            classes[name] = ZOO[user.source].spec.num_classes
        elif user.source.startswith("trained("):
            artifacts[name] = replace(_trained(user.source, data, splits), label=name)
            arch = Ref.parse(artifacts[name].builder.kwargs["arch"])
            classes[name] = int(arch.kwargs.get("num_classes", len(spec.classes)))
        else:
            artifacts[name], path = _file(user, spec, built.get(user.source))
            classes |= {name: user.num_classes or len(spec.classes)} if user.arch else {}
            paths.append(path)
            if user.source in built:
                identities[name] = built[user.source].facts()
    _require_different({name: artifacts[name] for name in taken})
    further = {name: _further(name, data, spec) for name in dict.fromkeys(files)}
    notes += tuple(note for other, _ in further.values() for note in other.notes)
    names = {data: spec.classes, **{name: other.classes for name, (other, _) in further.items()}}
    hashes = {name: version for name, (_, version) in further.items()}
    code = {path: content for model in built.values() for _, path, content in model.files} | _plug_ins()
    more: dict[str, Any] = {"identities": identities, "code": tuple(sorted(code.items()))}
    more |= {"ids": frozenset(test.ids.tolist()), "notes": notes}
    return Sources(data, label, splits, artifacts, classes, shape, hashes, names, **more), tuple(paths)


def kept_sources(models: Iterable[UserModel]) -> dict[str, dict[str, Any]]:
    """Name → source and options of models, as ``run.json`` keeps them; files by paths that another folder finds too."""
    return {model.label: asdict(replace(model, source=absolute(model.source), name=model.label)) for model in models}


def absolute(source: str) -> str:
    """A user's model file by a path that another folder finds too; a dotted module stays as it is."""
    path, colon, name = source.rpartition(":")
    place = Path(path if colon else source)
    return f"{place.resolve()}{colon}{name if colon else ''}" if place.is_file() else source


def _built(models: Iterable[UserModel], trust: bool) -> dict[str, Built]:
    """Source → content of every model that is made by code.

    Raises:
        ModelError: Code that fails, or is not trusted.
    """
    from robench.models.identity import describe

    named = [m.source for m in models if m.source not in ZOO and not m.source.startswith("trained(")]
    code = [source for source in named if is_code(source)]
    for source in code:
        require_trust(source, trust)
    if not code:
        return {}
    what = f"the factory {code[0]}" if len(code) == 1 else f"one of the factories {', '.join(code)}"
    return {model.source: model for model in isolated(describe, tuple(code), what=what)}


def _plug_ins() -> dict[str, str]:
    """Files of third parties' plug-ins, and their hashes: no worker may measure with others."""
    entries = [entry for table in catalog.TABLES.values() for entry in table.values() if entry.origin != "robench"]
    return {str(path): sha256_of(path) for entry in entries for path in entry.files}


def _require_different(models: Mapping[str, Artifact]) -> None:
    """Refuse one model under two names: its results are kept by its content, so that one name would have none.

    Raises:
        ConfigError: Names both.
    """
    names: dict[str, str] = {}
    for name, artifact in sorted(models.items()):
        other = names.setdefault(artifact.digest, name)
        if other != name:
            raise ConfigError(must("the models of a run", "different ones", f"{other} and {name}, which are the same",
                                   "leave one of them out"))  # fmt: skip


def _further(source: str, data: str, own: DatasetSpec) -> tuple[DatasetSpec, str]:
    """Facts and version of a further data set's test split.

    Raises:
        DataError: Images of another shape, or images that models were trained on.
    """
    name = read_as(source, own.shape)
    other = read_split(name, "test")
    if other.spec.shape != own.shape:
        remedy = "resize or convert them"
        raise DataError(must(f"the images of {source}", f"{own.shape} as the data set's", other.spec.shape, remedy))
    if "train" in own.splits:
        seen = frozenset(image_hashes(read_split(data, "train")))
        shared = sum(found in seen for found in image_hashes(other))
        if shared > NATURAL * len(other):
            got = f"{shared} of {len(other)} that are also in the train split of {data}"
            raise DataError(must(f"the images of {source}", "such as no model was trained on", got, "leave those out"))
    return other.spec, f"{catalog.DATA[parse_data(name).name].version}|{other.spec.sha256}"


def _require_fit(name: str, data: str, spec: DatasetSpec) -> None:
    """Refuse a zoo net on images of other channels, or of another number of classes, than those it was trained on.

    Raises:
        ConfigError: Names the net's data set.
        ModelError: Another number of classes.
    """
    own = ZOO[name]
    if own.spec.shape[0] != spec.shape[0]:
        expected = f"of {own.spec.shape[0]} channel(s), as of {own.data}"
        raise ConfigError(must(f"the images for {name}", expected, spec.shape[0], f"use --data {own.data}"))
    require_logits(spec, own.spec.num_classes, model=name, source=data)


def fitting_models(data: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Models of a suite that can be run on other data, and notes on the rest.

    A zoo net fits images with the channels and the number of classes that it was trained on. Where none of the names fits,
    the zoo's nets for this data set take their place.

    Raises:
        ConfigError: No model fits, and the zoo has none for this data set.
    """
    label, spec, wanted = parse_data(data).name, read_split(data, "test").spec, list(names)
    fit = {name: ZOO[name].spec.shape[0] == spec.shape[0] and fits(spec, ZOO[name].spec.num_classes) for name in ZOO}
    kept = [name for name in wanted if fit.get(name, True)]
    notes = [
        f"{name}: it takes images of {ZOO[name].spec.shape[0]} channel(s) and {ZOO[name].spec.num_classes} classes, "
        f"as {ZOO[name].data}" for name in wanted if name not in kept
    ]  # fmt: skip
    if kept or not wanted:
        return kept, notes
    kept = [name for name, entry in ZOO.items() if entry.data == label]
    if not kept:
        raise ConfigError(must("the models for this data", "named", "none", "add --model; the suite's models do not fit"))
    return kept, [*notes, f"the suite's models do not fit; the zoo's nets for {label} are run: {', '.join(kept)}"]


def other_data(data: str, named: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Further data sets that are to hold none of the classes of ``data``: as they are read → content hash; and their notes.

    Args:
        data: The data set whose images are in distribution.
        named: References such as ``folder:PATH``; size and channels are those of ``data`` unless said otherwise.

    Raises:
        ConfigError: Unknown names.
        DataError: Missing or damaged data, images of another shape, or a class that ``data`` has too.
    """
    own = read_split(data, "test").spec
    found: dict[str, str] = {}
    notes: list[str] = []
    for text in named:
        read = read_as(text, own.shape)
        other = read_split(read, "test").spec
        common = sorted({c.casefold() for c in own.classes} & {c.casefold() for c in other.classes})
        if common:
            remedy = "images of a class that the model knows are not out of distribution; leave those folders out"
            raise DataError(must(f"the classes of {text}", f"none of those of {data}", common, remedy))
        if other.shape != own.shape:
            remedy = f"resize them, e.g. {parse_data(text).name}(size={own.shape[1]})"
            raise DataError(must(f"images of {text}", f"of shape {own.shape}", other.shape, remedy))
        found[read] = f"{catalog.DATA[parse_data(read).name].version}|{other.sha256}"
        notes += other.notes
    return found, tuple(notes)


def _versions(data: str, test: DatasetSpec) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split → version, and what reading says; that of another split names the test split too, whose images are left out."""
    reader = catalog.DATA[parse_data(data).name].version
    found: dict[str, str] = {}
    notes = [*test.notes]
    for split in ("train", "validation", "test"):
        if split in test.splits:
            spec = test if split == "test" else read_split(data, split).spec
            found[split] = f"{reader}|{spec.sha256}" + ("" if split == "test" else f"|{test.sha256}")
            notes += spec.notes
    line = mapping_line(test)
    return found, tuple(dict.fromkeys([*notes, *([line] if line else [])]))


def _zoo(name: str) -> Artifact:
    version = "|".join([catalog.BUILDERS["zoo"].version, ZOO[name].sha256, made_of(ZOO[name].arch)])
    return Artifact("model", Ref.of("zoo", name=name), version, label=name)


def _trained(text: str, data: str, splits: dict[str, str]) -> Artifact:
    """A model that the run trains first: ``trained(arch='resnet18(width=16)', recipe='pgd_at', steps=500)``."""
    if "train" not in splits:
        raise ConfigError(must("the data of a trained model", "a set with a train split", data, "name another data set"))
    args = dict(Ref.parse(text).kwargs)
    if "transfer" in args:
        remedy = "transfer is an arm of a suite's section scarcity, which trains its source"
        raise ConfigError(must("a trained model", "without 'transfer'", text, remedy))
    sample = {k: args.pop(k) for k in SAMPLE if k in args}
    if args.get("augment"):
        checked(data, str(args["augment"]))
    ref = catalog.BUILDERS.resolve(Ref.of("trained", **args))
    images = Artifact("data", catalog.BUILDERS.resolve(Ref.of("images", source=data, split="train")), splits["train"])
    if sample:
        part = catalog.BUILDERS.resolve(Ref.of("sampled", **sample, seed=ref.kwargs["seed"]))
        images = Artifact("data", part, catalog.BUILDERS["sampled"].version, (images,))
    return replace(trained_on(images, **ref.kwargs), label=text)


def _file(user: UserModel, data: DatasetSpec, built: Built | None) -> tuple[Artifact, tuple[str, str]]:
    path = Path(user.source)
    if built is None and not path.is_file():
        remedy = f"{suggestion(user.source, ZOO)}; or name a file or package.module:factory"
        raise ConfigError(must("--model", "a model of the zoo or a file that exists", user.source, remedy))
    try:
        digest = built.sha256 if built else sha256_of(path)
    except OSError as error:
        raise ModelError(must(f"the model file {path}", "readable", str(error), "check its permissions")) from error
    low, high = user.input_range
    content = {"weights": built.weights, "attributes": built.attributes, "code": built.code} if built else {}
    ref = Ref.of(
        "file", sha256=digest, arch=user.arch, mean=user.mean, std=user.std, low=low, high=high,
        num_classes=user.num_classes or 0, classes=len(data.classes), shape=data.shape, **content,
    )  # fmt: skip
    version = "|".join([catalog.BUILDERS["file"].version, *([made_of(user.arch)] if user.arch else [])])
    return Artifact("model", ref, version, label=user.label), (digest, user.source)
