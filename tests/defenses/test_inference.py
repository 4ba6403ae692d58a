"""Defences at inference time: what they do to images, and that no gradient is put in place of the lost one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robench.defenses import TABLE
from robench.defenses._bit_depth import bit_depth
from robench.defenses._jpeg import compressed, jpeg
from robench.errors import ConfigError
from robench.models import weights_sha256
from robench.zoo import load

X = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_leaves_that_many_levels_at_most_half_a_step_away(bits: int) -> None:
    out = bit_depth(nn.Identity(), bits=bits)(X)
    steps = 2**bits - 1
    assert (out * steps - (out * steps).round()).abs().max() < 1e-4
    assert (out - X).abs().max() <= 0.5 / steps + 1e-6 and len(out.unique()) <= steps + 1


def test_bit_depth_has_a_zero_gradient() -> None:
    x = X.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(bit_depth(nn.Flatten())(x).sum(), x)[0], torch.zeros_like(x))


def test_jpeg_has_no_gradient() -> None:
    x = X.clone().requires_grad_()
    model = jpeg(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(model(x).sum(), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillow_s(channels: int) -> None:
    image = torch.rand(channels, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels = (image.numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[0], "L") if channels == 1 else Image.fromarray(pixels.transpose(1, 2, 0), "RGB")
    picture.save(buffer, format="JPEG", quality=60)
    want = np.asarray(Image.open(buffer), dtype=np.float32).reshape(16, 16, channels).transpose(2, 0, 1) / 255
    assert np.array_equal(compressed(image, 60).numpy(), want)


def test_jpeg_nears_the_image_as_quality_rises() -> None:
    smooth = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    errors = [(jpeg(nn.Identity(), quality=q)(smooth) - smooth).abs().mean().item() for q in (5, 95)]
    assert errors[1] < 0.01 < errors[0]


@pytest.mark.parametrize("name", TABLE)
def test_a_defended_model_keeps_its_weights_mode_and_most_of_its_accuracy(name: str) -> None:
    from robench.data._digits import digits

    model, test = load("digits-standard"), digits(split="validation")
    before = weights_sha256(model)
    defended = {"bit_depth": bit_depth, "jpeg": jpeg}[name](model)
    right = (defended(test.images()).argmax(1) == test.labels).float().mean()
    assert right > 0.9 and not defended.training and weights_sha256(model) == before


@pytest.mark.parametrize(("make", "args"), [(bit_depth, {"bits": 0}), (bit_depth, {"bits": 2.5}), (jpeg, {"quality": 99})])
def test_impossible_arguments_are_told(make, args: dict) -> None:
    with pytest.raises(ConfigError, match=r"must be in 1\.\."):
        make(nn.Identity(), **args)
