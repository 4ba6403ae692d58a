"""Running a model without changing it: eval mode, padded batches of a fixed width, an untouched state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over parameters and buffers, non-persistent ones included, and over the number of hooks."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    for module in model.modules():
        digest.update(bytes([len(module._forward_hooks) % 256, len(module._forward_pre_hooks) % 256]))
    return digest.hexdigest()


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model whose parameters or buffers hold NaN or infinity.

    Raises:
        ModelError: Names the first tensor that is not finite.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(must(f"weight {name!r}", "finite", "NaN or infinity", "train or export the model again"))


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with frozen parameters; modes and flags are restored, a changed state is an error.

    An exported program without modes is accepted as it is.

    Raises:
        ModelError: Parameters, buffers or hooks changed while it was measured.
    """
    before = fingerprint(model)
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module, _ in modes:
        module.training = False
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    if fingerprint(model) != before:
        remedy = "make the model's forward free of side effects in eval mode"
        raise ModelError(
            must("the model's state", "the same after as before", "changed parameters, buffers or hooks", remedy)
        )


def chunks(count: int, width: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the consecutive slices of at most ``width``."""
    for start in range(0, count, width):
        yield start, min(start + width, count)


def padded(points: Tensor, width: int) -> Tensor:
    """Fill a batch up to ``width`` by repeating its last sample, so that every forward has the same shape."""
    missing = width - len(points)
    return torch.cat([points, points[-1:].expand(missing, *points.shape[1:])]) if missing > 0 else points


def predict(model: nn.Module, x: Tensor, *, width: int) -> Tensor:
    """Outputs of the model on x (N, ...) without gradients, in padded batches of ``width``."""
    with torch.no_grad():
        return torch.cat([model(padded(x[a:b], width))[: b - a] for a, b in chunks(len(x), width)])
