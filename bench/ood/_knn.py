"""Distance to the k-th nearest training image in feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.ood.outputs import Known, Scorer, Seen
from robench.registry import facts

_GRAIN = 2.0**-40
"""Squared distances are multiples of this, so that equal features lie at a distance of exactly 0."""


@facts(version=1, needs="features")
def knn(known: Known, *, k: int = 50) -> Scorer:
    """Minus the Euclidean distance to the k-th nearest training image, features scaled to length 1.

    With fewer than k training images it is the farthest of them. A feature vector of length 0 stays at 0.

    Source: Sun et al., ICML 2022, section 3.
    """
    bank = _scaled(known.train.features)
    place = min(k, len(bank))

    def score(seen: Seen) -> Tensor:
        points = _scaled(seen.features)
        squared = points.square().sum(1)[:, None] + bank.square().sum(1) - 2 * points @ bank.T
        squared = (squared / _GRAIN).round() * _GRAIN
        return -squared.clamp_min(0).kthvalue(place, dim=1).values.sqrt()

    return score


def _scaled(features: Tensor) -> Tensor:
    features = features.double()
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
