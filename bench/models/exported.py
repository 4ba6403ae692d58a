"""Models saved by ``torch.export.save``: programs without Python code, and without train and eval modes."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must
from robench.models.weights import DAMAGED

_SCALAR = "add|sub|mul|floordiv|getitem|ge|le|gt|lt|eq|ne"
_OPERATORS = re.compile(rf"^(torch\.ops\.(aten|prims|higher_order)\.[\w.]+|_operator\.({_SCALAR}))$")
_SYMBOL = re.compile(r"^[su]\d+$")
_FUNCTIONS = frozenset(
    {
        "Add", "CeilDiv", "CleanDiv", "Eq", "Equality", "Float", "FloorDiv", "Ge", "GreaterThan", "Gt", "Integer", "Le",
        "LessThan", "Lt", "Max", "Min", "Mod", "Mul", "Ne", "Pow", "PythonMod", "Rational", "StrictGreaterThan",
        "StrictLessThan", "Unequality",
    }
)  # fmt: skip


class Exported(nn.Module):
    """An exported program as a module; ``train`` and ``eval`` change nothing, since the mode was fixed by the export."""

    def __init__(self, program: nn.Module, shape: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.program, self.shape = program, shape

    def train(self, mode: bool = True) -> Exported:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.program(x)
        return logits


def load_exported(path: Path, *, trust: bool = False) -> Exported:
    """The program of a ``.pt2`` file as a module on the CPU; ``shape`` is that of one image of its example, or None.

    torch's reader can execute code that such a file carries (pickles, compiled libraries, names of Python functions,
    symbolic expressions); a file that has any of these is read with ``trust`` only.

    Raises:
        ModelError: The file is damaged, was exported in train mode, or needs ``trust``.
    """
    if not trust:
        _require_harmless(path)
    try:
        program = torch.export.load(path)
        # Guards are Python text in the file that torch would execute; the trial pass of load_model takes their place.
        module: nn.Module = program.module(check_guards=False)
    except DAMAGED as error:
        remedy = "export it again with this version of torch (torch.export.save)"
        raise ModelError(must(f"{path}", "a whole exported program", str(error)[:160], remedy)) from error
    _require_eval(program.graph, path)
    return Exported(module, _example_shape(program.example_inputs))


def _example_shape(example: Any) -> tuple[int, int, int] | None:
    args: tuple[Any, ...] = example[0] if example else ()
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4:
        _, channels, height, width = args[0].shape
        return (channels, height, width)
    return None


def _require_eval(graph: Any, path: Path) -> None:
    """Batch norm or dropout that were exported in train mode would make the output random or move buffers."""
    for node in graph.nodes:
        name = str(node.target)
        training = {"aten.batch_norm": 5, "aten.dropout": 2}.get(name.rpartition(".")[0])
        if training is not None and len(node.args) > training and node.args[training] is True:
            remedy = "call model.eval() and export it again"
            raise ModelError(must(f"{path}", "exported in eval mode", f"{name} in train mode", remedy))


def _require_harmless(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            reason = next(_dangers(archive), None)
    except (zipfile.BadZipFile, *DAMAGED) as error:
        remedy = "copy it again, or export it again (torch.export.save)"
        raise ModelError(must(f"{path}", "a whole exported program", str(error)[:160], remedy)) from error
    if reason:
        raise ModelError(must(f"{path}", "free of code", reason, "add --trust if you know where the file comes from"))


def _dangers(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len(set(names)) != len(names):
        yield "two entries of one name"
    for name in names:
        inner = name.partition("/")[2]
        if inner.startswith("data/aotinductor/") or name.endswith((".so", ".dll", ".dylib")):
            yield f"compiled code ({inner})"
        elif name.endswith(".json"):
            yield from _json_dangers(json.loads(archive.read(name)), inner)
        elif name.endswith(".pt") and (not inner.startswith("data/sample_inputs/") or not _plain(archive.read(name))):
            yield f"a pickle ({inner})"


def _plain(data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except DAMAGED:
        return not data
    return True


def _json_dangers(value: Any, where: str) -> Iterator[str]:
    """Pickled payloads, Python functions as operators, and symbolic expressions, which torch evaluates as Python."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        if value.get("use_pickle"):
            yield f"a pickle ({where})"
        target = value.get("target")
        if isinstance(target, str) and "inputs" in value and not _OPERATORS.match(target):
            yield f"an operator that is none of torch's own ({target[:60]})"
        expression = value.get("expr_str")
        if isinstance(expression, str) and not _is_symbolic(expression):
            yield f"an expression that is no arithmetic ({expression[:60]})"
    for child in children:
        yield from _json_dangers(child, where)


def _is_symbolic(text: str) -> bool:
    try:
        return _is_arithmetic(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return False


def _is_arithmetic(node: ast.AST) -> bool:
    """Whether an expression has symbols of sizes, numbers and a few functions only; a string is one more expression."""
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.match(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Call):
        return _is_symbol(node) or _is_function(node)
    if isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.operator | ast.unaryop | ast.cmpop):
        return all(_is_arithmetic(child) for child in ast.iter_child_nodes(node))
    return False


def _is_symbol(call: ast.Call) -> bool:
    """``Symbol('s0', integer=True, ...)``."""
    named = isinstance(call.func, ast.Name) and call.func.id == "Symbol" and len(call.args) == 1
    if not named or not isinstance(call.args[0], ast.Constant) or not _SYMBOL.match(str(call.args[0].value)):
        return False
    return all(isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool) for k in call.keywords)


def _is_function(call: ast.Call) -> bool:
    known = isinstance(call.func, ast.Name) and call.func.id in _FUNCTIONS and not call.keywords
    return known and all(_is_arithmetic(argument) for argument in call.args)
