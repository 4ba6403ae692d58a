"""Sixteen-bit floating point: weights and arithmetic."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must
from robench.registry import facts

_TRIAL = 2


class Half(nn.Module):
    """A net in a 16-bit type; takes float32 images and returns float32 logits."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(self.dtype))
        return logits.float()


@facts(version=1, simulated=False, needs="calibration")
def fp16(model: nn.Module, *, calibration: Tensor) -> nn.Module:
    """A deep copy, in eval mode, whose weights and arithmetic are IEEE half precision; logits come back as float32.

    Args:
        model: Left as it is.
        calibration: Images (N, C, H, W) in [0, 1]; the first two try the copy out.

    Raises:
        ModelError: The copy cannot run in this type on the images' device, or its logits are not finite (overflow at 65504).

    Source: Micikevicius et al., ICLR 2018, section 3.
    """
    return _tried(Half(copy.deepcopy(model).eval(), torch.float16).eval(), calibration, "fp16", "bf16")


@facts(version=1, simulated=False, needs="calibration")
def bf16(model: nn.Module, *, calibration: Tensor) -> nn.Module:
    """A deep copy, in eval mode, whose weights and arithmetic are bfloat16; logits come back as float32.

    Args:
        model: Left as it is.
        calibration: Images (N, C, H, W) in [0, 1]; the first two try the copy out.

    Raises:
        ModelError: The copy cannot run in this type on the images' device, or its logits are not finite.

    Source: Kalamkar et al., arXiv 1905.12322, section 2.
    """
    return _tried(Half(copy.deepcopy(model).eval(), torch.bfloat16).eval(), calibration, "bf16", "fp16")


def _tried(net: Half, images: Tensor, name: str, other: str) -> Half:
    """The net, once it has run on two images."""
    remedy = f"try {other} or int8_weights, another device, or leave this arm out"
    try:
        with torch.no_grad():
            logits = net(images[:_TRIAL])
    except RuntimeError as error:
        got = str(error).partition("\n")[0][:160]
        raise ModelError(must(f"a model for {name}", f"able to run in it on {images.device}", got, remedy)) from error
    if not bool(logits.isfinite().all()):
        raise ModelError(must(f"the logits in {name}", "finite", "nan or inf", remedy))
    return net
