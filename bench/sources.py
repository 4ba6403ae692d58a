"""Resolve step: what the user named becomes source artifacts with content hashes, before planning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from robench import catalog
from robench.data.overlap import NATURAL, image_hashes
from robench.errors import ConfigError, DataError, ModelError, must, suggestion
from robench.plan import Sources, made_of
from robench.plan.ood import read_as
from robench.plan.scarcity import SAMPLE, checked, trained_on
from robench.spec import Artifact, DatasetSpec, Ref
from robench.workshop import read_split
from robench.zoo import ZOO


@dataclass(frozen=True)
class UserModel:
    """A model of the user's: a weights file with its architecture, an exported program, or a factory."""

    source: str
    """FILE.safetensors, FILE.pt, FILE.pt2, ``package.module:factory`` or ``path.py:factory``."""
    arch: str = ""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input_range: tuple[float, float] = (0.0, 1.0)
    num_classes: int = 10


def resolve_sources(
    data: str, models: Iterable[str | UserModel], *, files: Iterable[str] = ()
) -> tuple[Sources, tuple[tuple[str, str], ...]]:
    """Source artifacts of a data set and of models, and the (sha256, path) pairs of the user's files.

    ``files`` are further data sets (shifted ones), which must have images of the same shape.

    Raises:
        ConfigError: Unknown names.
        DataError: Missing or damaged data.
        ModelError: A missing model file.
    """
    label, spec = Ref.parse(data).name, read_split(data, "test").spec
    splits, shape = _versions(data, spec), spec.shape
    fitting = [name for name, entry in ZOO.items() if entry.spec.shape[0] == shape[0]]
    artifacts = {name: _zoo(name) for name in fitting}
    classes = {name: ZOO[name].spec.num_classes for name in fitting}
    paths = []
    for model in models:
        if isinstance(model, str) and model in ZOO:
            _require_shape(model, data, shape)
            continue
        if isinstance(model, str) and model.startswith("trained("):
            artifacts[model] = _trained(model, data, splits)
            arch = Ref.parse(artifacts[model].builder.kwargs["arch"])
            classes[model] = int(arch.kwargs.get("num_classes", len(spec.classes)))
            continue
        user = model if isinstance(model, UserModel) else UserModel(model)
        artifact, path = _file(user)
        if artifact.label in artifacts:
            raise ConfigError(must("the models' names", "different", artifact.label, "rename one of the files"))
        artifacts[artifact.label] = artifact
        classes |= {artifact.label: user.num_classes} if user.arch else {}
        paths.append(path)
    further = {name: _further(name, data, spec) for name in dict.fromkeys(files)}
    names = {data: spec.classes, **{name: other.classes for name, (other, _) in further.items()}}
    hashes = {name: version for name, (_, version) in further.items()}
    return Sources(data, label, splits, artifacts, classes, shape, hashes, names), tuple(paths)


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
    return other.spec, f"{catalog.DATA[Ref.parse(name).name].version}|{other.spec.sha256}"


def _require_shape(name: str, data: str, shape: tuple[int, int, int]) -> None:
    """Refuse a zoo net on images of other channels than those it was trained on.

    Raises:
        ConfigError: Names the net's data set.
    """
    own = ZOO[name]
    if own.spec.shape[0] != shape[0]:
        expected = f"of {own.spec.shape[0]} channel(s), as of {own.data}"
        raise ConfigError(must(f"the images for {name}", expected, shape[0], f"use --data {own.data}"))


def other_data(data: str, named: Iterable[str]) -> dict[str, str]:
    """Further data sets that are to hold none of the classes of ``data``: as they are read → content hash.

    Args:
        data: The data set whose images are in distribution.
        named: References such as ``folder:PATH``; size and channels are those of ``data`` unless said otherwise.

    Raises:
        ConfigError: Unknown names.
        DataError: Missing or damaged data, images of another shape, or a class that ``data`` has too.
    """
    own = read_split(data, "test").spec
    found = {}
    for text in named:
        read = read_as(text, own.shape)
        other = read_split(read, "test").spec
        common = sorted({c.casefold() for c in own.classes} & {c.casefold() for c in other.classes})
        if common:
            remedy = "images of a class that the model knows are not out of distribution; leave those folders out"
            raise DataError(must(f"the classes of {text}", f"none of those of {data}", common, remedy))
        if other.shape != own.shape:
            remedy = f"resize them, e.g. {Ref.parse(text).name}(size={own.shape[1]})"
            raise DataError(must(f"images of {text}", f"of shape {own.shape}", other.shape, remedy))
        found[read] = f"{catalog.DATA[Ref.parse(read).name].version}|{other.sha256}"
    return found


def _versions(data: str, test: DatasetSpec) -> dict[str, str]:
    """Split → version; that of another split names the test split too, whose images are left out of it."""
    reader = catalog.DATA[Ref.parse(data).name].version
    found: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        if split in test.splits:
            own = test.sha256 if split == "test" else f"{read_split(data, split).spec.sha256}|{test.sha256}"
            found[split] = f"{reader}|{own}"
    return found


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


def _file(user: UserModel) -> tuple[Artifact, tuple[str, str]]:
    path = Path(user.source.rpartition(":")[0] or user.source)
    if not path.is_file() and ":" not in user.source:
        remedy = f"{suggestion(user.source, ZOO)}; or name a file or package.module:factory"
        raise ConfigError(must("--model", "a model of the zoo or a file that exists", user.source, remedy))
    try:
        content = path.read_bytes() if path.is_file() else user.source.encode()
    except OSError as error:
        raise ModelError(must(f"the model file {path}", "readable", str(error), "check its permissions")) from error
    digest = hashlib.sha256(content + user.source.rpartition(":")[2].encode()).hexdigest()
    low, high = user.input_range
    ref = Ref.of(
        "file", sha256=digest, arch=user.arch, mean=user.mean, std=user.std, low=low, high=high, num_classes=user.num_classes
    )
    version = "|".join([catalog.BUILDERS["file"].version, *([made_of(user.arch)] if user.arch else [])])
    return Artifact("model", ref, version, label=Path(user.source).name), (digest, user.source)
