"""ODIN: softmax at a high temperature after a small step towards the predicted class; a pass of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import DataError, NoGradientError, must
from robench.inference import chunks, padded, predict
from robench.ood.outputs import Known, Scorer, Seen
from robench.registry import facts


@facts(version=1, needs="gradient")
def odin(known: Known, *, temperature: float = 1000.0, eps: float = 0.0014) -> Scorer:
    """The largest softmax probability at a temperature, after a step of eps that raises it.

    The step is in pixels of [0, 1] whatever normalisation the model has inside, and its result is not clipped. Where the
    gradient is zero there is no step. Temperature and eps are those of the paper, not tuned on any OOD images.

    Raises:
        NoGradientError: The model gives no input gradient (when images are scored).

    Source: Liang, Li & Srikant, ICLR 2018, section 3.
    """

    def score(seen: Seen) -> Tensor:
        if seen.images is None or known.net is None:
            raise DataError(must("images for ODIN", "at hand with the model", None, "keep them beside the outputs"))
        parts = []
        for a, b in chunks(len(seen.images), known.width):
            x = padded(seen.images[a:b], known.width)
            moved = x + eps * _direction(known.net, x, temperature)
            parts.append(predict(known.net, moved, width=known.width)[: b - a])
        logits = torch.cat(parts) if parts else seen.logits
        return (logits.double() / temperature).softmax(1).amax(1).cpu()

    return score


def _direction(net: nn.Module, x: Tensor, temperature: float) -> Tensor:
    """Sign of the gradient of the largest log probability at the temperature, of the shape of x."""
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = net(leaf)
        if not logits.requires_grad:
            raise _no_gradient()
        total = (logits.double() / temperature).log_softmax(1).amax(1).sum()
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if gradient is None:
        raise _no_gradient()
    return gradient.nan_to_num(0.0).sign()


def _no_gradient() -> NoGradientError:
    return NoGradientError(must("the model's output", "differentiable in its input", "no gradient", "leave odin out"))
