"""Explanations from input gradients, computed by Captum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.explainers._batches import at_least, baseline_of, batch_rows, in_batches, require_gradient
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, randomness="none", gradient=True)
def saliency(model: nn.Module, x: Tensor, target: Tensor, *, draws: Draws | None) -> Tensor:
    """Absolute input gradient of the target logit, summed over channels, float32 (N, H, W), at least 0.

    Args:
        model: Takes x and returns logits (N, K); in eval mode.
        x: Images (N, C, H, W) in [0, 1].
        target: Class to explain, int64 (N,).
        draws: Not used.

    Raises:
        NoGradientError: The model gives no input gradient.

    Source: Simonyan et al., ICLR workshop 2014, section 3; one backward pass per image.
    """
    from captum.attr import Saliency

    require_gradient(model, x)
    method = Saliency(model)

    def maps(rows: Tensor) -> Tensor:
        rows = rows.to(x.device)
        return method.attribute(x[rows].detach().requires_grad_(), target=target[rows]).sum(1)

    return in_batches(maps, len(x), width=batch_rows(x)).detach().float()


@facts(version=1, randomness="none", gradient=True)
def integrated_gradients(
    model: nn.Module, x: Tensor, target: Tensor, *, draws: Draws | None, steps: int = 32, baseline: str = "blur"
) -> Tensor:
    """Signed evidence against a baseline, summed over channels, float32 (N, H, W).

    A map's sum approaches the target logit at x minus that at the baseline (completeness).

    Args:
        model: Takes x and returns logits (N, K); in eval mode.
        x: Images (N, C, H, W) in [0, 1].
        target: Class to explain, int64 (N,).
        draws: Not used.
        steps: Gauss-Legendre points of the path integral, at least 1; one backward pass each.
        baseline: ``blur`` or ``black``; black pixels get no evidence from a black baseline.

    Raises:
        ConfigError: steps below 1, or an unknown baseline.
        NoGradientError: The model gives no input gradient.

    Source: Sundararajan et al., ICML 2017, section 3; Sturmfels et al., Distill 2020 (baselines).
    """
    from captum.attr import IntegratedGradients

    at_least("steps", steps, 1)
    start = baseline_of(x, baseline)
    require_gradient(model, x)
    method, at_once = IntegratedGradients(model), batch_rows(x)
    width = max(1, at_once // steps)

    def maps(rows: Tensor) -> Tensor:
        rows = rows.to(x.device)
        evidence = method.attribute(
            x[rows].detach(), start[rows], target[rows], n_steps=steps, internal_batch_size=max(width, at_once)
        )
        return evidence.sum(1)

    with torch.enable_grad():
        return in_batches(maps, len(x), width=width).detach().float()
