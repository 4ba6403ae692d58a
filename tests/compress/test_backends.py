"""Deployed models are what their runtime executes, and their twins are the same numbers with a gradient."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from robench import zoo
from robench.bpda import differentiable, substitute
from robench.compress import TABLE
from robench.compress._layers import is_layer
from robench.compress.backends._onnx import FILE, OnnxModel, onnx_fp32, onnx_int8, opened
from robench.compress.backends._torchao import torchao_int8_weight_only
from robench.efficiency import measure
from robench.errors import ConfigError, ModelError, NoGradientError, NotInstalledError
from robench.inference import fingerprint
from robench.registry import Table
from robench.workshop import read_split

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ZOO = ("digits-standard", "digits-vit")


@pytest.fixture(scope="module")
def calibration():
    return read_split("digits", "train").images(torch.arange(128))


@pytest.fixture(scope="module")
def images():
    return read_split("digits", "test").images(torch.arange(200))


@pytest.fixture(scope="module")
def integers(calibration):
    return {name: onnx_int8(zoo.load(name), calibration=calibration) for name in ZOO}


@pytest.mark.parametrize(("name", "near"), [("digits-standard", 0.01), ("digits-vit", 0.1)])
def test_the_twin_agrees_with_the_integer_model(name, near, integers, images):
    """The runtime's fused integer kernels (softmax, additions) round on the way, so that a transformer is further off."""
    real, twin = integers[name], integers[name].twin()
    ours, theirs = twin(images), real(images)
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.98
    spread = theirs.amax(1) - theirs.amin(1)
    assert ((ours - theirs).abs().amax(1) / spread).max() < near
    away = zoo.load(name)(images) - theirs
    assert (ours - theirs).abs().mean() < away.abs().mean()  # nearer than the float model is


def test_without_fusions_the_runtime_rounds_as_the_twin_does(integers, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    real = integers["digits-vit"]
    session = onnxruntime.InferenceSession(real.files[FILE], options, providers=["CPUExecutionProvider"])
    told = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    assert (real.twin()(images) - told).abs().mean() < 1e-3 < (real(images) - told).abs().mean()


def test_weights_are_on_the_grid_of_their_channel_and_scales_come_from_the_calibration_images(calibration):
    """A linear layer in closed form: weights max|w|/127 per row, inputs of [0, 1] in steps of 1/255."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.27, -0.5, 0.03, 0.004], [25.4, 10.0, -7.3, 0.1]]))
        net[1].bias.copy_(torch.tensor([0.25, -1.0]))
    full = torch.tensor([[0.0, 1.0, 0.2, 0.6]]).reshape(1, 1, 2, 2)
    quantised = onnx_int8(net, calibration=full.expand(3, 1, 2, 2), ranges="minmax")
    weight = torch.tensor([[1.27, -0.5, 0.03, 0.0], [25.4, 10.0, -7.4, 0.2]])  # 0.004 → 0.4 steps, -7.3 → -36.5, 0.1 → 0.5
    weight[1] = (torch.tensor([25.4, 10.0, -7.3, 0.1]) / 0.2).round() * 0.2
    x = torch.tensor([[51, 102, 255, 0], [3, 7, 31, 254]]).reshape(2, 1, 2, 2) / 255
    expected = x.flatten(1) @ weight.T + net[1].bias
    assert torch.allclose(quantised(x), expected, atol=0.011)  # a bias is rounded to steps of 1/255 * max|w|/127
    assert torch.allclose(quantised.twin()(x), quantised(x), atol=1e-5)
    between = x + 0.4 / 255 * (x < 1)
    assert torch.equal(quantised(between), quantised(x))  # below half a step of the inputs nothing changes


def test_batch_norms_are_folded_into_the_layers_before_weights_are_rounded(calibration, images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    net.train()(images)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.1, 1.0, 5.0, -2.0]))
        net[1].bias.copy_(torch.tensor([0.3, 0.0, -1.0, 0.5]))
    net.eval()
    plain, quantised = (f(net, calibration=images) for f in (onnx_fp32, onnx_int8))
    for model in (plain, quantised):
        kinds = {node.op_type for node in onnx.load_model_from_string(model.files[FILE]).graph.node}
        assert "BatchNormalization" not in kinds and "Conv" in kinds
    assert torch.allclose(plain(images), net(images), atol=1e-4)
    assert torch.allclose(plain.twin()(images), net(images), atol=1e-4)
    ours, theirs = quantised.twin()(images), quantised(images)
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()


def test_attention_is_quantised_too(integers):
    """Every product of the transformer, the two of each attention included, has both its sides on a grid."""
    graph = onnx.load_model_from_string(integers["digits-vit"].files[FILE]).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(products) == 1 + 3 * (4 + 2) + 1  # patches, three blocks of four layers and an attention, classes
    assert all(makers[name] == "DequantizeLinear" for node in products for name in list(node.input)[:2])


@pytest.mark.parametrize("name", ZOO)
def test_results_depend_neither_on_the_batch_nor_on_company_nor_threads(name, integers, images):
    model = integers[name]
    whole = model(images)
    for size in (1, 7, 64):
        assert torch.equal(torch.cat([model(part) for part in images.split(size)]), whole)
    assert torch.equal(model(images.flip(0)).flip(0), whole)
    held = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(model(images), whole)
    finally:
        torch.set_num_threads(held)


def test_a_model_goes_through_pickles_and_copies_and_is_built_the_same_again(integers, images, calibration):
    model = integers["digits-standard"]
    expected = model(images)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), opened(model.files)):
        assert isinstance(other, OnnxModel) and torch.equal(other(images), expected)
    assert onnx_int8(zoo.load("digits-standard"), calibration=calibration).files == model.files
    assert b"/" + b"robench" not in model.files[FILE] and b"site-packages" not in model.files[FILE]


def test_a_model_takes_images_of_any_type_and_leaves_its_parent_alone(images, calibration):
    parent = zoo.load("digits-standard")
    before = fingerprint(parent)
    model = onnx_fp32(parent, calibration=calibration[:1])
    assert fingerprint(parent) == before
    found = model(images[:3].double())
    assert found.dtype == torch.float64 and torch.allclose(found.float(), parent(images[:3]), atol=1e-4)
    assert not list(model.parameters()) and not list(model.buffers())


@pytest.mark.parametrize("name", ZOO)
def test_the_substitute_has_the_models_outputs_and_its_twins_gradient(name, integers, images):
    model, x = integers[name], images[:16].clone().requires_grad_()
    net, substituted = differentiable(model)
    assert substituted
    outputs = net(x)
    assert torch.equal(outputs, model(images[:16]))
    weights = torch.linspace(-1, 1, 10)
    ours = torch.autograd.grad((outputs * weights).sum(), x)[0]
    twins = torch.autograd.grad((model.twin()(x) * weights).sum(), x)[0]
    assert torch.equal(ours, twins) and (ours.flatten(1).abs().amax(1) > 0).all()
    floats = torch.autograd.grad((zoo.load(name)(x) * weights).sum(), x)[0]
    assert torch.cosine_similarity(ours.flatten(1), floats.flatten(1)).mean() > 0.9
    assert not model(x).requires_grad


def test_a_model_with_gradients_is_its_own_substitute():
    net = zoo.load("digits-mlp")
    assert differentiable(net) == (net, False)


def test_a_graph_without_a_twin_has_no_gradient(monkeypatch, integers, images):
    from robench.compress.backends import _twin

    model = copy.deepcopy(integers["digits-standard"])
    monkeypatch.setattr(_twin, "OPERATORS", {})
    with pytest.raises(NoGradientError, match="operators of an ONNX graph must be known to the twin"):
        substitute(model)(images[:1].clone().requires_grad_())


def test_what_ships_is_counted_from_the_file(integers):
    parent = zoo.load("digits-standard")
    model, count = integers["digits-standard"], sum(p.numel() for p in parent.parameters())
    arrays = list(model.tensors())
    assert sum(a.size for a in arrays) == count and {str(a.dtype) for a in arrays} == {"int8", "int32"}
    weights = sum(m.weight.numel() for m in parent.modules() if is_layer(m))
    assert sum(a.size for a in arrays if a.dtype == "int8") == weights
    row = measure(model, (1, 32, 32), runs=1, batch=2)
    assert row["parameters"] == count and row["stored_bytes"] == len(model.files[FILE]) < 0.4 * 4 * count
    assert row["nominal_bytes"] <= weights + 4 * (count - weights) and not row["simulated"]
    assert row["macs"] == measure(parent, (1, 32, 32), runs=1, batch=2)["macs"] and row["peak_memory_bytes"] > 0


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_library_that_is_not_installed_is_told_with_the_remedy(library, monkeypatch, calibration):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        NotInstalledError, match=rf"library {library} must be installed, got .*; pip install 'robench\[onnx\]'"
    ):
        onnx_int8(zoo.load("digits-mlp"), calibration=calibration)


def test_bad_input_is_refused(calibration):
    net = zoo.load("digits-mlp")
    with pytest.raises(ConfigError, match="calibration must be images"):
        onnx_int8(net, calibration=calibration[:0])
    with pytest.raises(ConfigError, match="ranges must be one of minmax, percentile, entropy, got 'mean'"):
        onnx_int8(net, calibration=calibration, ranges="mean")
    with pytest.raises(TypeError):
        onnx_int8(net)

    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else x.flatten(1)[:, :2]

    with pytest.raises(ModelError, match="a model for ONNX Runtime must be exportable"):
        onnx_fp32(Branching(), calibration=calibration)


def test_torchao_holds_integers_in_linear_layers_and_keeps_the_gradient(images):
    pytest.importorskip("torchao")
    parent = zoo.load("digits-vit")
    model = torchao_int8_weight_only(parent)
    x = images[:32].clone().requires_grad_()
    outputs = model(x)
    assert (outputs.argmax(1) == parent(images[:32]).argmax(1)).float().mean() > 0.95
    assert 0 < (outputs - parent(images[:32])).abs().max() < 0.5
    gradient = torch.autograd.grad(outputs.sum(), x)[0]
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert sum(value.numel() for value in model.tensors()) == sum(p.numel() for p in parent.parameters())
    assert torch.allclose(model.twin()(x), outputs, atol=1e-3) and len(model.files["model.pt"]) > 0
    assert torch.equal(copy.deepcopy(model)(x), outputs) and fingerprint(model) == fingerprint(copy.deepcopy(model))
    with pytest.raises(ModelError, match=r"one with nn\.Linear layers"):
        torchao_int8_weight_only(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_torchao_that_is_not_installed_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(NotInstalledError, match=r"library torchao must be installed.*'robench\[compress\]'"):
        torchao_int8_weight_only(zoo.load("digits-mlp"))


def test_facts_say_what_has_a_gradient_and_what_is_stored():
    table = Table("compressions", TABLE)
    for name in ("onnx_int8", "onnx_fp32"):
        facts = table[name].facts
        assert (facts["simulated"], facts["gradient"], facts["needs"]) == (False, False, "calibration")
        assert facts["requires"] == "onnxruntime" and facts["stored"].endswith(":opened")
    assert dict(table["onnx_int8"].parameters) == {"ranges": "percentile"}
    assert table["torchao_int8_weight_only"].facts["gradient"] is True
