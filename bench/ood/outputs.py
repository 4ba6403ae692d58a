"""What detectors are fitted on and what they score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Scorer = Callable[["Seen"], Tensor]
"""Scores (N,), float64: higher is more like the model's own data; NaN where the outputs are."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Images as a model sees them: one forward pass, kept."""

    logits: Tensor
    """(N, K)."""
    features: Tensor
    """(N, D), the input of the last linear layer; D = 0 where there is none."""
    images: Tensor | None = None
    """(N, C, H, W) in [0, 1], for detectors that need a pass of their own."""


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer: logits = features @ weight.T + bias."""

    weight: Tensor
    """(K, D), float64."""
    bias: Tensor
    """(K,), float64."""

    def __call__(self, features: Tensor) -> Tensor:
        return features.double() @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Known:
    """What a detector may be fitted on: training images only, never those that it is measured on."""

    train: Seen
    labels: Tensor
    """Labels of the training images, int64 (N,)."""
    head: Head | None = None
    net: nn.Module | None = None
    """The model itself, for detectors that need a gradient."""
    width: int = 64
    """Padded width of every pass."""


def linear_head(net: nn.Module, seen: Seen) -> Head | None:
    """The model's linear layer that turns these features into these logits; None where no layer does.

    A layer of the right size whose result is another (a defence behind it, quantised weights) is none.
    """
    size = seen.logits.shape[1], seen.features.shape[1]
    rows = (seen.logits.isfinite().all(1) & seen.features.isfinite().all(1)).nonzero().flatten()[:256]
    for layer in reversed([m for m in net.modules() if isinstance(m, nn.Linear)]):
        if (layer.out_features, layer.in_features) != size or not len(rows):
            continue
        bias = torch.zeros(size[0]) if layer.bias is None else layer.bias
        head = Head(layer.weight.detach().double().cpu(), bias.detach().double().cpu())
        want = seen.logits[rows].detach().double()
        if torch.allclose(head(seen.features[rows]), want, rtol=1e-3, atol=1e-3 * float(want.abs().max().clamp_min(1e-6))):
            return head
    return None


def missing(needs: str, known: Known) -> str:
    """Why a detector of these needs cannot run on this model; empty where it can."""
    if needs in ("features", "head") and not len(known.labels):
        return "there are no training images to fit on"
    if needs in ("features", "head") and not known.train.features.shape[1]:
        return "the model has no last linear layer whose input could be kept as features"
    if needs == "head" and known.head is None:
        return "no linear layer of the model turns the kept features into its logits"
    if needs in ("features", "head") and not bool(known.train.features.isfinite().all()):
        return "features of training images are not finite"
    return "" if needs != "gradient" or known.net is not None else "the model itself is not at hand"
