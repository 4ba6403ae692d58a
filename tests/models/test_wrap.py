"""Normalisation inside the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robench.errors import ConfigError
from robench.models import Normalised


def test_pixels_are_mapped_to_the_range_and_normalised_per_channel() -> None:
    model = Normalised(nn.Identity(), mean=(10.0, 20.0), std=(2.0, 4.0), input_range=(0.0, 255.0))
    out = model(torch.full((1, 2, 1, 1), 0.2))
    assert torch.allclose(out.flatten(), torch.tensor([(51 - 10) / 2, (51 - 20) / 4]))


def test_symmetric_range_and_gradient() -> None:
    x = torch.rand(2, 1, 3, 3, requires_grad=True)
    out = Normalised(nn.Identity(), input_range=(-1.0, 1.0))(x)
    assert torch.allclose(out, 2 * x - 1)
    assert torch.allclose(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, 2.0))


def test_defaults_change_no_bit() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalised(nn.Identity())(x), x)


def test_statistics_are_buffers_and_follow_the_model() -> None:
    model = Normalised(nn.Identity(), mean=(0.5,), std=(0.25,)).double()
    assert {n for n, _ in model.named_buffers()} == {"mean", "std"} and model.mean.dtype == torch.float64
    assert not list(model.parameters())


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ({"std": (0.0,)}, "positive"),
        ({"std": (float("nan"),)}, "positive"),
        ({"mean": (0.0, 0.0)}, "as long as mean"),
        ({"input_range": (1.0, 0.0)}, "low < high"),
    ],
)
def test_impossible_values_are_told(args: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Normalised(nn.Identity(), **args)
