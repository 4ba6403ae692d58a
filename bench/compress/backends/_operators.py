"""ONNX operators in torch, so that a graph that a runtime executes has a gradient here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robench.errors import ModelError, must

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Any, Attributes], Any]
"""Inputs (None where one is left out) and attributes → a tensor, or a tuple of them."""

GRIDS = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767), torch.int32: (-(2**31), 2**31 - 1)}
"""Integers that each type of a zero point can hold."""


class _OnGrid(torch.autograd.Function):
    """Values rounded to a grid (half to even) and cut to its ends; the gradient is 1 inside and 0 where it is cut.

    Source: Bengio et al., arXiv 1308.3432, section 4 (straight-through estimator); Jacob et al., CVPR 2018, section 3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        level = (x / scale).round() + zero
        ctx.save_for_backward((level >= low) & (level <= high))
        return (level.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def on_grid(x: Tensor, scale: Tensor, zero: Tensor, *, axis: int = 1) -> Tensor:
    """x as ONNX's QuantizeLinear and DequantizeLinear leave it, with a straight-through gradient; same shape.

    Args:
        x: Floats.
        scale: One step, or one per place along ``axis``.
        zero: Zero point of the same shape, whose integer type says where the grid ends.
        axis: See scale.
    """
    low, high = GRIDS[zero.dtype]
    wide = _along(scale, x, axis)
    found: Tensor = _OnGrid.apply(x, wide, _along(zero.to(x.dtype), x, axis), low, high)  # type: ignore[no-untyped-call]
    return found


def dequantised(levels: Tensor, scale: Tensor, zero: Tensor | None, *, axis: int = 1) -> Tensor:
    """(levels - zero) scale in floats; levels are integers, scale and zero point as of ``on_grid``."""
    shift = 0 if zero is None else _along(zero.to(torch.int64), levels, axis)
    return (levels.to(torch.int64) - shift).to(scale.dtype) * _along(scale, levels, axis)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values (k,) laid along an axis of x; a single one as it is."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _quantize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    zero = torch.zeros((), dtype=torch.uint8) if zero is None else zero
    return on_grid(x, scale, zero, axis=attributes.get("axis", 1))  # type: ignore[arg-type]


def _dequantize(inputs: Inputs, attributes: Attributes) -> Tensor | None:
    levels, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if levels is not None and levels.is_floating_point():
        return levels  # the output of _quantize, which is on the grid already
    return dequantised(levels, scale, zero, axis=attributes.get("axis", 1))  # type: ignore[arg-type]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """x and the symmetric padding that is left to do; uneven padding is done here."""
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return x, begin
    flat = [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]
    return functional.pad(x, flat, value=value), [0] * half


def _require_explicit(attributes: Attributes) -> None:
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto not in (b"NOTSET", b"VALID"):
        raise ModelError(must("padding in an ONNX graph", "explicit", auto, "export the model anew"))


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    _require_explicit(attributes)
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    dims = weight.ndim - 2  # type: ignore[union-attr]
    x, padding = _padded(x, attributes.get("pads", [0] * 2 * dims))  # type: ignore[arg-type]
    convolve: Any = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[dims]
    told = {"stride": attributes.get("strides", [1] * dims), "dilation": attributes.get("dilations", [1] * dims)}
    found: Tensor = convolve(x, weight, bias, padding=padding, groups=attributes.get("group", 1), **told)
    return found


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a: Any = inputs[0]
    b: Any = inputs[1]
    product = (a.mT if attributes.get("transA") else a) @ (b.mT if attributes.get("transB") else b)
    product = product * attributes.get("alpha", 1.0) if attributes.get("alpha", 1.0) != 1 else product
    added = inputs[2] if len(inputs) > 2 else None
    found: Tensor = product if added is None else product + attributes.get("beta", 1.0) * added
    return found


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    _require_explicit(attributes)
    kernel = attributes["kernel_shape"]
    x, padding = _padded(inputs[0], attributes.get("pads", [0] * 2 * len(kernel)), -torch.inf)  # type: ignore[arg-type]
    told = {"stride": attributes.get("strides", [1] * len(kernel)), "dilation": attributes.get("dilations", 1)}
    return functional.max_pool2d(x, kernel, padding=padding, ceil_mode=bool(attributes.get("ceil_mode", 0)), **told)


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    _require_explicit(attributes)
    kernel, pads = attributes["kernel_shape"], attributes.get("pads", [0] * 2 * len(attributes["kernel_shape"]))
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise ModelError(must("padding of an AveragePool", "the same at both ends", pads, "pad before the layer"))
    told: dict[str, Any] = {"stride": attributes.get("strides", [1] * len(kernel)), "padding": pads[:half]}
    told |= {"ceil_mode": bool(attributes.get("ceil_mode", 0))}
    x: Any = inputs[0]
    return functional.avg_pool2d(x, kernel, count_include_pad=bool(attributes.get("count_include_pad", 0)), **told)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    sizes = integers(inputs[1])
    if not attributes.get("allowzero"):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    found: Tensor = x.reshape(sizes)
    return found


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    starts, ends = integers(inputs[1]), integers(inputs[2])
    axes = integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = torch.arange(x.shape[axis], device=x.device)[slice(start, end) if step > 0 else slice(None)]
        if step < 0:
            places = torch.tensor(range(x.shape[axis])[slice(start, end, step)], device=x.device)
            step = 1
        x = x.index_select(axis, places[::step])
    found: Tensor = x
    return found


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    found: Tensor = x.squeeze(tuple(_axes(inputs, attributes, [i for i, s in enumerate(x.shape) if s == 1])))
    return found


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    axes = _axes(inputs, attributes, [])
    final = x.ndim + len(axes)
    for axis in sorted(a % final for a in axes):
        x = x.unsqueeze(axis)
    found: Tensor = x
    return found


def _axes(inputs: Inputs, attributes: Attributes, default: list[int], place: int = 1) -> list[int]:
    if len(inputs) > place and inputs[place] is not None:
        return integers(inputs[place])
    return list(attributes.get("axes", default))


def _reduced(reduce: Callable[..., Tensor]) -> Operator:
    def operator(inputs: Inputs, attributes: Attributes) -> Tensor:
        x: Any = inputs[0]
        axes = _axes(inputs, attributes, [])
        if not axes and attributes.get("noop_with_empty_axes"):
            return inputs[0]  # type: ignore[return-value]
        return reduce(x, tuple(axes or range(x.ndim)), keepdim=bool(attributes.get("keepdims", 1)))

    return operator


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    shape = x.shape[attributes.get("axis", -1) % x.ndim :]
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, shape, inputs[1], bias, attributes.get("epsilon", 1e-5))


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias, mean, variance = inputs[:5]
    told: Any = (mean, variance, weight, bias, False, 0.0, attributes.get("epsilon", 1e-5))
    return functional.batch_norm(x, *told)  # type: ignore[arg-type]


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    low, high = (inputs[i] if len(inputs) > i else None for i in (1, 2))
    found: Tensor = x if low is None else torch.maximum(x, low)
    return found if high is None else torch.minimum(found, high)


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x: Any = inputs[0]
    axis = attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(x.split(integers(inputs[1]), axis))
    return tuple(x.chunk(attributes["num_outputs"], axis))


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, places = inputs[0], inputs[1]
    axis = attributes.get("axis", 0) % x.ndim  # type: ignore[union-attr]
    index = places % x.shape[axis]  # type: ignore[operator,union-attr]
    found: Tensor = x.index_select(axis, index.flatten().to(x.device))  # type: ignore[union-attr]
    return found.reshape(*found.shape[:axis], *index.shape, *found.shape[axis + 1 :])


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    mode = attributes.get("mode", b"constant")
    if mode != b"constant" or (len(inputs) > 3 and inputs[3] is not None):
        raise ModelError(must("a Pad in an ONNX graph", "constant on all axes", mode, "pad with a constant"))
    pads, value = integers(inputs[1]), inputs[2] if len(inputs) > 2 else None
    half = len(pads) // 2
    flat = [p for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for p in pair]
    return functional.pad(inputs[0], flat, value=0.0 if value is None else float(value))  # type: ignore[arg-type]


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    types = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
    kind = attributes["to"]
    if kind not in types:
        raise ModelError(must("a Cast in an ONNX graph", f"to one of the types {sorted(types)}", kind, "export in float32"))
    found: Tensor = inputs[0].to(types[kind])  # type: ignore[union-attr]
    return found


def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    found: Tensor = x.expand(torch.broadcast_shapes(x.shape, tuple(integers(inputs[1]))))
    return found


def integers(tensor: Tensor | None) -> list[int]:
    """The integers of a small tensor; none where it is left out."""
    return [] if tensor is None else [int(v) for v in tensor.flatten().tolist()]


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda inputs, attributes: function(*[i for i in inputs if i is not None])


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    return functional.gelu(x, approximate=attributes.get("approximate", b"none").decode())


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Any = inputs[0]
    axis = attributes.get("axis", 1)
    found: Tensor = x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)
    return found


OPERATORS: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _plain(lambda a, b: a / b if a.is_floating_point() else a.div(b, rounding_mode="trunc")),
    "Elu": lambda inputs, attributes: functional.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "HardSigmoid": lambda inputs, a: (inputs[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "MatMul": _plain(torch.matmul),
    "Max": _plain(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _plain(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _plain(functional.relu),
    "Reshape": _reshape,
    "Shape": _plain(lambda x: torch.tensor(x.shape)),
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: inputs[0].softmax(attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes.get("perm", list(range(inputs[0].ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
}
"""Name → operator, of ONNX's own domain, as of opset 13 to 24."""
