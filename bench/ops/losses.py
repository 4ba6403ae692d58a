"""Per-sample losses of classification, (N,) from logits (N, K) and labels (N,); an attack maximises them.

Functions named ``targeted_*`` take the class to be predicted, (N,), as third argument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robench.errors import ConfigError, must


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


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (N,): the negative margin over the gap of the first to the third logit; K at least 3.

    Raises:
        ConfigError: Fewer than three classes.

    Source: Croce & Hein, ICML 2020, equation (6).
    """
    _require_classes(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio, (N,); K at least 4.

    Raises:
        ConfigError: Fewer than four classes.

    Source: Croce & Hein, ICML 2020, equation (7).
    """
    _require_classes(logits, 4, "dlr with a target")
    top = logits.topk(4, dim=1).values
    gap = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12
    return targeted_margin(logits, y, target) / gap


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus that of the label, (N,)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Log-probability of the target, (N,)."""
    return -cross_entropy(logits, target)


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits divided by the (constant) gap of their two highest, (N,), which cannot saturate.

    Source: Yu & Xu, CVPR 2023 (minimising imprecise floating-point errors), with temperature 1.
    """
    top = logits.detach().topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).clamp_min(1e-6)
    return cross_entropy(logits / gap[:, None], y)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Highest other probability minus the label's, (N,), in [-1, 1].

    Source: Ma et al., arXiv:2411.15210 (probability margin attack).
    """
    return negative_margin(logits.softmax(1), y)


def relative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The negative margin over the standard deviation of the sample's logits, (N,): it ranks, whatever scales all logits.

    Waves and temperatures that multiply the logits of an image leave it as it is, so an ascent of it does not follow them.
    """
    spread = logits.std(dim=1, correction=0).clamp_min(torch.finfo(logits.dtype).tiny)
    return negative_margin(logits, y) / spread


def _require_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        remedy = "use loss='margin'"
        raise ConfigError(must(f"the classes for {name}", f"at least {least}", logits.shape[1], remedy))
