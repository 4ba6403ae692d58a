"""What label k means: the classes of a data set, those of a model, and the one agreement between them. Imports no torch.

A model's classes are given once per run, as the class list (``classes``) or the class map (``class_map``) of the data set.
From then on every label is an index of the model's outputs, so that nothing downstream has to translate.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.data.names import parse_data
from robench.errors import ConfigError, ModelError, must, suggestion
from robench.spec import DatasetSpec, Ref, canonical, sha256

MOST_CLASSES = 262_144
"""Classes at most: above the largest public set of labelled images (Google Landmarks v2: 203,094), far below full memory."""
AGREEMENT = ("classes", "class_map")
"""Arguments that every data set takes besides its own."""
NUMBERS = "numbers"
"""Class map for classes whose names are already the indices of the model's outputs."""
NO_OUTPUT = -1
"""Index of a class that has no images and that the class map does not name."""
LABELS_ONLY = "labels of the archive"
"""How the order of a data set begins whose classes have no names but their numbers."""
_LARGEST_FILE = 1 << 26
"""Bytes of a class file at most: 256 per class, of which an ImageNet list has about 30."""
_SHOWN = 10
"""Classes that a line names before it is cut."""

ClassList = str | Sequence[Any]
"""A file, or the names themselves; an entry with several names is a sequence of them."""
ClassMap = str | Mapping[str, int] | Sequence[tuple[str, int]]
"""A file, ``numbers``, or pairs of a class's name and an index."""


@dataclass(frozen=True)
class Agreement:
    """Where each class of the data stands among the outputs of the model."""

    index: tuple[int, ...]
    """Per class of the data, the index of the model's output, or ``NO_OUTPUT``."""
    classes: tuple[str, ...]
    """Names by index: the data's own where it has the class."""
    order: str
    """Where the indices come from, for people."""
    open_classes: bool
    """Whether the model may have more outputs than ``classes``."""


def natural(names: Sequence[str], order: str = "auto") -> tuple[tuple[str, ...], str]:
    """Names in the order of their indices, and what that order is called.

    Args:
        names: Different names.
        order: ``auto`` counts where all names are integers (0, 1, 2, ..., 10) and sorts by text otherwise, capitals first
            as torchvision's ``ImageFolder`` does; ``number`` and ``text`` choose.

    Raises:
        ConfigError: Another order, or ``number`` where a name is no integer.
    """
    if order not in ("auto", "number", "text"):
        raise ConfigError(must("order", "'auto', 'number' or 'text'", order, suggestion(order, ("auto", "number", "text"))))
    numbers = all(name.isascii() and name.isdigit() for name in names)
    if order == "number" and not numbers:
        other = next(name for name in names if not (name.isascii() and name.isdigit()))
        raise ConfigError(must("the names of classes with order='number'", "integers", other, "use order='text'"))
    if numbers and order != "text":
        return tuple(sorted(names, key=lambda name: (int(name), name))), "names counted as numbers"
    return tuple(sorted(names)), "names in alphabetical order"


def agree(
    names: Sequence[str],
    *,
    classes: ClassList | None = None,
    class_map: ClassMap | None = None,
    used: Sequence[int] = (),
) -> Agreement:
    """The index of each class of the data in the model's outputs.

    Args:
        names: Classes of the data, in its own order.
        classes: Names of the model's classes in the order of its outputs: a file with one per line, a JSON list, or a JSON
            dictionary (``{"0": ["n01440764", "tench"]}``, ``{"tench": 0}``, ``id2label``); or the names themselves.
        class_map: Index per class of the data: a file with JSON ``{"tench": 0}`` or lines ``tench,0``; the word ``numbers``,
            where the names are the indices; or pairs.
        used: Positions of the names that images have, where not all do; a class map may leave out the others.

    Raises:
        ConfigError: Both or none given, a file that cannot be read as one, a class of the data that is not found in it or
            found twice, or an index out of range.
    """
    if (classes is None) == (class_map is None):
        remedy = "give the model's class names with classes, or indices with class_map"
        got = "none" if classes is None else "both"
        raise ConfigError(must("the classes of a model", "given once", got, remedy))
    if class_map is not None:
        return _by_map(names, class_map, used or range(len(names)))
    return _by_list(names, classes or ())


def _by_map(names: Sequence[str], class_map: ClassMap, used: Sequence[int]) -> Agreement:
    given = _numbers(names) if class_map == NUMBERS else _read_map(class_map)
    told = f"class map {class_map}" if isinstance(class_map, str) and class_map != NUMBERS else "class map"
    _require_all([names[k] for k in used if _key(names[k]) not in given], given, told)
    index = tuple(given.get(_key(name), NO_OUTPUT) for name in names)
    at: dict[int, list[str]] = defaultdict(list)
    for name, i in zip(names, index, strict=True):
        if i != NO_OUTPUT:
            at[i].append(name)
    found = tuple(" or ".join(at[i]) if i in at else f"output {i}" for i in range(max(index) + 1))
    unused = sorted(set(given) - {_key(name) for name in names})
    more = f"; no images of {_few(unused)}" if unused else ""
    return Agreement(index, found, "names are indices" if class_map == NUMBERS else told + more, True)


def _by_list(names: Sequence[str], classes: ClassList) -> Agreement:
    told = f"class list {classes}" if isinstance(classes, str) else "class list"
    entries = _read_list(classes) if isinstance(classes, str) else _entries(list(classes), told)
    exact: dict[str, set[int]] = defaultdict(set)
    loose: dict[str, set[int]] = defaultdict(set)
    for i, alternatives in enumerate(entries):
        for name in alternatives:
            exact[_key(name)].add(i)
            loose[_loose(name)].add(i)
    found = [exact.get(_key(name)) or loose.get(_loose(name), set()) for name in names]
    _require_all([name for name, places in zip(names, found, strict=True) if not places], exact, told)
    for name, places in zip(names, found, strict=True):
        if len(places) > 1:
            got = f"at indices {', '.join(str(i) for i in sorted(places))}"
            raise ConfigError(must(f"the class {name!r} in the {told}", "there once", got, "use class_map with its index"))
    index = tuple(next(iter(places)) for places in found)
    twice = [i for i, count in Counter(index).items() if count > 1]
    if twice:
        same = [name for name, i in zip(names, index, strict=True) if i == twice[0]]
        raise ConfigError(must("the classes of the data", f"different in the {told}", same, "rename one, or use class_map"))
    own = dict(zip(index, names, strict=True))
    return Agreement(index, _distinct([own.get(i, alternatives[0]) for i, alternatives in enumerate(entries)]), told, False)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names with their index where one stands twice (ImageNet has two classes ``crane``)."""
    counts = Counter(names)
    return tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names))


def _require_all(missing: Sequence[str], known: Mapping[str, Any], told: str) -> None:
    if missing:
        remedy = suggestion(missing[0], known) if len(known) <= _SHOWN or _close(missing[0], known) else "correct the file"
        raise ConfigError(must(f"the classes of the data in the {told}", "all there", f"none for {_few(missing)}", remedy))


def _close(name: str, known: Mapping[str, Any]) -> bool:
    return suggestion(name, known).startswith("did you mean")


def _numbers(names: Sequence[str]) -> dict[str, int]:
    wrong = [name for name in names if not (name.isascii() and name.isdigit())]
    if wrong:
        remedy = "give a class list or a class map with the names"
        raise ConfigError(must("the names of classes with class_map 'numbers'", "integers", _few(wrong), remedy))
    return {name: _index(int(name[:20]), name) for name in names}


def _read_map(class_map: ClassMap) -> dict[str, int]:
    if isinstance(class_map, str):
        text = _text(class_map)
        value = _json(text, class_map) if text.lstrip().startswith(("{", "[")) else list(csv.reader(io.StringIO(text)))
    else:
        value = class_map
    pairs = list(value.items()) if isinstance(value, Mapping) else [tuple(row) for row in value if row]
    found: dict[str, int] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise ConfigError(must("a line of a class map", "NAME,INDEX", list(pair), "e.g. tench,0"))
        name = _key(str(pair[0]))
        i = _index(pair[1], str(pair[0]))
        if found.setdefault(name, i) != i:
            raise ConfigError(must(f"the class {name!r} of a class map", "there once", (found[name], i), "leave one out"))
    return found


def _index(value: Any, name: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not int(text[:20]) < MOST_CLASSES:
        what = f"the index of the class {name!r}"
        raise ConfigError(must(what, f"an integer in 0..{MOST_CLASSES - 1}", text[:40], "count the model's outputs from 0"))
    return int(text)


def _read_list(path: str) -> list[tuple[str, ...]]:
    text = _text(path)
    if not text.lstrip().startswith(("{", "[")):
        return _entries([line.strip() for line in text.splitlines() if line.strip()], f"class list {path}")
    value = _json(text, path)
    if isinstance(value, Mapping):
        value = value.get("id2label", value.get("label2id", value))
    if isinstance(value, Mapping):
        value = _in_order(value, path)
    return _entries(value, f"class list {path}")


def _in_order(value: Mapping[str, Any], path: str) -> list[Any]:
    """The names of ``{"0": NAME}`` or of ``{NAME: 0}``, by index."""
    numbered = all(str(key).isascii() and str(key).isdigit() for key in value)
    pairs = [(_index(k, path), v) for k, v in value.items()] if numbered else [(_index(v, k), k) for k, v in value.items()]
    by_index = dict(pairs)
    if sorted(by_index) != list(range(len(value))):
        got = f"{len(value)} entries, {len(by_index)} different indices up to {max(by_index, default=0)}"
        remedy = "use class_map for some of them only"
        raise ConfigError(must(f"the indices of {path}", f"0..{len(value) - 1}, each once", got, remedy))
    return [by_index[i] for i in range(len(value))]


def _entries(value: Any, told: str) -> list[tuple[str, ...]]:
    if not isinstance(value, list) or not value:
        got = type(value).__name__
        raise ConfigError(must(f"the {told}", "names in the order of the model's outputs", got, "e.g. one name per line"))
    if len(value) > MOST_CLASSES:
        raise ConfigError(must(f"the {told}", f"of at most {MOST_CLASSES} classes", len(value), "name another file"))
    found = [tuple(entry) if isinstance(entry, list | tuple) else (entry,) for entry in value]
    for i, names in enumerate(found):
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ConfigError(must(f"entry {i} of the {told}", "a name, or several", names, "correct the file"))
    return found


def _text(path: str) -> str:
    place = Path(path).expanduser()
    remedy = "name a UTF-8 file with one class per line, or JSON"
    try:
        size = place.stat().st_size
        if not place.is_file() or size > _LARGEST_FILE:
            raise ConfigError(must("a class file", f"a file of at most {_LARGEST_FILE >> 20} MiB", path, remedy))
        return place.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(must(f"the class file {path}", "readable", str(error), remedy)) from error


def _json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(must(f"the class file {path}", "JSON", str(error)[:200], "correct the file")) from error


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _loose(name: str) -> str:
    """A name without case, and with blanks for underscores and hyphens: how folders and lists differ."""
    return " ".join(_key(name).casefold().replace("_", " ").replace("-", " ").split())


def in_classes(data: str, classes: ClassList | None = None, class_map: ClassMap | None = None) -> str:
    """The reference to a data set with a class list or a class map, unless both are empty."""
    given: dict[str, Any] = {}
    if classes:
        given["classes"] = classes if isinstance(classes, str) else tuple(classes)
    if class_map:
        given["class_map"] = tuple(sorted(class_map.items())) if isinstance(class_map, Mapping) else class_map
    return str(parse_data(data).with_defaults(given)) if given else data


def agreed(spec: DatasetSpec, agreement: Agreement) -> DatasetSpec:
    """The facts of a data set whose labels are indices of the model's outputs; the agreement is part of its hash."""
    identity = sha256(canonical([spec.sha256, list(agreement.index), list(agreement.classes), agreement.open_classes]))
    changes: dict[str, Any] = {"order": agreement.order, "open_classes": agreement.open_classes}
    return replace(
        spec, classes=agreement.classes, used=tuple(sorted(set(agreement.index) - {NO_OUTPUT})), sha256=identity, **changes
    )


def fits(spec: DatasetSpec, logits: int) -> bool:
    """Whether a model with so many outputs has the classes of the data; a class map names only some of a model's."""
    return logits == len(spec.classes) or (spec.open_classes and logits > len(spec.classes))


def require_logits(spec: DatasetSpec, logits: int, *, model: str, source: str) -> None:
    """Refuse a model whose outputs are not the classes of the data.

    Args:
        spec: Facts of the data set, after the agreement.
        logits: Number of the model's outputs.
        model: Its name.
        source: The data set as the user wrote it.

    Raises:
        ModelError: Another number of outputs; with a class map that names some of them, fewer than it needs.
    """
    if fits(spec, logits):
        return
    count = len(spec.classes)
    expected = f"{count} per image, one for each class of {spec.name}" + (", or more" if spec.open_classes else "")
    raise ModelError(must(f"the outputs of {model}", expected, logits, _remedy(spec, logits, source)))


def _remedy(spec: DatasetSpec, logits: int, source: str) -> str:
    if spec.open_classes or spec.order.startswith("class list"):
        return "give the classes of this model, or choose a model that was trained on these"
    if spec.order.startswith(LABELS_ONLY):
        return _remedy_for_labels(len(spec.classes), logits, parse_data(source))
    if spec.order:
        return "say which output is which class: --classes FILE (the model's class names in order) or --class-map FILE"
    return "choose a model that was trained on this data's classes"


def _remedy_for_labels(count: int, logits: int, data: Ref) -> str:
    """What may be said of labels without names; each way keeps the arguments that the data set was given with.

    Args:
        count: Classes that the labels were taken for.
        logits: Number of the model's outputs.
        data: The data set as the user wrote it.
    """
    shifted, told = data.kwargs.get("first_label", 0), "num_classes" in data.kwargs
    ways = []
    if logits > count or told:
        ways.append(f"if labels count the model's outputs from {shifted}, say {data.replaced(num_classes=logits)}")
    if not shifted and (logits >= count - 1 or told):
        more = {"num_classes": logits} if logits > count - 1 or told else {}
        ways.append(f"if labels count the model's outputs from 1, say {data.replaced(first_label=1, **more)}")
    start = f"{'else ' if ways else ''}{'leave first_label out and ' if shifted else ''}"
    return "; ".join([*ways, f"{start}give --class-map FILE with a line LABEL,OUTPUT for each label, such as 3,0"])


def mapping_line(spec: DatasetSpec) -> str:
    """Which output is which class, as one line; empty for data sets whose classes are theirs by definition."""
    if not spec.order:
        return ""
    if not spec.used and spec.classes == tuple(str(i) for i in range(len(spec.classes))):
        return f"classes: labels 0..{len(spec.classes) - 1} are the indices of the model's outputs ({spec.order})"
    shown = [(i, spec.classes[i]) for i in (spec.used or range(len(spec.classes)))]
    pairs = [f"{i} = {printable(name)}" for i, name in shown[:_SHOWN]]
    if len(shown) > _SHOWN:
        i, name = shown[-1]
        pairs += ["..."] * (len(shown) > _SHOWN + 1) + [f"{i} = {printable(name)}"]
    more = f"; {len(shown)} of the model's {len(spec.classes)}" if len(shown) < len(spec.classes) else ""
    more = f"; {len(shown)} classes" if spec.open_classes else more
    return f"classes: {', '.join(pairs)} ({spec.order}{more})"


def _few(names: Sequence[str], most: int = 3) -> str:
    told = ", ".join(printable(name) for name in names[:most])
    return told + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(name: str, most: int = 60) -> str:
    """A name that can be shown on one line: escaped where it holds what cannot be printed, and cut where it is long."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= most else f"{text[: most - 3]}..."
