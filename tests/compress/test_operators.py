"""ONNX operators in torch against ONNX Runtime's own, and rounding in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robench.compress.backends._operators import OPERATORS, dequantised, integers, on_grid
from robench.compress.backends._twin import Twin
from robench.errors import ModelError
from robench.ops.random import Draws

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
A = (2, 3, 6, 6)


def numbers(*shape, step=0):
    return Draws(3, torch.arange(shape[0])).normal("operators", shape[1:] or (1,), step=step).reshape(shape).numpy()


def ints(*values):
    return np.array(values, np.int64)


CASES = {
    "Abs": ((), {}), "Add": ((numbers(3, 1, 1),), {}), "Sub": ((numbers(3, 1, 1),), {}), "Mul": ((numbers(3, 1, 1),), {}),
    "Div": ((2 + numbers(3, 1, 1) ** 2,), {}), "Relu": ((), {}), "Neg": ((), {}), "Sigmoid": ((), {}), "Tanh": ((), {}),
    "Erf": ((), {}), "Exp": ((), {}), "Identity": ((), {}), "Elu": ((), {"alpha": 0.7}),
    "LeakyRelu": ((), {"alpha": 0.2}), "HardSigmoid": ((), {"alpha": 0.3}), "HardSwish": ((), {}), "Gelu": ((), {}),
    "Softmax": ((), {"axis": 1}), "Max": ((numbers(3, 1, 1),), {}), "Min": ((numbers(3, 1, 1),), {}),
    "Clip": ((np.float32(-0.3), np.float32(0.4)), {}), "Pow": ((np.float32(2),), {}),
    "Conv": ((numbers(4, 3, 3, 3), numbers(4)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool": ((), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "AveragePool": ((), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "GlobalAveragePool": ((), {}), "Flatten": ((), {}), "Transpose": ((), {"perm": [0, 2, 1, 3]}),
    "BatchNormalization": ((numbers(3), numbers(3, step=1), numbers(3, step=2), numbers(3, step=3) ** 2), {}),
    "LayerNormalization": ((numbers(6), numbers(6, step=1)), {"axis": -1}),
    "MatMul": ((numbers(6, 5),), {}), "Reshape": ((ints(0, -1, 6),), {}), "Unsqueeze": ((ints(1, -1),), {}),
    "Slice": ((ints(1, 4), ints(3, 0), ints(2, 3), ints(1, -2)), {}), "Expand": ((ints(2, 2, 3, 6, 6),), {}),
    "Gather": ((ints(2, -1),), {"axis": 1}), "Concat": ((numbers(*A, step=4),), {"axis": 1}),
    "ReduceMean": ((ints(2, 3),), {"keepdims": 0}), "ReduceSum": ((ints(1),), {}),
    "Pad": ((ints(0, 0, 1, 0, 0, 0, 0, 2), np.float32(0.5)), {}),
    "QuantizeLinear": ((np.float32(0.05), np.uint8(30)), {}),
}  # fmt: skip
"""Operator → constant inputs behind the first, and attributes."""


def graph(kind, constants, attributes, *, shape=A, after=()):
    """A serialised model of one node, and of further ones that take its output."""
    names = [f"c{i}" for i in range(len(constants))]
    nodes = [onnx.helper.make_node(kind, ["images", *names], ["first"], **attributes)]
    for i, (other, more, inputs) in enumerate(after):
        nodes.append(onnx.helper.make_node(other, [("first", "second")[i], *inputs], [("second", "third")[i]], **more))
    nodes.append(onnx.helper.make_node("Identity", [nodes[-1].output[0]], ["logits"]))
    kept = [onnx.numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)]
    told = onnx.helper.make_tensor_value_info("logits", 1, None)
    given = onnx.helper.make_tensor_value_info("images", 1, list(shape))
    made = onnx.helper.make_graph(nodes, "one", [given], [told], kept)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def theirs(file, x):
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"images": x})[0]


@pytest.mark.parametrize("kind", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(kind):
    constants, attributes = CASES[kind]
    quantised = kind == "QuantizeLinear"
    file = graph(kind, constants, attributes, after=[("DequantizeLinear", {}, ["c0", "c1"])] if quantised else ())
    x = numbers(*A, step=9)
    ours = Twin(file)(torch.from_numpy(x))
    assert ours.shape == theirs(file, x).shape
    np.testing.assert_allclose(ours.numpy(), theirs(file, x), rtol=2e-6, atol=2e-6)


def test_what_has_no_case_of_its_own_is_met_in_the_zoo_or_below():
    elsewhere = {"Cast", "DequantizeLinear", "Gemm", "Shape", "Split", "Sqrt", "Squeeze"}
    assert set(OPERATORS) - set(CASES) == elsewhere


def test_the_rest_against_torch():
    x, y = (torch.from_numpy(numbers(4, 4, step=s)) for s in (1, 2))
    gemm = OPERATORS["Gemm"]([x, y, y[0]], {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1})
    assert torch.allclose(gemm, 0.5 * x.T @ y.T + 2 * y[0])
    assert [p.shape[1] for p in OPERATORS["Split"]([x, torch.tensor([1, 3])], {"axis": 1})] == [1, 3]
    assert torch.equal(torch.cat(OPERATORS["Split"]([x], {"axis": 0, "num_outputs": 2})), x)
    assert OPERATORS["Squeeze"]([x[None, :, None], torch.tensor([0])], {}).shape == (4, 1, 4)
    assert integers(OPERATORS["Shape"]([x], {})) == [4, 4] and OPERATORS["Cast"]([x], {"to": 7}).dtype == torch.int64
    assert torch.equal(OPERATORS["Sqrt"]([x.abs()], {}), x.abs().sqrt())


def test_rounding_is_to_even_within_the_grid_and_the_gradient_passes_inside_only():
    scale, zero = torch.tensor(0.5), torch.tensor(10, dtype=torch.uint8)
    x = torch.tensor([0.0, 0.25, 0.75, 0.3, -5.0, -5.3, 122.5, 123.0], requires_grad=True)
    found = on_grid(x, scale, zero)
    assert found.tolist() == [0.0, 0.0, 1.0, 0.5, -5.0, -5.0, 122.5, 122.5]
    (gradient,) = torch.autograd.grad((found * torch.arange(8.0)).sum(), x)
    assert gradient.tolist() == [0, 1, 2, 3, 4, 0, 6, 0]


def test_rounding_is_torchs_own_where_steps_are_powers_of_two():
    x = torch.from_numpy(numbers(5, 7)).requires_grad_()
    scale, zero = torch.tensor([0.25, 0.5, 0.125, 1.0, 0.0625]), torch.tensor([0, 3, -2, 0, 5], dtype=torch.int8)
    ours = on_grid(x, scale, zero, axis=0)
    torchs = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, -128, 127)
    assert torch.equal(ours, torchs)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, torchs)))


def test_levels_become_floats_per_channel():
    levels = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    found = dequantised(levels, torch.tensor([0.5, 2.0]), torch.tensor([0, 1], dtype=torch.int8), axis=0)
    assert found.tolist() == [[0.5, -1.0], [4.0, 6.0]]
    assert dequantised(levels, torch.tensor([0.5, 2.0]), None, axis=1).tolist() == [[0.5, -4.0], [1.5, 8.0]]


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(ModelError, match=r"known to the twin, got \['Cos'\]; without a twin"):
        Twin(graph("Cos", (), {}))
    file = graph("Conv", (numbers(4, 3, 3, 3),), {"auto_pad": "SAME_UPPER"})
    with pytest.raises(ModelError, match="padding in an ONNX graph must be explicit"):
        Twin(file)(torch.zeros(A))
    with pytest.raises(ModelError, match="Pad in an ONNX graph"):
        Twin(graph("Pad", (ints(0, 0, 1, 0, 0, 0, 0, 2),), {"mode": "reflect"}))(torch.zeros(A))
    with pytest.raises(ModelError, match="AveragePool must be the same at both ends"):
        Twin(graph("AveragePool", (), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}))(torch.zeros(A))
    with pytest.raises(ModelError, match="Cast in an ONNX graph"):
        OPERATORS["Cast"]([torch.zeros(1)], {"to": 8})
