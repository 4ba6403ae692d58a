"""The graph that a runtime executes, in torch: the same weights, scales and rounding, with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robench.compress.backends._operators import OPERATORS
from robench.compress.backends._require import require
from robench.errors import ModelError, must


class Twin(nn.Module):
    """An ONNX graph node by node, (N, C, H, W) → (N, K); rounding to integers has a straight-through gradient.

    It is read from the file that the runtime executes, so that weights, scales, zero points and what was folded into
    what are the runtime's own. What may differ is how sums of integers are rounded on the way.

    Args:
        file: A serialised ONNX model with one input and one output.

    Raises:
        ModelError: An operator that has no counterpart in torch here; names it.
    """

    def __init__(self, file: bytes) -> None:
        super().__init__()
        graph = require("onnx", extra="onnx").load_model_from_string(file).graph
        _require_known(graph)
        self.given, self.told = graph.input[0].name, graph.output[0].name
        self.held: dict[str, str] = {}
        self.fixed: dict[str, Tensor] = {}
        for initializer in graph.initializer:
            self._hold(initializer.name, _tensor(initializer))
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for node in graph.node:
            self._add(node.op_type, list(node.input), list(node.output), _attributes(node))
        self._drop_unused()

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {self.given: x, **self._constants()}
        for kind, inputs, outputs, attributes in self.nodes:
            found = OPERATORS[kind]([values[name] if name else None for name in inputs], attributes)
            values.update(zip(outputs, found if isinstance(found, tuple) else (found,), strict=False))
        logits: Tensor = values[self.told]
        return logits

    def _constants(self) -> dict[str, Tensor]:
        return self.fixed | {name: getattr(self, own) for name, own in self.held.items()}

    def _hold(self, name: str, value: Tensor) -> None:
        """Keep a constant: numbers and grids as buffers, which follow the module's device, sizes and places as they are."""
        if value.dtype in (torch.int64, torch.bool):
            self.fixed[name] = value
            return
        self.held[name] = f"constant{len(self.held)}"
        self.register_buffer(self.held[name], value)

    def _drop_unused(self) -> None:
        """Forget what is used by no node: the levels of weights that are floats on their grid by now."""
        used = {name for _, inputs, _, _ in self.nodes for name in inputs}
        for name in [name for name in self.held if name not in used]:
            delattr(self, self.held.pop(name))

    def _add(self, kind: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        """Keep a node, or what it gives where it depends on no image."""
        constants = self._constants()
        if kind == "Constant":
            self._hold(outputs[0], attributes["value"])
        elif all(name in constants or not name for name in inputs):
            found = OPERATORS[kind]([constants[name] if name else None for name in inputs], attributes)
            for name, value in zip(outputs, found if isinstance(found, tuple) else (found,), strict=False):
                self._hold(name, value)
        else:
            self.nodes.append((kind, inputs, outputs, attributes))


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(require("onnx", extra="onnx").numpy_helper.to_array(value).copy())


def _attributes(node: Any) -> dict[str, Any]:
    read = require("onnx", extra="onnx").helper.get_attribute_value
    found = {a.name: read(a) for a in node.attribute}
    if node.op_type == "Constant":
        name, value = next(iter(found.items()))
        found = {"value": _tensor(value) if name == "value" else torch.tensor(value)}
    return found


def _require_known(graph: Any) -> None:
    unknown = {n.op_type for n in graph.node if n.domain not in ("", "ai.onnx")}
    unknown |= {n.op_type for n in graph.node} - {*OPERATORS, "Constant"}
    if unknown:
        remedy = "without a twin the model is attacked without gradients, and none of its samples counts as robust"
        raise ModelError(must("operators of an ONNX graph", "known to the twin", sorted(unknown), remedy))
