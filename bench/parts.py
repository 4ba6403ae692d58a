"""What a protocol is made of, read from the source: versions of the attacks and modules that its function reaches.

A change of any of them is a change of every protocol that uses it, whether or not somebody thinks of that protocol.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ATTACKS = "robench.attacks."
"""Modules here are followed by the names they use; others only where they have a ``VERSION``."""


@dataclass(frozen=True)
class Module:
    """One module's source."""

    version: int | None
    """Its constant ``VERSION``, which counts changes that move numbers."""
    defined: dict[str, ast.stmt]
    """Functions, classes and constants by name."""
    imported: dict[str, tuple[str, str]]
    """Name here -> module and name there."""


@lru_cache(maxsize=16)
def parts(target: str) -> tuple[str, ...]:
    """``name version`` of every attack and versioned module that a function of ours reaches, sorted.

    Args:
        target: ``module:function``.
    """
    start = tuple(target.split(":", 1))
    found, seen, todo = set(), set(), [start]
    while todo:
        place = todo.pop()
        module, name = place
        if place in seen or not module.startswith("robench."):
            continue
        seen.add(place)
        read = module_of(module)
        if read.version is None and not module.startswith(ATTACKS):
            continue
        if read.version is not None:
            found.add(f"{module.rpartition('.')[2].lstrip('_')} {read.version}")
        if name not in read.defined:
            continue
        node = read.defined[name]
        own = _declared(node)
        if own is not None and place != start:
            found.add(f"{name} {own}")
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        todo += [read.imported.get(n, (module, n)) for n in used if n in read.imported or n in read.defined]
    return tuple(sorted(found))


@lru_cache(maxsize=256)
def module_of(name: str) -> Module:
    """A module of ours, read and not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return Module(None, {}, {})
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            imported |= {a.asname or a.name: (str(node.module), a.name) for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {n.id: node for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return Module(_constant(defined.get("VERSION")), defined, imported)


def _constant(node: ast.stmt | None) -> int | None:
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, int) else None


def _declared(node: ast.stmt) -> int | None:
    """The version of ``@facts(version=...)``."""
    for call in getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "facts":
            return next((k.value.value for k in call.keywords if k.arg == "version"), None)  # type: ignore[attr-defined]
    return None
