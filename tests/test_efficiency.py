"""Costs of nets whose costs are known by hand."""

import pytest
import torch
from torch import nn

from robench.compress._prune import prune
from robench.efficiency import macs, measure, peak_bytes, stored_bytes
from robench.errors import ConfigError

COLUMNS = [
    "parameters", "nonzero", "macs", "stored_bytes", "latency_p50_ms", "latency_p95_ms", "peak_memory_bytes", "threads",
    "device", "simulated",
]  # fmt: skip


def net():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))


def test_the_row_of_a_small_net():
    model = net()
    row = measure(model, (2, 5, 5), runs=5)
    assert list(row) == COLUMNS
    assert row["parameters"] == 2 * 4 * 9 + 4 + 300 + 3 == row["nonzero"]
    assert row["macs"] == 25 * 2 * 4 * 9 + 300
    assert 4 * row["parameters"] < row["stored_bytes"] < 4 * row["parameters"] + 1000
    assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
    assert row["threads"] == torch.get_num_threads() and row["device"] == "cpu"
    assert model.training


def test_pruning_shows_in_the_nonzero_weights_only():
    dense = net()
    for p in dense.parameters():
        nn.init.constant_(p, 0.1)
    row = measure(prune(dense, amount=0.5), (2, 5, 5), runs=1)
    assert row["nonzero"] == 7 + 372 - 186 and row["stored_bytes"] == measure(dense, (2, 5, 5), runs=1)["stored_bytes"]


def test_a_simulated_model_has_no_bytes_time_or_memory():
    row = measure(net(), (2, 5, 5), simulated=True)
    absent = {k for k in COLUMNS if row[k] is None}
    assert absent == {"stored_bytes", "latency_p50_ms", "latency_p95_ms", "peak_memory_bytes"}


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
