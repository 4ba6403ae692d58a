"""Per-sample losses of classification; an attack maximises them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per sample, (N,) from logits (N, K) and labels (N,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the label minus the highest other logit, (N,); positive means correct.

    The label is masked with -inf, so that all-negative logits give the right answer.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return own - other


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin's negative, (N,): grows as the sample nears misclassification."""
    return -margin(logits, y)
