"""Running a model without changing it: eval mode, padded batches of a fixed width, an untouched state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
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


def require_finite_weights(model: nn.Module, of: str = "") -> None:
    """Refuse a model with NaN anywhere, or infinity among its parameters.

    Buffers may hold infinities: masks of -inf, and observers that have seen nothing yet.

    Args:
        model: Left as it is.
        of: What the weights belong to, for the message.

    Raises:
        ModelError: Names the first tensor that is damaged.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
            continue
        if name in parameters or bool(tensor.isnan().any()):
            what = f"weight {name!r}" + (f" of {of}" if of else "")
            raise ModelError(must(what, "finite", "NaN or infinity", "train or export the model again"))


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with frozen parameters; modes and flags are restored, a changed state is an error.

    An exported program without modes is accepted as it is.

    Raises:
        ModelError: Parameters, buffers or hooks changed while it was measured.
    """
    before = fingerprint(model)
    # A frozen TorchScript module has no mode.
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
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


def padded(points: Tensor, width: int, *, grey: bool = False) -> Tensor:
    """Fill a batch up to ``width`` with its last sample or with grey images, so that every forward has the same shape."""
    missing = width - len(points)
    if missing <= 0:
        return points
    last = torch.full_like(points[-1:], 0.5) if grey else points[-1:]
    return torch.cat([points, last.expand(missing, *points.shape[1:])])


def predict(model: nn.Module | Callable[[Tensor], Tensor], x: Tensor, *, width: int, grey: bool = False) -> Tensor:
    """Outputs of the model on x (N, ...) without gradients, in batches padded to ``width`` as ``padded`` does."""
    with torch.no_grad():
        return torch.cat([asked(model, padded(x[a:b], width, grey=grey))[: b - a] for a, b in chunks(len(x), width)])


def asked(model: nn.Module | Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The model's outputs on a batch that it must not write to.

    A model that writes to its images gets copies (see ``admission``), if its trial shows that it does.

    Raises:
        ModelError: It wrote to the images, which its trial did not show.
    """
    before = images._version
    outputs = model(images)
    if images._version != before:
        remedy = "have the model's forward work on a copy, x = x.clone()"
        raise ModelError(must("the images given to the model", "left as they are", "images written to", remedy))
    return outputs


def second_look(model: nn.Module, x: Tensor, *, width: int) -> Tensor:
    """Outputs on x (N, ...), every image in other company than in ``predict``.

    The order is reversed and shifted by half a batch, what fits one batch is cut in two, and the filling is grey.
    """
    count = len(x)
    order = torch.arange(count, device=x.device).flip(0).roll(max(1, min(width, count)) // 2)
    parts = [order] if count > width else order.tensor_split(min(2, count))
    outputs = torch.cat([predict(model, x[part], width=width, grey=True) for part in parts])
    return torch.empty_like(outputs).index_copy_(0, order, outputs)
