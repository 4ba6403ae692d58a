"""Distillation: a student learns a teacher's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import ConfigError, ModelError, must
from robench.ops.random import Draws
from robench.registry import facts


class Student(nn.Module):
    """A net together with its teacher, which is no part of its parameters."""

    def __init__(self, net: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.__dict__["teacher"] = teacher  # not registered: neither trained, nor counted, nor put in train mode

    def taught(self, x: Tensor) -> Tensor:
        """The teacher's logits (N, K), without a graph."""
        with torch.no_grad():
            logits: Tensor = self.__dict__["teacher"](x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


@facts(version=1)
def distilled(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, step: int, temperature: float = 4.0, alpha: float = 0.9
) -> Tensor:
    """alpha T^2 KL(teacher || student) of the probabilities at temperature T, plus (1 - alpha) cross-entropy; a scalar.

    Args:
        model: A ``Student``; takes pixels (N, C, H, W) in [0, 1], returns logits (N, K).
        x: The batch's images.
        y: Labels, int64 (N,), or shares of the classes, float (N, K).
        draws: Not used.
        step: Not used.
        temperature: Divides the logits of both, above 0.
        alpha: Weight of the teacher in [0, 1]; 0 is the plain control.

    Raises:
        ConfigError: temperature or alpha out of range.
        ModelError: The model has no teacher.

    Source: Hinton et al., arXiv 1503.02531, section 2 (with the factor T^2).
    """
    if not (temperature > 0 and 0 <= alpha <= 1):
        got = (temperature, alpha)
        raise ConfigError(must("temperature and alpha", "above 0, and in [0, 1]", got, "e.g. temperature=4, alpha=0.9"))
    if not isinstance(model, Student):
        remedy = "use the compression distill(arch=...), which gives it one"
        raise ModelError(must("a model for the recipe distilled", "with a teacher", type(model).__name__, remedy))
    logits = model(x)
    plain = F.cross_entropy(logits, y)
    if alpha == 0:
        return plain
    soft = (model.taught(x) / temperature).log_softmax(1)
    gap = F.kl_div((logits / temperature).log_softmax(1), soft, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * gap + (1 - alpha) * plain
