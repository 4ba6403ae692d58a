"""Memory of a process of its own."""

import json
import os
import subprocess
import sys

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
    server.kill()
    server.wait()
    assert resident_bytes(nn.Flatten(), X) >= 0


def test_the_server_ends_with_its_input_and_tells_what_went_wrong():
    question = json.dumps({"path": "missing", "threads": 1}) + "\n"
    command = [sys.executable, "-m", "robench.resident"]
    told = subprocess.run(command, input=question, capture_output=True, text=True, check=True)
    assert "FileNotFoundError" in json.loads(told.stdout)["error"]
