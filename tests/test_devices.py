"""Devices and settings: what code changes for others is undone."""

from __future__ import annotations

import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from robench.devices import _matmul_precision, exact_arithmetic, kept_settings

LOOK = {
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "threads": torch.get_num_threads,
    "autograd": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "matmul precision": _matmul_precision,
    "anomalies": torch.is_anomaly_enabled,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "torch seed": lambda: torch.get_rng_state().tolist(),
    "numpy seed": lambda: np.random.get_state()[1].tolist(),
    "random seed": random.getstate,
    "numpy errors": np.geterr,
    "warnings": lambda: list(warnings.filters),
    "environment": lambda: dict(os.environ),
    "folder": os.getcwd,
    "stdout": lambda: sys.stdout,
    "stderr": lambda: sys.stderr,
}
CHANGE = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(2),
    "autograd": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: KEEP.append(torch.inference_mode()) or KEEP[-1].__enter__(),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "anomalies": lambda: torch.set_anomaly_enabled(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch seed": lambda: torch.manual_seed(7),
    "numpy seed": lambda: np.random.seed(7),
    "random seed": lambda: random.seed(7),
    "numpy errors": lambda: np.seterr(all="ignore"),
    "warnings": lambda: warnings.simplefilter("error"),
    "environment": lambda: os.environ.update(ROBENCH_TEST_OF_DEVICES="1"),
    "folder": lambda: os.chdir("/"),
    "stdout": lambda: setattr(sys, "stdout", None),
    "stderr": lambda: setattr(sys, "stderr", None),
}
KEEP: list = []


@pytest.mark.parametrize("name", LOOK)
@pytest.mark.parametrize("settings", [kept_settings, exact_arithmetic])
def test_what_code_changes_is_as_before(name, settings):
    before = LOOK[name]()
    with settings():
        inside = LOOK[name]()
        CHANGE[name]()
        assert LOOK[name]() != inside
    assert LOOK[name]() == before


def test_it_is_as_before_after_an_error_too():
    with pytest.raises(ValueError), kept_settings():
        torch.set_default_dtype(torch.float64)
        raise ValueError
    assert torch.get_default_dtype() == torch.float32


def test_autograd_works_inside_whatever_the_caller_is_in():
    with torch.inference_mode(), kept_settings():
        x = torch.ones(1, requires_grad=True)
        (x * x).backward()
    assert float(x.grad) == 2.0
