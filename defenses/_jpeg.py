"""JPEG compression before the model, at inference time only."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from robench.defenses._behind import Behind
from robench.errors import ConfigError, must
from robench.registry import facts


def compressed(image: Tensor, quality: int) -> Tensor:
    """One image (C, H, W) in [0, 1] after JPEG, on the CPU: grey for one channel, colour for three."""
    pixels = np.asarray((image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.atleast_3d(np.asarray(Image.open(buffer)))
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1).to(torch.float32) / 255


class Jpeg(nn.Module):
    """A JPEG round trip of every image, through which no gradient leads."""

    substitute = "identity"
    """Stand-in whose gradient an attack takes unless it is told another."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([compressed(image, self.quality) for image in x]).to(x)


@facts(version=1)
def jpeg(model: nn.Module, *, quality: int = 75) -> nn.Module:
    """The model behind a JPEG round trip of its images; the given model is used, not copied.

    Args:
        model: Takes pixels (N, C, H, W) in [0, 1] with one or three channels.
        quality: JPEG quality of Pillow, 1 to 95.

    Raises:
        ConfigError: ``quality`` is not in 1..95.

    Source: Guo et al., ICLR 2018, section 3.2; broken by: Athalye et al., ICML 2018.
    """
    if quality not in range(1, 96):
        raise ConfigError(must("quality of jpeg", "in 1..95", quality, "e.g. jpeg(quality=75)"))
    return Behind(Jpeg(quality), model)
