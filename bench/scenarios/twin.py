"""How far a model without a gradient and the twin that lends it one agree: on clean, corrupted and adversarial images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robench.bpda import differentiable
from robench.errors import ModelError, must
from robench.inference import predict, untouched
from robench.registry import facts
from robench.scenarios.evasion import attack_hold
from robench.scenarios.objects import Hold, Objects, columns, walk
from robench.spec import ThreatModel

ATTACK = "pgd(steps=20)"
"""What makes the adversarial images: on the model, with the twin's gradients."""

CLEAN = "clean"


@facts(version=1)
def twin(objects: Objects, *, threat: str = "linf(8/255)") -> list[dict[str, Any]]:
    """One row per sample and kind of images: whether both predict the same, and how far their logits differ.

    The cell's further artifacts are corrupted images; ``images`` is ``clean``, a corruption or the threat.

    Raises:
        ModelError: The model offers no substitute with logits of its own.
    """
    parsed, smooth = ThreatModel.parse(threat), getattr(objects.net, "smooth", None)
    if smooth is None:
        remedy = "measure it on a deployed model, such as onnx_int8"
        raise ModelError(must("a model with a twin", "one with a method smooth", type(objects.net).__name__, remedy))
    rows: list[dict[str, Any]] = []
    net, _ = differentiable(objects.net)
    with untouched(objects.net):
        for name, severity, holds in _sets(objects):
            rows += walk(holds, lambda hold, n=name, s=severity: _compared(objects.net, smooth, hold, n, s))  # type: ignore[misc]
        rows += walk(objects.holds(), lambda hold: _adversarial(objects, net, smooth, hold, parsed))
    return rows


def _sets(objects: Objects) -> Iterator[tuple[str, int, Iterator[Hold]]]:
    yield CLEAN, 0, objects.holds()
    for position, artifact in enumerate(objects.cell.extra):
        told = artifact.inputs[0].builder.kwargs["corruption"], artifact.builder.kwargs["severity"]
        yield *told, objects.holds(objects.extra(position))


def _adversarial(objects: Objects, net: nn.Module, smooth: Any, hold: Hold, threat: ThreatModel) -> list[dict[str, Any]]:
    x_adv, _ = attack_hold(net, hold, attack=ATTACK, threat=threat, seed=objects.cell.seed)
    return _compared(objects.net, smooth, Hold(x_adv, hold.y, hold.ids, hold.width), str(threat), 0)


def _compared(model: nn.Module, smooth: Any, hold: Hold, name: str, severity: int) -> list[dict[str, Any]]:
    """Rows of both on the same images."""
    own, other = (predict(f, hold.x, width=hold.width).double() for f in (model, smooth))
    apart = (own - other).abs()
    return columns(
        sample=hold.ids,
        label=hold.y,
        images=name,
        severity=severity,
        agrees=((own.argmax(1) == other.argmax(1)) & apart.isfinite().all(1)).long(),
        difference_mean=apart.mean(1),
        difference_max=apart.amax(1),
        relative=apart.amax(1) / _spread(own),
    )


def _spread(logits: Tensor) -> Tensor:
    """Highest minus lowest logit, (N,), above 0."""
    return (logits.amax(1) - logits.amin(1)).clamp_min(torch.finfo(logits.dtype).tiny)
