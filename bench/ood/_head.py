"""Detectors that need the weights of the last linear layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robench.errors import DataError, must
from robench.ood.outputs import Head, Known, Scorer, Seen
from robench.registry import facts


@facts(version=1, needs="head")
def react(known: Known, *, percentile: float = 90.0) -> Scorer:
    """The energy of the logits after the features are cut off at a percentile of all training features.

    Source: Sun, Guo & Li, NeurIPS 2021, section 3.
    """
    head = _head(known)
    ceiling = float(np.percentile(known.train.features.double().numpy(), percentile))
    return lambda seen: head(seen.features.double().clamp_max(ceiling)).logsumexp(1)


@facts(version=1, needs="head")
def vim(known: Known, *, dim: int | None = None) -> Scorer:
    """The energy less the length of the feature that lies outside the principal space of the training features.

    Both are brought to one scale by the training images (alpha). Features are seen from the point that the head maps to 0.

    Args:
        known: The training features, and the head.
        dim: Dimensions of the principal space, at most those of the features less one. None takes the paper's: 1000 for
            2048 features or more, 512 for 768 or more, else half of them.

    Source: Wang et al., CVPR 2022, sections 4 and 5.1.
    """
    head = _head(known)
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    features = known.train.features.double() - origin
    residual = _residual_space(features, dim)
    lengths = torch.linalg.vector_norm(features @ residual, dim=1)
    alpha = float(known.train.logits.double().amax(1).sum() / lengths.sum()) if float(lengths.sum()) > 0 else 0.0

    def score(seen: Seen) -> Tensor:
        outside = torch.linalg.vector_norm((seen.features.double() - origin) @ residual, dim=1)
        return seen.logits.double().logsumexp(1) - alpha * outside

    return score


def _residual_space(features: Tensor, dim: int | None) -> Tensor:
    """Orthonormal columns (D, D - dim) of the directions in which the features (N, D) are smallest."""
    size = features.shape[1]
    wanted = (1000 if size >= 2048 else 512 if size >= 768 else size // 2) if dim is None else dim
    _, vectors = torch.linalg.eigh(features.T @ features / len(features))
    return vectors[:, : size - min(wanted, size - 1)]


def _head(known: Known) -> Head:
    if known.head is None:
        raise DataError(must("the last linear layer", "at hand", None, "leave this detector out"))
    return known.head
