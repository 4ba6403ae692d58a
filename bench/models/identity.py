"""What a model that is made by code is: built in a process of its own before planning, and compared when it is loaded."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must
from robench.models.load import construct_from_code, folder_of
from robench.models.weights import bytes_of, weights_of
from robench.spec import canonical, sha256
from robench.user_code import is_users, sha256_of, with_imports

_DEPTH = 4
"""How deep lists and dictionaries in a module's attributes are followed."""
_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


@dataclass(frozen=True)
class Built:
    """The content of a model that code makes."""

    source: str
    weights: str
    """SHA-256 over parameters and buffers: names, types, shapes and bytes."""
    attributes: str
    """SHA-256 over the classes of its modules and their plain attributes; empty where two calls do not agree on them."""
    files: tuple[tuple[str, str, str], ...]
    """The user's own code: (name, path, SHA-256)."""
    packages: tuple[str, ...]
    """Installed packages that classes of its modules come from, ``name==version``; torch and robench left out."""
    drawn: bool = False
    """Whether its weights depend on the global random state, so that robench has to seed it."""

    @property
    def code(self) -> str:
        """SHA-256 over the user's code, by names and contents, and over the packages."""
        return sha256(canonical([[(name, content) for name, _, content in self.files], list(self.packages)]))

    @property
    def sha256(self) -> str:
        """SHA-256 over the factory's name and everything above; paths do not count."""
        name = self.source.rpartition(":")[2]
        return sha256(canonical([name, self.weights, self.attributes, self.code]))

    def facts(self) -> dict[str, Any]:
        """What is kept in ``run.json``, so that the next run can say what is new."""
        return {
            "weights": self.weights,
            "attributes": self.attributes,
            "code": {name: content for name, _, content in self.files},
            "packages": list(self.packages),
            "drawn": self.drawn,
        }


def describe(sources: tuple[str, ...]) -> tuple[Built, ...]:
    """Build models that are named ``path.py:factory`` or ``package.module:factory``; for a process of its own.

    Every factory is called twice, with two states of the global generators. Where that gives two different models, the
    state decides, and robench builds the model in the same state everywhere.

    Raises:
        ModelError: Code that cannot be run, or a factory that gives another model at every call whatever the state.
    """
    return tuple(_described(source) for source in sources)


def _described(source: str) -> Built:
    before = set(sys.modules)
    first = construct_from_code(source)
    files = _files(source, set(sys.modules) - before)
    weights, attributes, packages = weights_of(first), attributes_of(first), _packages(first)
    del first
    second = construct_from_code(source, state=1)
    drawn = weights_of(second) != weights
    unlike = attributes_of(second) != attributes
    del second
    if drawn or unlike:
        third = construct_from_code(source)
        if weights_of(third) != weights:
            remedy = "load trained weights in the factory, or seed its generator"
            got = "other weights at every call"
            raise ModelError(must(f"what {source} returns", "the same model at every call", got, remedy))
        if attributes_of(third) != attributes:  # a time, a counter: the trial of a kept model stands in for them
            attributes, unlike = "", False
    return Built(source, weights, attributes, files, packages, drawn or unlike)


def _files(source: str, loaded: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """The user's code behind a factory: its own file, what was loaded with it, and what any of them imports."""
    known = [getattr(sys.modules.get(name), "__file__", None) for name in loaded]
    folder = folder_of(source)
    own = [source.rpartition(":")[0]] if folder else []
    start = [path for path in (*known, *own) if path and is_users(path)]
    found = with_imports(start, places=[folder] if folder else [])
    return tuple((_name(path), str(path), sha256_of(path)) for path in found)


def _name(path: Path) -> str:
    """A file's name with the packages it is in."""
    parts, folder = [path.name], path.parent
    while (folder / "__init__.py").is_file():
        parts.append(folder.name)
        folder = folder.parent
    return "/".join(reversed(parts))


def attributes_of(net: nn.Module) -> str:
    """SHA-256 over the classes of all modules and what plain values they keep besides parameters and buffers."""
    digest = hashlib.sha256()
    for name, module in net.named_modules():
        kept = {k: _plain(v) for k, v in vars(module).items() if k not in _OWN}
        text = {k: v for k, v in sorted(kept.items()) if v is not None}
        digest.update(f"{name}|{type(module).__qualname__}|{text}|{_graph(module)}\n".encode())
    return digest.hexdigest()


def _plain(value: Any, depth: int = 0) -> str | None:
    """Text of a number, string, tensor, array, module, function's closure, or list, dictionary or object of them.

    None of anything else.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        return bytes_of(value)
    if type(value).__module__ == "numpy":
        return f"{getattr(value, 'dtype', '')}|{getattr(value, 'shape', '')}|{sha256(bytes(value.tobytes()))}"
    if depth < _DEPTH and isinstance(value, list | tuple):
        return str([_plain(v, depth + 1) for v in value])
    if depth < _DEPTH and isinstance(value, set | frozenset):
        return str(sorted(str(_plain(v, depth + 1)) for v in value))
    if depth < _DEPTH and isinstance(value, Mapping):
        return str({str(k): _plain(v, depth + 1) for k, v in value.items()})
    return _held(value, depth + 1) if depth < _DEPTH else None


def _held(value: Any, depth: int) -> str | None:
    """Text of what a module, a function or another object holds; None where that cannot be looked into."""
    if isinstance(value, nn.Module):
        return f"{weights_of(value)}|{attributes_of(value)}"
    if isinstance(value, functools.partial):
        return str([_plain(part, depth) for part in (value.func, value.args, value.keywords)])
    if isinstance(value, types.MethodType):
        return _plain(value.__self__, depth)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        return str([_plain(part, depth) for part in (*cells, value.__defaults__, value.__kwdefaults__)])
    if isinstance(value, type | types.ModuleType) or not hasattr(value, "__dict__"):
        return None
    return f"{type(value).__qualname__}|{({k: _plain(v, depth) for k, v in sorted(vars(value).items())})}"


def _graph(module: nn.Module) -> str:
    """The code of a scripted module, which has no source file."""
    return sha256(str(module.graph)) if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "graph") else ""


def _packages(net: nn.Module) -> tuple[str, ...]:
    tops = {type(module).__module__.partition(".")[0] for module in net.modules()} - {"torch", "robench", "builtins"}
    known = metadata.packages_distributions() if tops else {}
    names = {name for top in tops for name in known.get(top, ())}
    return tuple(sorted(f"{name}=={metadata.version(name)}" for name in names))
