"""A multilayer perceptron on flattened pixels."""

from __future__ import annotations

from torch import nn

from robench.registry import facts


@facts(version=1, ranges={"depth": ">= 0"})
def mlp(*, num_classes: int = 10, in_channels: int = 1, hidden: int = 96, depth: int = 2, size: int = 32) -> nn.Module:
    """A net of ``depth`` hidden ReLU layers of ``hidden`` units; logits (N, num_classes).

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, size, size).
        hidden: Units of every hidden layer.
        depth: Number of hidden layers; 0 is a linear model.
        size: Height and width of the images in pixels.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    features = in_channels * size * size
    for _ in range(depth):
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
