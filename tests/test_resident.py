"""Memory of a process of its own."""

import importlib
import os

import pytest
import torch
from torch import nn

from robench import resident
from robench.errors import ModelError
from robench.resident import resident_bytes

X = torch.zeros(2, 1, 4, 4)


def test_what_a_forward_holds_is_what_is_counted():
    grown = nn.Sequential(nn.Flatten(), nn.Linear(16, 1 << 18), nn.ReLU(), nn.Linear(1 << 18, 4))
    wide = resident_bytes(grown, X)
    weights = sum(p.numel() for p in grown.parameters()) * 4
    assert weights < wide < 1.5 * weights + (32 << 20)
    again = resident_bytes(grown, X)
    assert abs(again - wide) < 4 << 20, "the second model meets the memory that the first met"
    assert resident_bytes(nn.Flatten(), X) < 8 << 20


def test_a_model_that_cannot_travel_is_told_with_a_remedy():
    with pytest.raises(ModelError, match="must be picklable"):
        resident_bytes(nn.Sequential(nn.Flatten(), _closure()), X)
    with pytest.raises(ModelError, match="loadable and runnable, got 'RuntimeError"):
        resident_bytes(nn.Linear(3, 3), X)
    assert resident_bytes(nn.Flatten(), X) >= 0


def _closure():
    class Local(nn.Module):
        def forward(self, x):
            return x

    return Local()


def test_a_server_that_died_is_started_again():
    resident_bytes(nn.Flatten(), X)
    server = resident._server(os.getpid())
    server.process.kill()
    server.process.wait()
    assert resident_bytes(nn.Flatten(), X) >= 0
    assert resident._server(os.getpid()) is not server


ENDS = """
import os
from torch import nn

class Ends(nn.Module):
    def forward(self, x):
        os._exit(0)
"""


def test_a_model_that_ends_its_process_is_told(tmp_path, monkeypatch):
    (tmp_path / "that_ends.py").write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    resident._server.cache_clear()
    with pytest.raises(ModelError, match="the process ended with status 0"):
        resident_bytes(importlib.import_module("that_ends").Ends(), X)
    assert resident_bytes(nn.Flatten(), X) >= 0


def test_the_answer_tells_what_went_wrong():
    assert "FileNotFoundError" in resident.forked({"path": "missing", "threads": 1})["error"]
