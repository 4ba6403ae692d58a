"""Weights: seeded initialisation and the hash that names them."""

from __future__ import annotations

import hashlib
import math
import pickle
import struct

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must
from robench.models import TABLE
from robench.ops.random import Draws
from robench.registry import Table
from robench.spec import Ref, sha256

DAMAGED = (
    AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip
"""What torch's readers raise on a file that is cut off, altered or of another kind (measured by cutting and altering)."""

ARCHITECTURES = Table("architectures", TABLE)
"""Our architectures and those of the entry-point group ``robench.architectures``."""


def weights_sha256(model: nn.Module) -> str:
    """Hexadecimal SHA-256 over the state dict: names in sorted order, each with type, shape and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_of(net: nn.Module) -> str:
    """SHA-256 over parameters and buffers, those that no state dict holds included."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*net.named_parameters(), *net.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name}|{bytes_of(tensor)}\n".encode())
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> str:
    """A tensor's type, shape and the hash of its values."""
    value = tensor.detach().cpu()
    if value.is_quantized or value.layout != torch.strided:
        value = value.dequantize() if value.is_quantized else value.to_dense()
    flat = value.contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return f"{value.dtype}|{tuple(value.shape)}|{sha256(content)}"


def require_planned(net: nn.Module, source: str, *, weights: str) -> None:
    """Refuse a model that is not the one that was built before planning.

    Raises:
        ModelError: Its parameters and buffers have another hash.
    """
    now = weights_of(net)
    if now != weights:
        got = f"others (sha256 {now[:12]}... instead of {weights[:12]}...)"
        remedy = "run the same command again; a factory must give the same model in every process"
        raise ModelError(must(f"the weights of {source}", "those that the run was planned with", got, remedy))


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> nn.Module:
    """The same model with weights drawn from ``seed`` alone: no global generator, equal on every device.

    Matrices and kernels are normal with variance gain / fan-in (gain 2 for convolutions, which feed ReLUs, else 1);
    biases are zero; scales of norm layers stay as they are; what is all zero by design (position tables) stays so.

    Source: He et al., ICCV 2015, section 2.2.
    """
    draws = Draws(seed, torch.zeros(1, dtype=torch.int64))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim >= 2 and bool(parameter.any()):
            parameter.copy_(_scaled(draws.normal(name, tuple(parameter.shape))[0]))
    return model


def _scaled(values: Tensor) -> Tensor:
    gain = 2.0 if values.ndim == 4 else 1.0
    return values * math.sqrt(gain / values[0].numel())


def fresh(arch: Ref | str, *, seed: int) -> nn.Module:
    """A bare net of the named architecture with weights drawn from ``seed``, on the CPU, in eval mode.

    Raises:
        ConfigError: The architecture or one of its arguments is unknown.
    """
    return initialise(construct(arch), seed).eval()


def construct(arch: Ref | str) -> nn.Module:
    """A bare net of the named architecture, its weights still to be set; the global generator is left as it was.

    Raises:
        ConfigError: The architecture or one of its arguments is unknown.
    """
    ref = ARCHITECTURES.resolve(arch)
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = ARCHITECTURES[ref.name].load()(**ref.kwargs)
    return net
