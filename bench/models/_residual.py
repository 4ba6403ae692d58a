"""Pre-activation residual nets for images of about 32 x 32: ResNet-18 and wide residual nets."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import ConfigError, must
from robench.registry import facts


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch norm and ReLU, around a shortcut.

    Source: He et al., ECCV 2016 (identity mappings), figure 4(e); a projected shortcut starts after the first activation.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = channels == out and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(active)
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active)))) + short
        return y


def _group(channels: int, out: int, *, blocks: int, stride: int) -> nn.Sequential:
    rest = (PreActBlock(out, out, 1) for _ in range(blocks - 1))
    return nn.Sequential(PreActBlock(channels, out, stride), *rest)


def _net(stem: nn.Conv2d, widths: tuple[int, ...], *, blocks: int, num_classes: int) -> nn.Module:
    """Stem, one group per width (the first keeps the size, each further one halves it), mean over the plane, logits."""
    pairs = pairwise((stem.out_channels, *widths))
    groups = (_group(a, b, blocks=blocks, stride=1 + (i > 0)) for i, (a, b) in enumerate(pairs))
    head = (nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))
    return nn.Sequential(stem, *groups, *head)


@facts(version=1)
def resnet18(*, num_classes: int = 10, in_channels: int = 1, width: int = 64) -> nn.Module:
    """A PreAct-ResNet-18 with a 3 x 3 stem, for images of any size; logits (N, num_classes).

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, H, W).
        width: Channels of the first group; 64 is the published net.

    Source: He et al., ECCV 2016 (identity mappings in deep residual networks).
    """
    stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    return _net(stem, (width, 2 * width, 4 * width, 8 * width), blocks=2, num_classes=num_classes)


@facts(version=1)
def wrn(*, num_classes: int = 10, in_channels: int = 1, depth: int = 28, width: int = 10) -> nn.Module:
    """A wide residual net WRN-depth-width without dropout, for images of any size; logits (N, num_classes).

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, H, W).
        depth: Number of convolutions, 6 k + 4.
        width: Factor on the channels 16, 32 and 64 of the three groups.

    Raises:
        ConfigError: ``depth`` is not 6 k + 4.

    Source: Zagoruyko & Komodakis, BMVC 2016, table 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(must("depth of wrn", "6 k + 4, at least 10", depth, "e.g. wrn(depth=28, width=10)"))
    stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
    return _net(stem, (16 * width, 32 * width, 64 * width), blocks=(depth - 4) // 6, num_classes=num_classes)
