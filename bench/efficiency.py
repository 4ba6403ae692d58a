"""What a model costs: parameters, operations, bytes, time and memory."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from robench.errors import ConfigError, ModelError, must
from robench.ops.random import Draws
from robench.resident import resident_bytes

_WARM_UP = 10
_FEWEST = 5
"""Calls that are made however long they take: to warm up, and then timed."""
_SECONDS = 2.0
"""Time for the timed calls of one batch size, and half of it for those to warm up; calls that do not fit are left out."""
_MOST_IMAGES = 4
"""The largest batch of the throughput, in large batches."""


@dataclass(frozen=True)
class Form:
    """What is known of the form of a model that ships, where the module itself does not show it."""

    files: Mapping[str, int] | None = None
    """Name and bytes of every file that ships; by default the state as one safetensors file."""
    bits: Mapping[str, int] = field(default_factory=dict)
    """Bits of a stored weight by parameter name; by default those of its type."""
    simulated: bool = False
    """The module only imitates the deployed one: its time and memory say nothing, its bytes only if ``files`` tells them."""


@runtime_checkable
class Deployed(Protocol):
    """A module that runs a deployed form (an ONNX file, a compiled program), and tells what torch cannot see in it.

    One that also has ``twin()``, the same arithmetic in torch, has its multiply-adds counted there.
    """

    @property
    def files(self) -> Mapping[str, bytes]:
        """Name and content of every file that ships."""

    def tensors(self) -> Iterator[Any]:
        """Every array that is stored as weights."""


def measure(
    model: nn.Module, shape: Sequence[int], *,
    device: str = "cpu", batch: int | None = None, runs: int = 100, form: Form | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The columns of one ``efficiency`` row, measured on a copy of the model in inference mode.

    ``macs`` are half of torch's counted operations (convolutions, matrix products, attention) for one image, as if dense.
    ``stored_bytes`` are those of all files that ship; ``nominal_bytes`` what the non-zero parameters take at their bits,
    without their places. Latency is per call with one image, and with ``large_batch`` images; ``throughput`` is images
    per second at the best of four batch sizes. ``peak_memory_bytes`` is what loading the model and one forward of
    ``large_batch`` images add: to a process of its own on a CPU (missing where the model cannot travel, see ``note``), the
    allocator's peak on CUDA. ``peak_tensor_bytes`` counts live tensors alone.

    Args:
        model: Takes images and returns logits.
        shape: (C, H, W) of one image.
        device: Where to measure.
        batch: Images in a large batch, at least 1; by default 32, on CUDA 128.
        runs: Timed calls of a batch size, at least 1; see ``latency_ms``.
        form: The form that ships; by default what a ``Deployed`` model tells of itself, or its state.

    Raises:
        ConfigError: A shape that is not (C, H, W), or batch or runs below 1.
    """
    large = (128 if device.startswith("cuda") else 32) if batch is None else batch
    if len(shape) != 3 or min(*shape, large, runs) < 1:
        got = (tuple(shape), large, runs)
        raise ConfigError(must("shape, batch, runs", "(C, H, W), 1 or more, 1 or more", got, "correct the argument"))
    own = copy.deepcopy(model).to(device)
    if own.training:
        own.eval()
    form = form or Form()
    images = Draws(0, torch.arange(large)).uniform("efficiency", tuple(shape)).to(device)
    return {
        **_counts(own, images[:1], form),
        **(_no_times() if form.simulated else _times(own, images, runs)),
        **_memory(own, images, form),
        "large_batch": large,
        "threads": torch.get_num_threads(),
        "device": device,
        "simulated": form.simulated,
    }


def _counts(model: nn.Module, x: Tensor, form: Form) -> dict[str, Any]:
    """Parameters, operations and bytes."""
    numbers = list(_numbers(model, form.bits))
    nominal = sum(nonzero * bits for _, nonzero, bits in numbers)
    return {
        "parameters": sum(count for count, _, _ in numbers),
        "nonzero": sum(nonzero for _, nonzero, _ in numbers),
        "macs": _macs(model, x),
        "stored_bytes": _stored(model, form),
        "nominal_bytes": -(-nominal // 8),
    }


def _numbers(model: nn.Module, bits: Mapping[str, int]) -> Iterator[tuple[int, int, int]]:
    """(elements, those that are not 0, bits of one) of every stored tensor."""
    if isinstance(model, Deployed):
        for value in model.tensors():
            array = torch.as_tensor(value)
            yield array.numel(), int(torch.count_nonzero(array)), 8 * array.element_size()
        return
    for name, p in model.named_parameters():
        yield p.numel(), int(torch.count_nonzero(p)), bits.get(name, 8 * p.element_size())


def _macs(model: nn.Module, x: Tensor) -> int | None:
    """Operations of the model, or of the twin that shows them; None where it has none."""
    if not isinstance(model, Deployed):
        return macs(model, x)
    try:
        shown = getattr(model, "twin", lambda: None)()
    except ModelError:
        shown = None
    return None if shown is None else macs(shown.to(x.device), x)


def _stored(model: nn.Module, form: Form) -> int | None:
    if form.files is not None:
        return sum(form.files.values())
    if isinstance(model, Deployed):
        return sum(len(content) for content in model.files.values())
    return None if form.simulated else stored_bytes(model)


def _times(model: nn.Module, x: Tensor, runs: int) -> dict[str, Any]:
    """Latency of one image and of x, and images per second at the best batch size."""
    large = len(x)
    sizes = sorted({1, min(8, large), large, _MOST_IMAGES * large})
    batches = {n: x.repeat(_MOST_IMAGES, 1, 1, 1)[:n] for n in sizes}
    found = {n: latency_ms(model, batches[n], runs=runs) for n in sizes}
    rates = {n: 1e3 * n / p50 for n, (p50, _) in found.items()}
    best = max(sizes, key=lambda n: rates[n])
    return {
        "latency_p50_ms": found[1][0], "latency_p95_ms": found[1][1],
        "latency_large_p50_ms": found[large][0], "latency_large_p95_ms": found[large][1],
        "throughput": rates[best], "throughput_batch": best,
    }  # fmt: skip


def _no_times() -> dict[str, Any]:
    names = ("latency_p50_ms", "latency_p95_ms", "latency_large_p50_ms", "latency_large_p95_ms")
    return dict.fromkeys([*names, "throughput", "throughput_batch"])


def _memory(model: nn.Module, x: Tensor, form: Form) -> dict[str, Any]:
    if form.simulated:
        return {"peak_memory_bytes": None, "peak_tensor_bytes": None, "note": ""}
    told = {"peak_tensor_bytes": None if isinstance(model, Deployed) else peak_bytes(model, x), "note": ""}
    if x.is_cuda:
        return {"peak_memory_bytes": _allocated(model, x), **told}
    try:
        return {"peak_memory_bytes": resident_bytes(model, x, threads=torch.get_num_threads()), **told}
    except ModelError as error:
        return {"peak_memory_bytes": None, **told, "note": str(error)}


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward of x (N, C, H, W), by torch's flop counter.

    Attention is computed by plain products meanwhile, since the counter does not know torch's fused kernels.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
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
    """Median and 95th percentile of one forward's wall time in milliseconds, after 10 calls to warm up.

    Of a slow model's calls, those beyond the fifth are made only within 1 second (to warm up) and 2 seconds (timed).
    """
    _times_of(model, x, calls=_WARM_UP, seconds=_SECONDS / 2)
    times = _times_of(model, x, calls=runs, seconds=_SECONDS)
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    return float(p50), float(p95)


def _times_of(model: nn.Module, x: Tensor, *, calls: int, seconds: float) -> list[float]:
    """Milliseconds of each call."""
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else _nothing
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < calls and (len(times) < _FEWEST or sum(times) < 1e3 * seconds):
            wait()
            start = time.perf_counter()
            model(x)
            wait()
            times.append(1e3 * (time.perf_counter() - start))
    return times


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


def _allocated(model: nn.Module, x: Tensor) -> int:
    """Bytes of weights and input, and what CUDA's allocator takes at most for one forward."""
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
