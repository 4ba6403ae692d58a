"""What a model that is made by code is: built in a process of its own before planning, and compared when it is loaded."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.errors import ModelError, must
from robench.models.load import construct_from_code, folder_of
from robench.models.weights import bytes_of, weights_of
from robench.spec import canonical, sha256
from robench.user_code import is_users, sha256_of, with_imports

_DEPTH = 100
"""How deep lists, dictionaries and objects are followed: far beyond what people write, and within Python's own limit of 1000
calls. What lies deeper (a long linked list) shows only in the model's answers, which are compared with its kept results."""
_NAMED = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, np.ufunc)
"""What is known by its name."""
_LONG = 200
"""Characters of a text that is kept as its hash."""
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
    return _Look().modules(net)


@dataclass
class _Look:
    """One walk through what a model holds, at any depth; what holds itself again is a step back."""

    open: list[int] = field(default_factory=list)
    """Ids of what is being looked into."""
    done: dict[int, tuple[Any, str | None]] = field(default_factory=dict)
    """Id -> what was looked into (kept, so that its id stays its own) and its text."""

    def modules(self, net: nn.Module) -> str:
        """SHA-256 over all modules of a model."""
        self.open.append(id(net))
        digest = hashlib.sha256()
        for name, module in net.named_modules():
            kept = {k: self.text(v) for k, v in vars(module).items() if k not in _OWN}
            text = {k: v for k, v in sorted(kept.items()) if v is not None}
            digest.update(f"{name}|{type(module).__qualname__}|{text}|{_graph(module)}\n".encode())
        self.open.pop()
        return digest.hexdigest()

    def text(self, value: Any) -> str | None:
        """Text of a plain value, tensor, array, module, function, or list, dictionary or object of them.

        None of anything else.
        """
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | np.dtype):
            return repr(value)
        if isinstance(value, Tensor):
            return bytes_of(value)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return f"{value.dtype}|{value.shape}|{sha256(value.tobytes())}"
        if id(value) in self.open:
            return f"^{self.open.index(id(value))}"
        if id(value) in self.done:
            return self.done[id(value)][1]
        if len(self.open) >= _DEPTH:
            return None
        self.open.append(id(value))
        text = self._inside(value)
        self.open.pop()
        text = sha256(text) if text and len(text) > _LONG else text
        self.done[id(value)] = (value, text)
        return text

    def _inside(self, value: Any) -> str | None:
        if isinstance(value, np.ndarray):
            return f"{value.shape}|{self._all(value.flat)}"
        if isinstance(value, list | tuple):
            return self._all(value)
        if isinstance(value, set | frozenset):  # whatever the order in which its members are looked into
            return str(sorted(str(_Look([*self.open], dict(self.done)).text(v)) for v in value))
        if isinstance(value, Mapping):
            return str({str(k): self.text(v) for k, v in value.items()})
        if isinstance(value, nn.Module):
            return f"{weights_of(value)}|{self.modules(value)}"
        if isinstance(value, functools.partial):
            return self._all((value.func, value.args, value.keywords))
        if isinstance(value, _NAMED):
            return self._function(value)
        if isinstance(value, types.ModuleType | logging.Logger) or not hasattr(value, "__dict__"):
            return None
        return f"{type(value).__qualname__}|{({k: self.text(v) for k, v in sorted(vars(value).items())})}"

    def _all(self, values: Iterable[Any]) -> str:
        return str([self.text(value) for value in values])

    def _function(self, value: Any) -> str:
        """A function's or class's name, and what comes with a method or a closure; its code counts as a file."""
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '') or value.__name__}"
        parts: tuple[Any, ...] = ()
        if isinstance(value, types.MethodType):
            parts = (value.__self__,)
        elif isinstance(value, types.FunctionType):
            cells = (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
            parts = (*cells, value.__defaults__, value.__kwdefaults__)
        return f"{name}|{self._all(parts)}"


def _graph(module: nn.Module) -> str:
    """The code of a scripted module, which has no source file."""
    return sha256(str(module.graph)) if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "graph") else ""


def _packages(net: nn.Module) -> tuple[str, ...]:
    tops = {type(module).__module__.partition(".")[0] for module in net.modules()} - {"torch", "robench", "builtins"}
    known = metadata.packages_distributions() if tops else {}
    names = {name for top in tops for name in known.get(top, ())}
    return tuple(sorted(f"{name}=={metadata.version(name)}" for name in names))
