"""What a model costs: parameters, operations, bytes, time and memory."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from robench.errors import ConfigError, must
from robench.ops.random import Draws

_WARM_UP = 10


def measure(
    model: nn.Module, shape: Sequence[int], *,
    device: str = "cpu", batch: int = 32, runs: int = 30, simulated: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The columns of one ``efficiency`` row, measured on a copy of the model.

    ``macs`` are half of torch's counted operations (convolutions and matrix products), for one image and as if dense.
    Latency is per call with one image. ``peak_memory_bytes`` covers weights, input and what one forward of ``batch``
    images holds at once: the allocator's peak on CUDA, ``peak_bytes`` on a CPU.

    Args:
        model: Takes images and returns logits.
        shape: (C, H, W) of one image.
        device: Where to measure.
        batch: Images in the memory measurement, at least 1.
        runs: Timed calls after 10 to warm up, at least 1.
        simulated: Whether the model only imitates a compressed one; bytes, time and memory are then None.

    Raises:
        ConfigError: A shape that is not (C, H, W), or batch or runs below 1.
    """
    if len(shape) != 3 or min(*shape, batch, runs) < 1:
        got = (tuple(shape), batch, runs)
        raise ConfigError(must("shape, batch, runs", "(C, H, W), 1 or more, 1 or more", got, "correct the argument"))
    own = copy.deepcopy(model).to(device)
    if own.training:
        own.eval()
    images = Draws(0, torch.arange(batch)).uniform("efficiency", tuple(shape)).to(device)
    p50, p95 = (None, None) if simulated else latency_ms(own, images[:1], runs=runs)
    return {
        "parameters": sum(p.numel() for p in own.parameters()),
        "nonzero": sum(int(torch.count_nonzero(p)) for p in own.parameters()),
        "macs": macs(own, images[:1]),
        "stored_bytes": None if simulated else stored_bytes(own),
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "peak_memory_bytes": None if simulated else _peak(own, images),
        "threads": torch.get_num_threads(),
        "device": device,
        "simulated": simulated,
    }


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward of x (N, C, H, W), by torch's flop counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def stored_bytes(model: nn.Module) -> int:
    """Size of the model's state as one safetensors file; tensors that share their memory count once."""
    from safetensors.torch import save

    state, seen = {}, set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        if place not in seen:
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        seen.add(place)
    return len(save(state))


def latency_ms(model: nn.Module, x: Tensor, *, runs: int) -> tuple[float, float]:
    """Median and 95th percentile of one forward's wall time in milliseconds, after 10 calls to warm up."""
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else _nothing
    times = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + runs):
            wait()
            start = time.perf_counter()
            model(x)
            wait()
            times.append(1e3 * (time.perf_counter() - start))
    p50, p95 = torch.tensor(times[_WARM_UP:], dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    return float(p50), float(p95)


def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """Most bytes that weights, input and live intermediate tensors hold at once in one forward without gradient.

    Tensors alone, each storage once; scratch space inside kernels and the allocator's rounding are not seen.

    Args:
        model: Takes x.
        x: Images (N, C, H, W).
    """
    counter = _LiveBytes()
    for tensor in (*model.parameters(), *model.buffers(), x):
        counter.add(tensor)
    with torch.no_grad(), counter:
        model(x)
    return counter.peak


def _nothing() -> None:
    """What a CPU waits for."""


def _peak(model: nn.Module, x: Tensor) -> int:
    if not x.is_cuda:
        return peak_bytes(model, x)
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), x))
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    with torch.inference_mode():
        model(x)
    return held + int(torch.cuda.max_memory_allocated(x.device)) - before


class _LiveBytes(TorchDispatchMode):
    """Adds a storage's bytes when an operation returns it first, and takes them off when it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage unless it is counted already."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, key).atexit = False

    def drop(self, key: int) -> None:
        """Take a dead storage off."""
        self.now -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out
