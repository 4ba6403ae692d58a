"""Tables of names: a string per entry, read without importing what it points to.

An entry is ``"module:function"``. The function's keyword-only parameters and the keyword arguments of a
``@facts(...)`` decorator are read from the source by the AST, so that names, defaults, versions and facts are
known to the plan and to ``robench list`` without importing torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from robench.errors import ConfigError, must, suggestion
from robench.spec import Ref
from robench.user_code import content_of_module, files_of_module

F = TypeVar("F", bound=Callable[..., Any])


def facts(*, version: int, **declared: Any) -> Callable[[F], F]:
    """Declare a plug-in's version and facts; literals only, since the table reads them from the source."""

    def mark(function: F) -> F:
        function.facts = {"version": version, **declared}  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Entry:
    """One name of a table."""

    name: str
    target: str
    """``module:function``."""
    origin: str = "robench"
    """Distribution the entry comes from."""

    @cached_property
    def _node(self) -> ast.FunctionDef:
        module, _, function = self.target.partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ConfigError(must(f"the module of {self.name!r}", "importable", module, "install what provides it"))
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return node
        raise ConfigError(must(f"{self.name!r}", "a function of its module", self.target, "correct the table"))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Keyword arguments of ``@facts`` plus ``summary``, the docstring's first line."""
        found: dict[str, Any] = {"version": 1}
        for call in self._node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "facts":
                found.update({str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
        found["summary"] = (ast.get_docstring(self._node) or "").partition("\n")[0]
        return found

    @cached_property
    def description(self) -> str:
        """The whole docstring, dedented."""
        return ast.get_docstring(self._node) or ""

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Keyword-only parameters that have a literal default: what a reference may set."""
        args = self._node.args
        pairs = zip(args.kwonlyargs, args.kw_defaults, strict=True)
        return {a.arg: ast.literal_eval(d) for a, d in pairs if d is not None}

    @property
    def version(self) -> str:
        """The declared version; a third party's carries its distribution's version and the hash of its files too."""
        own = str(self.facts["version"])
        if self.origin != "robench":
            return f"{self.origin}:{own}:{content_of_module(self._module)[:16]}"
        library = self.facts.get("distribution")
        return f"{own}:{_installed(library)}" if library else own

    @property
    def files(self) -> tuple[Path, ...]:
        """A third party's files, which its content is made of; none of ours."""
        return files_of_module(self._module) if self.origin != "robench" else ()

    @property
    def _module(self) -> str:
        return self.target.partition(":")[0]

    def load(self) -> Callable[..., Any]:
        """Import the module and return the function.

        Raises:
            ConfigError: The module needs something that is not installed.
        """
        module, _, function = self.target.partition(":")
        try:
            loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except (ImportError, RuntimeError) as error:
            raise ConfigError(must(f"{self.name!r}", "importable", str(error), "install its optional dependency")) from error
        return loaded


def _installed(distribution: str) -> str:
    """Name and version of the library that a wrapper hands its work to, as it is installed."""
    try:
        return f"{distribution}=={importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} is not installed"


@dataclass(frozen=True)
class Table(Mapping[str, Entry]):
    """Names of one kind: ours and, through the entry-point group ``robench.<kind>``, third parties'."""

    kind: str
    own: Mapping[str, str]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Prefix → target, for families such as ``art:NAME``; the part after the colon is passed as ``name``."""

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        found = {}
        for point in importlib.metadata.entry_points(group=f"robench.{self.kind}"):
            dist = point.dist
            found[point.name] = Entry(point.name, point.value, f"{dist.name}=={dist.version}" if dist else "unknown")
        return {**found, **{name: Entry(name, target) for name, target in self.own.items()}}

    def __getitem__(self, name: str) -> Entry:
        prefix = name.partition(":")[0]
        if prefix in self.prefixes and ":" in name:
            return Entry(name, self.prefixes[prefix])
        if name not in self._entries:
            raise ConfigError(must(f"a name of {self.kind}", "a known one", name, suggestion(name, self._entries)))
        return self._entries[name]

    def described(self, name: str) -> Entry:
        """The entry of a name, or of a family by its prefix alone (``folder`` of ``folder:PATH``).

        Raises:
            ConfigError: Unknown name.
        """
        return Entry(name, self.prefixes[name]) if name in self.prefixes and name not in self._entries else self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or (":" in str(name) and str(name).partition(":")[0] in self.prefixes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, ref: Ref | str) -> Ref:
        """Check a reference's arguments against the entry and fill in its defaults.

        Raises:
            ConfigError: Unknown name, or an argument the entry does not take.
        """
        ref = Ref.parse(ref) if isinstance(ref, str) else ref
        entry = self[ref.name]
        if entry.facts.get("open_arguments"):
            return ref
        for key in ref.kwargs:
            if key not in entry.parameters:
                raise ConfigError(must(f"an argument of {ref.name}", "a known one", key, suggestion(key, entry.parameters)))
        return ref.with_defaults(entry.parameters)
