"""TorchScript graphs as ordinary modules, one torch operator at a time, so that operators can get substitute gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must


class Unscripted(nn.Module):
    """The operators of an inlined TorchScript graph, called in order from Python; same weights, same outputs.

    Args:
        module: A scripted or traced module in eval mode that takes one tensor and returns one.

    Raises:
        ModelError: The graph has operations that only TorchScript's interpreter knows.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.graph = _inlined(module)
        self.roots = [module]
        """In a list, so that the scripted module is no child of this one: it cannot be copied or traced."""
        for node in self.graph.nodes():
            _check(node)
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        own, *inputs = list(self.graph.inputs())
        values: dict[str, Any] = {own.debugName(): self.roots[0], inputs[0].debugName(): x}
        _execute(self.graph, values)
        found: Tensor = values[next(iter(self.graph.outputs())).debugName()]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Unscripted:
        return self  # it holds no state of its own


def _inlined(module: torch.jit.ScriptModule) -> Any:
    """The graph of ``forward`` without calls; constants of the graph stay where they are."""
    graph = module.inlined_graph
    torch._C._jit_pass_inline(graph)
    return graph


def _check(node: Any) -> None:
    kind = node.kind()
    if kind in _SPECIAL or kind in ("prim::If", "prim::Loop"):
        for block in node.blocks():
            for inner in block.nodes():
                _check(inner)
        return
    if kind.startswith(("aten::", "prim::")) and node.schema() != "(no schema)":
        return
    remedy = "give the module itself instead of its TorchScript form"
    raise ModelError(must("a TorchScript graph", "made of torch operators", kind, remedy))


def _execute(block: Any, values: dict[str, Any]) -> None:
    for node in block.nodes():
        given = [values[value.debugName()] for value in node.inputs()]
        names = [value.debugName() for value in node.outputs()]
        kind = node.kind()
        if kind == "prim::If":
            branch = list(node.blocks())[0 if given[0] else 1]
            _execute(branch, values)
            outputs = [values[value.debugName()] for value in branch.outputs()]
        elif kind == "prim::Loop":
            outputs = _loop(next(iter(node.blocks())), given, values)
        elif kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            outputs = list(given[0])
        else:
            found = _SPECIAL[kind](node, given) if kind in _SPECIAL else _operator(node)(*given)
            outputs = [found] if len(names) == 1 else list(found or ())
        values.update(zip(names, outputs, strict=True))


def _loop(block: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    """Values that a loop leaves: ``given`` are its largest number of rounds, whether it starts, and what it carries."""
    rounds, going, *carried = given
    names = [value.debugName() for value in block.inputs()]
    turn = 0
    while going and turn < rounds:
        values.update(zip(names, [turn, *carried], strict=True))
        _execute(block, values)
        going, *carried = [values[value.debugName()] for value in block.outputs()]
        turn += 1
    return carried


def _constant(node: Any, given: list[Any]) -> Any:
    return node.output().toIValue()


_SPECIAL: dict[str, Callable[[Any, list[Any]], Any]] = {
    "prim::Constant": _constant,
    "prim::GetAttr": lambda node, given: getattr(given[0], node.s("name")),
    "prim::ListConstruct": lambda node, given: list(given),
    "prim::TupleConstruct": lambda node, given: tuple(given),
    "prim::TupleUnpack": lambda node, given: given[0],
    "prim::ListUnpack": lambda node, given: given[0],
    "prim::unchecked_cast": lambda node, given: given[0],
    "prim::RaiseException": lambda node, given: None,
    "aten::warn": lambda node, given: None,
    "aten::format": lambda node, given: "",
    "aten::len": lambda node, given: len(given[0]),
    "aten::__getitem__": lambda node, given: given[0][given[1]],
    "aten::__is__": lambda node, given: given[0] is given[1],
    "aten::__isnot__": lambda node, given: given[0] is not given[1],
    "aten::__not__": lambda node, given: not given[0],
    "prim::dtype": lambda node, given: given[0].dtype,
    "prim::device": lambda node, given: given[0].device,
}
"""Operations of the interpreter and of lists of any type; all else is an operator that torch.ops knows."""


def _operator(node: Any) -> Callable[..., Any]:
    """The overload that a node calls; arguments that must be named are named."""
    schema = torch._C.parse_schema(node.schema())
    space, name = node.kind().split("::")
    overload = getattr(getattr(getattr(torch.ops, space), name), schema.overload_name or "default")
    named = [argument.name for argument in schema.arguments if argument.kwarg_only]
    first = len(schema.arguments) - len(named)

    def call(*given: Any) -> Any:
        return overload(*given[:first], **dict(zip(named, given[first:], strict=True)))

    return call
