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

from robench import bounds
from robench.errors import ConfigError, described, must, one_line, suggestion
from robench.parts import parts
from robench.spec import Ref
from robench.user_code import content_of_module, files_of_module

_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip
"""What importing another distribution's module may raise in practice."""
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
        for node in _source(module, self.name).body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return node
        raise ConfigError(must(f"{self.name!r}", "a function of its module", self.target, "correct the table"))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Keyword arguments of ``@facts`` plus ``summary``, the docstring's first line."""
        found: dict[str, Any] = {"version": 1}
        for call in self._node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "facts":
                found.update({str(k.arg): self._literal(k.value) for k in call.keywords})
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
        return {a.arg: self._literal(d) for a, d in pairs if d is not None}

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            got = ast.unparse(node)
            raise ConfigError(must(f"facts and defaults of {self.name!r}", "literals", got, "write them out")) from error

    @cached_property
    def broken(self) -> str:
        """Why the entry cannot be used (of another distribution's plug-in), one line; empty where it can be read."""
        try:
            _ = self.facts, self.parameters
        except ConfigError as error:
            return one_line(str(error), 200)
        return ""

    @property
    def version(self) -> str:
        """The declared version; a third party's carries its distribution's version and the hash of its files too.

        A protocol's carries the versions of the attacks and modules that it is made of.
        """
        own = str(self.facts["version"])
        if self.origin != "robench":
            return f"{self.origin}:{own}:{content_of_module(self._module)[:16]}"
        library = self.facts.get("distribution")
        made_of = parts(self.target) if self.facts.get("protocol") else ()
        return f"{own}:{_installed(library)}" if library else "|".join([own, *made_of])

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
        except _BROKEN as error:
            got, remedy = one_line(described(error), 200), "install its optional dependency"
            raise ConfigError(must(f"{self.name!r}", "importable", got, remedy)) from error
        return loaded


def _installed(distribution: str) -> str:
    """Name and version of the library that a wrapper hands its work to, as it is installed."""
    try:
        return f"{distribution}=={importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} is not installed"


def _source(module: str, name: str) -> ast.Module:
    """The syntax tree of a module; packages above it are imported, as Python does to find it.

    Raises:
        ConfigError: It is not there, its package cannot be imported, or it is no Python.
    """
    try:
        spec = importlib.util.find_spec(module)
    except _BROKEN as error:
        got = one_line(described(error), 200)
        raise ConfigError(must(f"the package of {name!r}", "importable", got, "correct it, or install another")) from error
    if spec is None or spec.origin is None:
        raise ConfigError(must(f"the module of {name!r}", "importable", module, "install what provides it"))
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        got, remedy = one_line(described(error), 200), "correct it, or install another"
        raise ConfigError(must(f"the module of {name!r}", "readable as Python", got, remedy)) from error


def _require_member(name: str, package: str) -> None:
    """Refuse ``art:NAME`` when the package imports no such name; the package is read, not imported.

    Raises:
        ConfigError: No such name, with the closest one.
    """
    top, *parts = package.split(".")
    spec = importlib.util.find_spec(top)
    places = spec.submodule_search_locations if spec else None
    files = [file for place in places or () if (file := Path(place).joinpath(*parts, "__init__.py")).is_file()]
    names = {a.asname or a.name for file in files for node in _imports(file) for a in node.names}
    member = name.partition(":")[2]
    if names and member not in names:
        known = {n for n in names if n[:1].isupper()}
        raise ConfigError(must(f"a name of {package}", "a known one", member, suggestion(member, known)))


def _imports(file: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ImportFrom)]


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
            ConfigError: Unknown name, an argument that the entry does not take, or a value of another type or out of range.
        """
        ref = Ref.parse(ref) if isinstance(ref, str) else ref
        entry = self[ref.name]
        if entry.facts.get("family"):
            _require_member(ref.name, entry.facts["family"])
        if entry.facts.get("open_arguments"):
            return ref
        for key, value in ref.kwargs.items():
            if key not in entry.parameters:
                raise ConfigError(must(f"an argument of {ref.name}", "a known one", key, suggestion(key, entry.parameters)))
            expected = bounds.expected(key, value, default=entry.parameters[key], own=entry.facts.get("ranges", {}))
            if expected:
                remedy = f"the default is {entry.parameters[key]!r}"
                raise ConfigError(must(f"{key} of {ref.name}", expected, value, remedy))
        return ref.with_defaults(entry.parameters)
