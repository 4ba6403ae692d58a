"""Who decides whether a sample was broken: the original model, looked at twice, never the attack.

Needs no attack code, so that stored images can be judged again without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.inference import predict, second_look
from robench.ops.norms import Ball, distance, per_sample
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Verdicts:
    """The judge's findings on N samples."""

    score: Tensor
    """Lower of the two looks' scores, (N,), in [0, 1]."""
    margin: Tensor
    """Lower of the two looks' margins, (N,)."""
    prediction: Tensor
    """Prediction of the look with the lower score, int64 (N,)."""
    distance: Tensor
    """Distance of the judged image in the threat's norm, float64 (N,)."""
    projected: Tensor
    """Whether the image lay outside the ball or box and was projected back first, bool (N,)."""
    unstable: Tensor
    """Whether the two looks disagree, bool (N,)."""
    failed: Tensor
    """Whether image or outputs were not finite: the attack failed on this sample, bool (N,)."""

    def broken(self, task: Task = CLASSIFICATION) -> Tensor:
        """Whether each sample counts as broken, bool (N,)."""
        return task.broken(self.score) & ~self.failed


def judge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    x_adv: Tensor,
    threat: ThreatModel,
    task: Task = CLASSIFICATION,
    width: int = 64,
) -> Verdicts:
    """Judge adversarial images with the original model in two differently composed batches.

    An image outside the ball or the box is projected back and judged as projected; a non-finite one, or one that
    gives non-finite outputs, is a failure of the attack, and its clean image is judged in its place.

    Args:
        model: The original model, already in eval mode and float32.
        x: Clean images (N, ...), in [0, 1].
        y: Targets (N, ...).
        x_adv: What the attack returned, (N, ...).
        threat: Ball to check, in float64 with tolerance 1e-6·max(1, eps).
        task: Score and margin.
        width: Padded batch width of the protocol.
    """
    ball = Ball(x, threat)
    finite = x_adv.flatten(1).isfinite().all(1)
    images = torch.where(per_sample(finite, x), x_adv.to(x.dtype), x)
    outside = ~ball.contains(images)
    if bool(outside.any()):
        images = torch.where(per_sample(outside, x), ball.project(images), images)
    looks = [predict(model, images, width=width), second_look(model, images, width=width)]
    scores = torch.stack([task.score(out, y) for out in looks])
    margins = torch.stack([task.margin(out, y) for out in looks])
    silent = ~torch.stack([out.flatten(1).isfinite().all(1) for out in looks]).all(0)
    lower = scores.argmin(0)
    predictions = torch.stack([task.predict(out) for out in looks])
    return Verdicts(
        score=scores.amin(0),
        margin=margins.amin(0),
        prediction=predictions.gather(0, lower[None])[0],
        distance=distance(x, images, threat.norm),
        projected=outside,
        unstable=task.broken(scores[0]) != task.broken(scores[1]),
        failed=~finite | silent,
    )
