"""Costs of nets whose costs are known by hand."""

import numpy
import pytest
import torch
from torch import nn

from robench.compress._prune import prune
from robench.efficiency import Form, macs, measure, peak_bytes, stored_bytes
from robench.errors import ConfigError
from robench.models import fresh

COLUMNS = {
    "parameters", "nonzero", "macs", "stored_bytes", "nominal_bytes", "latency_p50_ms", "latency_p95_ms",
    "latency_large_p50_ms", "latency_large_p95_ms", "large_batch", "throughput", "throughput_batch", "peak_memory_bytes",
    "peak_tensor_bytes", "threads", "device", "simulated", "note",
}  # fmt: skip


def net():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))


def test_the_row_of_a_small_net():
    model = net()
    row = measure(model, (2, 5, 5), runs=5)
    assert set(row) == COLUMNS
    assert row["parameters"] == 2 * 4 * 9 + 4 + 300 + 3 == row["nonzero"]
    assert row["macs"] == 25 * 2 * 4 * 9 + 300
    assert 4 * row["parameters"] < row["stored_bytes"] < 4 * row["parameters"] + 1000
    assert row["nominal_bytes"] == 4 * row["parameters"]
    assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"] and row["latency_large_p50_ms"] > 0
    assert row["large_batch"] == 32 and row["throughput_batch"] in (1, 8, 32, 128)
    assert row["throughput"] >= 1e3 / row["latency_p50_ms"]
    assert row["threads"] == torch.get_num_threads() and row["device"] == "cpu"
    assert row["note"] == "" and row["peak_memory_bytes"] >= 0 and row["peak_tensor_bytes"] > 4 * row["parameters"]
    assert model.training


def test_a_batch_of_ones_own():
    row = measure(net(), (2, 5, 5), runs=1, batch=4)
    assert row["large_batch"] == 4 and row["throughput_batch"] in (1, 4, 16)


def test_pruning_shows_in_the_nonzero_weights_only():
    dense = net()
    for p in dense.parameters():
        nn.init.constant_(p, 0.1)
    row = measure(prune(dense, amount=0.5), (2, 5, 5), runs=1)
    assert row["nonzero"] == 7 + 372 - 186 and row["stored_bytes"] == measure(dense, (2, 5, 5), runs=1)["stored_bytes"]
    assert row["nominal_bytes"] == 4 * row["nonzero"]


def test_a_simulated_model_has_no_time_or_memory_and_the_bytes_of_its_file():
    row = measure(net(), (2, 5, 5), form=Form(simulated=True))
    absent = {k for k in COLUMNS if row[k] is None}
    times = {k for k in COLUMNS if k.startswith(("latency", "throughput", "peak"))}
    assert absent == times | {"stored_bytes"} and row["simulated"]
    told = measure(net(), (2, 5, 5), form=Form({"a": 7, "b": 5}, bits={"0.weight": 4, "3.weight": 1}, simulated=True))
    assert told["stored_bytes"] == 12 and told["nominal_bytes"] == (72 * 4 + 300 + 7 * 32 + 7) // 8
    assert {k for k in COLUMNS if told[k] is None} == times


class Session:
    """An interpreter that torch does not see into."""

    def __init__(self, weight):
        self.weight = weight

    def run(self, x):
        return torch.from_numpy(x.reshape(len(x), -1).numpy() @ self.weight)


class Shipped(nn.Module):
    """A model that ships as two files."""

    def __init__(self):
        super().__init__()
        self.session = Session(numpy.eye(50, 3, dtype="float32"))

    @property
    def files(self):
        return {"model.onnx": b"x" * 30, "model.onnx.data": b"y" * 600}

    def tensors(self):
        yield self.session.weight
        yield numpy.zeros(3, dtype="int8")

    def twin(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(50, 3))

    def forward(self, x):
        return self.session.run(x)


def test_a_deployed_form_tells_its_files_and_what_it_stores():
    row = measure(Shipped(), (2, 5, 5), runs=2)
    assert row["stored_bytes"] == 630 and row["parameters"] == 153 and row["nonzero"] == 3
    assert row["nominal_bytes"] == 12 and row["macs"] == 150
    assert row["latency_p50_ms"] > 0 and not row["simulated"]


def test_attention_in_fused_kernels_is_counted():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True, dropout=0.0).eval()
    t, d = 10, 16
    assert macs(layer, torch.zeros(1, t, d)) == t * d * 3 * d + 2 * t * t * d + t * d * d + 2 * t * d * 32
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_cannot_travel_says_so():
    class Local(nn.Sequential):
        pass

    row = measure(Local(nn.Flatten(), nn.Linear(50, 3)), (2, 5, 5), runs=1)
    assert row["peak_memory_bytes"] is None and "picklable" in row["note"] and row["peak_tensor_bytes"] > 0


class Chain(nn.Module):
    """Three element-wise steps; only ``keep`` decides whether the first result outlives the second."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        a = x + 1
        b = a * 2
        if not self.keep:
            del a
            return b - 1
        return b - a


def test_peak_memory_counts_what_lives_at_once():
    x = torch.zeros(8, 1, 16, 16)
    size = 8 * 256 * 4
    assert peak_bytes(Chain(False), x) == 3 * size
    assert peak_bytes(Chain(True), x) == 4 * size
    assert peak_bytes(nn.Flatten(), x) == size
    assert peak_bytes(nn.Sequential(*[nn.ReLU(inplace=True)] * 3), x) == size


def test_tied_weights_are_stored_once():
    tied = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    free = stored_bytes(tied)
    tied[1].weight = tied[0].weight
    assert free - stored_bytes(tied) == pytest.approx(10_000, abs=100)


def test_macs_of_a_matrix_product_by_hand():
    assert macs(nn.Linear(7, 3), torch.zeros(5, 7)) == 5 * 7 * 3


@pytest.mark.parametrize("change", [{"shape": (5, 5)}, {"runs": 0}, {"batch": 0}])
def test_refusals(change):
    arguments = {"shape": (2, 5, 5), **change}
    with pytest.raises(ConfigError, match="shape, batch, runs must be"):
        measure(net(), arguments.pop("shape"), **arguments)


@pytest.mark.gpu
def test_on_a_gpu():
    row = measure(net(), (2, 5, 5), device="cuda", runs=3)
    assert row["device"] == "cuda" and row["peak_memory_bytes"] > 4 * row["parameters"]


@pytest.mark.parametrize(("arch", "outputs", "activations"), [
    ("small_cnn(in_channels=3)", 16 * 256 + 32 * 64 + 64 * 16 + 10, 16 * 256 + 32 * 64 + 64 * 16),
    ("mlp(in_channels=3)", 96 + 96 + 10, 96 + 96),
])  # fmt: skip
def test_multiply_adds_are_torch_prunings_but_for_shifts_and_activations(arch, outputs, activations):
    library = pytest.importorskip("torch_pruning")
    model, x = fresh(arch, seed=0).eval(), torch.zeros(1, 3, 32, 32)
    operations, parameters = library.utils.count_ops_and_params(model, x)
    assert macs(model, x) == operations - outputs - activations
    assert measure(model, (3, 32, 32), runs=1)["parameters"] == parameters
