"""Where tensors live and how exactly they are computed."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from robench.errors import ConfigError, must


def resolve_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where there is one, else ``cpu``; others are checked.

    Raises:
        ConfigError: No such device on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    usable = kind == "cpu" or (kind == "cuda" and torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count())
    if not usable:
        raise ConfigError(
            must("device", "auto, cpu or an available cuda:N", name, "run `robench doctor` to see the devices")
        )
    return name


@contextmanager
def kept_settings() -> Iterator[None]:
    """Undo afterwards what code changed that others share: a model's code must not reach the models after it.

    Torch's default dtype and device, autograd's, autocast's and deterministic modes, threads; the states of the global
    random number generators; warning filters, numpy's error handling, the environment, the current folder and the
    standard streams. Inside, autograd is as a program starts with it.
    """
    settings: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, _set_default_device),
        (torch.get_num_threads, torch.set_num_threads),
        (_deterministic, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
        (_matmul_precision, lambda value: torch.set_float32_matmul_precision(value or "highest")),
        (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        (np.geterr, lambda value: np.seterr(**value)),
        (lambda: dict(os.environ), _set_environment),
        (_folder, lambda value: os.chdir(value) if value else None),
    ]
    settings += [
        (partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)) for kind in ("cpu", "cuda")
    ]
    before = [get() for get, _ in settings]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    streams = sys.stdout, sys.stderr
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for (get, put), value in zip(settings, before, strict=True):
            if get() != value:
                put(value)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        sys.stdout, sys.stderr = streams


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None is how it starts, without a mode that costs


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _matmul_precision() -> str:
    """How exactly products are computed; empty where it was set in two ways, so that torch cannot tell."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


def _set_environment(values: dict[str, str]) -> None:
    for name in set(os.environ) - set(values):
        del os.environ[name]
    os.environ.update(values)


def _folder() -> str:
    """The current folder; empty when it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@contextmanager
def exact_arithmetic(threads: int = 1) -> Iterator[None]:
    """Float32 without TF32, deterministic cuDNN, a fixed number of threads; all undone afterwards (``kept_settings``)."""
    with kept_settings(), _exact(threads):
        yield


@contextmanager
def _exact(threads: int) -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.get_num_threads())
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before[:4]
        torch.set_num_threads(before[4])


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may compute float32 products in TF32; restored afterwards. Nothing changes on other devices."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the host ran out of memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def usable_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
