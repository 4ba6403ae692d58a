"""Where tensors live and how exactly they are computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
def exact_arithmetic(threads: int = 1) -> Iterator[None]:
    """Float32 without TF32, deterministic cuDNN and a fixed number of threads; restored afterwards."""
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
