"""A stride-2 convolutional net: at most one million multiply-adds on a 1 x 32 x 32 image, so that attacks are cheap."""

from __future__ import annotations

from torch import Tensor, nn

from robench.registry import facts


@facts(version=1)
def small_cnn(*, num_classes: int = 10, in_channels: int = 1, width: int = 16, size: int = 32) -> nn.Module:
    """A net of three 3 x 3 stride-2 convolutions and one linear layer; logits (N, num_classes).

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, size, size).
        width: Channels of the first convolution; the next two have twice and four times as many.
        size: Height and width of the images in pixels.
    """
    side = -(-size // 8)
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * width * side * side, num_classes),
    )


class Levels(nn.Module):
    """Round pixels of [0, 1] to equally spaced levels.

    The gradient is zero in eval mode; in train mode it passes straight through, so that a net behind it can be trained.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * self.steps).round() / self.steps
        return x + (rounded - x).detach() if self.training else rounded


@facts(version=1)
def quantised_cnn(
    *, num_classes: int = 10, in_channels: int = 1, width: int = 16, size: int = 32, levels: int = 16
) -> nn.Module:
    """A ``small_cnn`` behind rounding to ``levels`` grey values: it hides its gradient, and is no defence.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, size, size) in [0, 1].
        width: Channels of the first convolution.
        size: Height and width of the images in pixels.
        levels: Grey values that are left, at least 2.

    Source: Athalye et al., ICML 2018, section 4 (shattered gradients: input quantisation hides, and does not protect).
    """
    net = small_cnn(num_classes=num_classes, in_channels=in_channels, width=width, size=size)
    return nn.Sequential(Levels(levels), net)
