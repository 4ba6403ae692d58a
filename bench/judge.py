"""Who decides whether a sample was broken: the original model, looked at twice, never the attack.

Needs no attack code, so that stored images can be judged again without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.inference import predict, second_look
from robench.ops.chance import seeded
from robench.ops.norms import Ball, distance, per_sample
from robench.spec import Estimate, ThreatModel
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
    mean: Tensor
    """Mean score over the draws of a randomised model, (N,); of any other the score."""
    worst: Tensor
    """Lowest score over the draws of a randomised model, (N,); of any other the score."""

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
    images, finite, outside = _admitted(x, x_adv, threat)
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
        mean=scores.amin(0),
        worst=scores.amin(0),
    )


def _admitted(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
    """The images to judge (N, ...), which of them were finite and which had to be projected back, bool (N,) each."""
    ball = Ball(x, threat)
    finite = x_adv.flatten(1).isfinite().all(1)
    images = torch.where(per_sample(finite, x), x_adv.to(x.dtype), x)
    outside = ~ball.contains(images)
    if bool(outside.any()):
        images = torch.where(per_sample(outside, x), ball.project(images), images)
    return images, finite, outside


_POISSON = (0.0, 0.05129329438755053, 0.35536151069866195, 0.8176914471639534)
"""Means of which 0, 1, 2 and 3 events or more have a probability of 5 %."""
LEAST_DRAWS = 20
"""Fewer looks than this say too little about a randomised model."""


@dataclass(frozen=True)
class RepeatedVerdicts:
    """The judge's findings on N samples of a randomised model, each looked at under K draws."""

    scores: Tensor
    """Score of every draw, (K, N), in [0, 1]."""
    margin: Tensor
    """Lower median of the draws' margins, (N,)."""
    prediction: Tensor
    """The commonest prediction of the draws, int64 (N,)."""
    distance: Tensor
    """Distance of the judged image in the threat's norm, float64 (N,)."""
    projected: Tensor
    """Whether the image lay outside the ball or box and was projected back first, bool (N,)."""
    failed: Tensor
    """Whether image or outputs were not finite: the attack failed on this sample, bool (N,)."""
    interval: tuple[Tensor, Tensor]
    """The modified Wilson 95 % interval of each sample's mean score, (N,) each."""

    @property
    def score(self) -> Tensor:
        """Mean score over the draws, float64 (N,)."""
        return self.scores.double().mean(0)

    @property
    def worst(self) -> Tensor:
        """Lowest score over the draws, (N,)."""
        return self.scores.amin(0)

    def broken(self) -> Tensor:
        """Whether each sample counts as broken: at most half of its draws score, bool (N,)."""
        return (self.score <= 0.5) & ~self.failed

    def decided(self) -> Verdicts:
        """The same findings, with scores 0 and 1 as of a model that gives its commoner answer.

        ``unstable`` are samples whose interval holds one half: other draws may decide otherwise.
        """
        low, high = self.interval
        return Verdicts(
            score=(self.score > 0.5).to(self.scores.dtype),
            margin=self.margin,
            prediction=self.prediction,
            distance=self.distance,
            projected=self.projected,
            unstable=(low <= 0.5) & (high >= 0.5),
            failed=self.failed,
            mean=self.score.to(self.scores.dtype),
            worst=self.worst,
        )

    def accuracy(self) -> Estimate:
        """Expected score over samples and draws, with a 95 % interval over samples."""
        return _wilson(self.score)

    def worst_accuracy(self) -> Estimate:
        """Score of an adversary that may wait for each sample's worst draw, with a 95 % interval over samples."""
        return _wilson(self.worst.double())


def judge_repeatedly(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    x_adv: Tensor,
    threat: ThreatModel,
    draws: int = 50,
    seed: int = 0,
    task: Task = CLASSIFICATION,
    width: int = 64,
) -> RepeatedVerdicts:
    """Judge adversarial images with a randomised model, under ``draws`` fresh states of the global generators.

    Half of the looks see differently composed batches. Images outside the ball and non-finite ones are dealt with as
    ``judge`` does; the generators' states are put back. The same seed gives the same verdicts on the same samples.

    Args:
        model: The original model, already in eval mode and float32.
        x: Clean images (N, ...), in [0, 1].
        y: Targets (N, ...).
        x_adv: What the attack returned, (N, ...).
        threat: Ball to check.
        draws: How often every image is looked at, at least 20.
        seed: Seed of the draws, which are others than those that an attack with this seed saw.
        task: Score and margin.
        width: Padded batch width of the protocol.

    Raises:
        ConfigError: Fewer than 20 draws.

    Source: Athalye et al., ICML 2018, section 4.2; Tramer et al., NeurIPS 2020, section 3; Brown, Cai & DasGupta,
    Statistical Science 2001 (interval).
    """
    if draws < LEAST_DRAWS:
        raise ConfigError(must("draws", f"at least {LEAST_DRAWS}", draws, "a randomised model needs more looks"))
    images, finite, outside = _admitted(x, x_adv, threat)
    looks = []
    for draw in range(draws):
        look = second_look if draw % 2 else predict
        with seeded(seed, "judge", draw=draw, device=x.device):
            looks.append(look(model, images, width=width))
    scores = torch.stack([task.score(out, y) for out in looks])
    silent = ~torch.stack([out.flatten(1).isfinite().all(1) for out in looks]).all(0)
    return RepeatedVerdicts(
        scores=scores,
        margin=torch.stack([task.margin(out, y) for out in looks]).median(0).values,
        prediction=torch.stack([task.predict(out) for out in looks]).mode(0).values,
        distance=distance(x, images, threat.norm),
        projected=outside,
        failed=~finite | silent,
        interval=_wilson_bounds(scores.double().mean(0), draws),
    )


def decide(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    x_adv: Tensor,
    threat: ThreatModel,
    draws: int = 0,
    seed: int = 0,
    task: Task = CLASSIFICATION,
    width: int = 64,
) -> Verdicts:
    """What ``judge`` says of adversarial images, or, with ``draws``, what ``judge_repeatedly`` says of a randomised model.

    Args:
        model: The original model, already in eval mode and float32.
        x: Clean images (N, ...), in [0, 1].
        y: Targets (N, ...).
        x_adv: What the attack returned, (N, ...).
        threat: Ball to check.
        draws: How often every image of a randomised model is looked at; 0 for the two looks of any other.
        seed: Seed of the draws.
        task: Score and margin.
        width: Padded batch width of the protocol.

    Raises:
        ConfigError: Fewer than 20 draws, and not 0.
    """
    told: dict[str, Any] = {"x_adv": x_adv, "threat": threat, "task": task, "width": width}
    if draws:
        return judge_repeatedly(model, x, y, draws=draws, seed=seed, **told).decided()
    return judge(model, x, y, **told)


def _wilson_bounds(mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The modified Wilson 95 % interval of means of ``count`` values in [0, 1]; conservative where the values lie between.

    As ``robench.metrics.stats.wilson``, which tests compare with it: metrics import no torch, and the judge no metrics.
    """
    z = 1.959963984540054
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (mean * (1 - mean) / count + z * z / (4 * count * count)).sqrt()
    low, high = (centre - half).clamp_min(0), (centre + half).clamp_max(1)
    return low.minimum(_poisson_end(mean, count)), high.maximum(1 - _poisson_end(1 - mean, count))


def _poisson_end(share: Tensor, count: int) -> Tensor:
    """Lower end after so few successes that the normal distribution misleads; 1, which binds nothing, after more."""
    few = min(len(_POISSON) - (1 if count > 50 else 2), count // 2)
    ends = torch.tensor([v / count for v in _POISSON[: few + 1]] + [1.0], dtype=share.dtype, device=share.device)
    # A mean that rounding left just below a whole number of successes is that number.
    return ends[(share * count + 1e-6).floor().long().clamp(0, few + 1)]


def _wilson(values: Tensor) -> Estimate:
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = _wilson_bounds(values.mean(), len(values))
    return Estimate(float(values.mean()), float(low), float(high), len(values))
