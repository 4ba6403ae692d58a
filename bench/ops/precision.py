"""How an attack may search faster than the judge looks: a copy in lower precision, another order in memory.

What a search finds is judged by the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robench.devices import is_out_of_memory

AGREEMENT = 0.8
"""Smallest mean cosine between the input gradients of a copy and of its original."""

DEEP = 8
"""Convolutions from which on channels-last images are tried."""

_EXACT = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
"""Layers that keep float32 parameters: their statistics do not bear rounding, and they cost little."""


class Lowered(nn.Module):
    """A bfloat16, channels-last copy of a model; takes and returns float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(model).to(torch.bfloat16)
        self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for own, original in zip(self.net.modules(), model.modules(), strict=True):
            if isinstance(own, _EXACT):
                own.float().load_state_dict(original.state_dict())
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        low = x.to(torch.bfloat16)
        logits: Tensor = self.net(low.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else low)
        return logits.float()


class Autocast(nn.Module):
    """The model itself under autocast to bfloat16, for those whose code does not bear other parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.net(x)
        return logits.float()


class Same(nn.Module):
    """The model itself, for a search whose arithmetic is the device's matter (TF32)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


_KINDS: dict[str, tuple[Callable[[nn.Module], nn.Module], ...]] = {"tf32": (Same,), "bfloat16": (Lowered, Autocast)}


def lowered(model: nn.Module, x: Tensor, *, precision: str = "bfloat16") -> nn.Module | None:
    """The model to search with, or None where nothing of that precision works as the original does.

    Args:
        model: In eval mode, float32; it is left as it was.
        x: A few images (N, ...) in [0, 1], on which the copy must agree: finite outputs and input gradients whose mean
            cosine with the original's is at least ``AGREEMENT``.
        precision: ``bfloat16`` or ``tf32``.
    """
    wanted = _gradient(model, x)
    if wanted is None:
        return None
    for kind in _KINDS[precision]:
        try:
            made = kind(model)
            found = _gradient(made, x)
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
            continue
        if found is not None and float(torch.cosine_similarity(found, wanted).mean()) >= AGREEMENT:
            return made
    return None


def bears_channels_last(model: nn.Module, x: Tensor) -> bool:
    """Whether the model is of the kind that is faster on channels-last images, and answers them as it does others.

    Convolutional networks of some depth gain; where a layer looks at the order in memory (``view``), nothing is changed.

    Args:
        model: In eval mode.
        x: A few images (N, C, H, W) in [0, 1].
    """
    if x.dim() != 4 or sum(isinstance(module, nn.Conv2d) for module in model.modules()) < DEEP:
        return False
    try:
        wanted, found = _gradient(model, x), _gradient(model, x.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # whatever a layer raises that looks at the order in memory
        if is_out_of_memory(error):
            raise
        return False
    return (
        wanted is not None
        and found is not None
        and torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    )


def _gradient(model: nn.Module, x: Tensor) -> Tensor | None:
    """Gradient (N, d) of the top logit's lead over the mean logit, or None where there is no finite one."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)  # keeps the order in memory
        logits = model(leaf)
        if not logits.requires_grad:
            return None
        lead = (logits.amax(1) - logits.mean(1)).sum()
        found = torch.autograd.grad(lead, leaf, allow_unused=True)[0]
    usable = found is not None and bool(found.isfinite().all()) and bool(found.any())
    return found.flatten(1) if usable and found is not None else None
