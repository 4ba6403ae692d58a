"""Distance to the nearest class mean under the covariance that all classes share."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.ood.outputs import Known, Scorer, Seen
from robench.registry import facts


@facts(version=1, needs="features")
def mahalanobis(known: Known, *, shrinkage: float | None = None) -> Scorer:
    """Minus the squared Mahalanobis distance to the nearest class mean of the training features.

    The covariance is shrunk towards a multiple of the identity, so that it can be inverted whatever the number of images
    and of features; the paper does not shrink. Features that never vary tell nothing: then all scores are 0.

    Args:
        known: The training features and labels.
        shrinkage: Weight of the identity in [0, 1]; None takes that of Ledoit & Wolf. At least 1e-6 is used.

    Source: Lee et al., NeurIPS 2018, section 2.1; Ledoit & Wolf, Journal of Multivariate Analysis 2004, section 3.
    """
    features = known.train.features.double()
    classes = known.labels.unique()
    means = torch.stack([features[known.labels == c].mean(0) for c in classes])
    centred = features - means[torch.searchsorted(classes, known.labels)]
    covariance = centred.T @ centred / len(centred)
    scale = covariance.diagonal().mean()
    if float(scale) <= 1e-12 * float(features.square().mean().clamp_min(1e-300)):
        return lambda seen: torch.zeros(len(seen.features), dtype=torch.float64)
    weight = max(1e-6, ledoit_wolf(centred) if shrinkage is None else shrinkage)
    shrunk = (1 - weight) * covariance + weight * scale * torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(shrunk)
    centres = _whitened(means, factor)

    def score(seen: Seen) -> Tensor:
        return -_squared(_whitened(seen.features.double(), factor), centres).amin(1)

    return score


def ledoit_wolf(centred: Tensor) -> float:
    """Weight in [0, 1] of the scaled identity that is best for the covariance of centred samples (N, D).

    Source: Ledoit & Wolf, Journal of Multivariate Analysis 2004, section 3.3 (lemmas 3.2 to 3.5).
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    square = float(covariance.square().sum())
    spread = square - float(covariance.diagonal().sum()) ** 2 / size
    noise = (float(centred.square().sum(1).square().sum()) / count - square) / count
    return 1.0 if spread <= 0 else min(max(noise / spread, 0.0), 1.0)


def _whitened(points: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, points.T, upper=False).T


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, M); NaN where a point is."""
    return torch.stack([(points - c).square().sum(1) for c in centres], dim=1)
