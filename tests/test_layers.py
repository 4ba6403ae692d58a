"""The layer table of docs/architecture.md, held by the syntax trees of the sources."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"robench.attacks": "attacks", "robench.defenses": "defenses", "robench.reports": "reports", "robench": "bench"}
TORCHLESS = ("robench.plan", "robench.store", "robench.executors", "robench.children", "robench.metrics", "robench.reports")
LAYERS = [
    ("errors", "escape", "progress", "screen", "spec", "bounds", "parts", "registry", "lineage", "user_code"),
    (
        *("ops", "devices", "task", "victim", "judge", "files", "inference", "thresholds", "masking", "probing", "bpda"),
        *("children", "launcher", "gate", "admission", "resident", "scripted", "tables"),
    ),
    ("attacks", "data", "models", "compress", "corrupt", "explainers", "metrics", "ood", "efficiency"),
    ("defenses",),
    ("zoo",),
    ("catalog",),
    (
        "scenarios",
        "builders",
        "plan",
        "store",
        "evidence",
        "executors",
        "suite",
        "sources",
        "workshop",
        "estimate",
        "doctor",
        "changes",
        "judged",
    ),
    ("runner", "missing", "tryout", "api", "loading", "evaluation", "binarization", "recheck", "verification"),
    ("reports",),
    ("cli", "benchmark", "corruptbench", "stepcost"),
]
LAYER = {place: level for level, places in enumerate(LAYERS) for place in places}


def modules() -> dict[str, Path]:
    """Module name → file, over the whole package."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def place(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST, *, module: str = "robench.x") -> list[str]:
    """Modules that are imported anywhere in a tree."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            deeper = [f"{base}.{a.name}" for a in node.names] if base == "robench" else [base]
            found += ["(relative)"] if node.level else deeper
    return found


def faults(module: str, source: str) -> list[str]:
    """What a module's imports do against the table."""
    own, out = place(module), []
    for name in imports(ast.parse(source)):
        root = name.partition(".")[0]
        if name == "(relative)" or root in ("attacks", "defenses", "reports", "bench"):
            out.append(f"{module} imports {name}: write robench...")
        elif root == "robench" and place(name) in LAYER and own in LAYER:
            sideways = LAYER[own] in (2, 3) and LAYER[place(name)] == LAYER[own]
            if place(name) != own and (LAYER[place(name)] > LAYER[own] or sideways):
                out.append(f"{module} (layer {LAYER[own]}) imports {name} (layer {LAYER[place(name)]})")
        elif LAYER.get(own) == 0 and root != "robench" and root not in sys.stdlib_module_names:
            out.append(f"{module} is layer 0 and imports {name}")
        if module.startswith(TORCHLESS) and root in ("torch", "torchvision", "art", "captum"):
            out.append(f"{module} may not import {name}")
    return out


def test_every_module_has_a_layer():
    assert len(MODULES) > 20
    assert {place(m) for m in MODULES} - {""} <= set(LAYER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("robench.ops.norms", "from robench.attacks import TABLE"),
        ("robench.data.x", "def f():\n    from robench import catalog"),
        ("robench.attacks.x", "from robench.data import TABLE"),
        ("robench.attacks.x", "import attacks"),
        ("robench.attacks.x", "from bench.spec import Ref"),
        ("robench.attacks.x", "from . import y"),
        ("robench.spec", "import numpy"),
        ("robench.metrics.x", "import torch"),
        ("robench.reports.x", "from torch import nn"),
    ],
)
def test_a_planted_offender_is_caught(module, source):
    assert faults(module, source)


@pytest.mark.parametrize("module", TORCHLESS)
def test_what_promises_no_torch_loads_none(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests").returncode == 0


def test_public_names_are_still_callable_after_every_import():
    for module in MODULES:
        importlib.import_module(module)
    for module in MODULES:
        loaded = sys.modules[module]
        for name in getattr(loaded, "__all__", ()):
            assert name.isupper() or callable(getattr(loaded, name)), f"{module}.{name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_bears_the_name_of_a_function_of_its_package(module):
    package, _, own = module.rpartition(".")
    assert own not in getattr(importlib.import_module(package), "__all__", ()) if package else True
