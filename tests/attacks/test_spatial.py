"""Rotations and translations beside exact moves of pixels, scipy's, and a loop over the whole grid."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from robench.attacks._spatial import spatial_grid, spatial_random, transformed
from robench.errors import ConfigError
from robench.ops.random import Draws


def same(count, *setting):
    return torch.tensor([setting] * count, dtype=torch.float64)


@pytest.mark.parametrize("side", [8, 9])
def test_whole_pixels_and_quarter_turns_move_exactly(side):
    x = torch.rand(3, 2, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for turns in range(-3, 4):
        expected = torch.rot90(x, turns, (2, 3))
        assert torch.allclose(transformed(x, same(3, 90.0 * turns, 0, 0)), expected, atol=1e-12)
    for down, right in ((0, 1), (2, 0), (-1, 3)):
        expected = torch.zeros_like(x)
        inner = x[:, :, max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)]
        expected[:, :, max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)] = inner
        assert torch.allclose(transformed(x, same(3, 0, down / side, right / side)), expected, atol=1e-12)
    assert torch.equal(transformed(x, same(3, 0, 0, 0)), x)


@pytest.mark.parametrize("angle", [-30.0, 7.0, 20.0])
def test_a_rotation_is_scipys_on_a_wide_image_too(angle):
    x = torch.zeros(1, 1, 20, 30, dtype=torch.float64)
    x[:, :, 6:14, 8:22] = torch.rand(8, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = ndimage.rotate(x[0, 0].numpy(), angle, reshape=False, order=1, mode="constant")
    assert np.allclose(transformed(x, same(1, angle, 0, 0))[0, 0].numpy(), theirs, atol=1e-6)


def test_a_shift_follows_the_rotation():
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[:, :, 5:11, 5:11] = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = transformed(x, same(1, 25.0, 0, 0))
    both = transformed(x, same(1, 25.0, 2 / 16, -1 / 16))
    assert torch.allclose(both[:, :, 2:, :-1], turned[:, :, :-2, 1:], atol=1e-12)


def test_the_grid_finds_the_worst_of_all(net, held_out):
    x, y, _ = (part[:25] for part in held_out)
    angles, shifts = (-12.0, -6.0, 0.0, 6.0), (-0.05, 0.0, 0.05)
    found = spatial_grid(net, x, y, angles=angles, shifts=shifts)
    with torch.no_grad():
        for i in range(25):
            every = [(a, d, r) for a in angles for d in shifts for r in shifts]
            logits = net(transformed(x[i : i + 1].expand(36, -1, -1, -1), torch.tensor(every, dtype=torch.float64)))
            others = logits.clone()
            others[:, y[i]] = -math.inf
            margin = logits[:, y[i]] - others.amax(1)
            first = int((margin <= 0).nonzero()[0]) if (margin <= 0).any() else int(margin.argmin())
            assert found.setting[i].tolist() == list(every[first])
            assert torch.isclose(found.margin[i], margin[first], atol=1e-5)
            assert found.forwards[i] == (first + 1 if margin[first] <= 0 else 36)
    assert 3 < found.broken.sum() < 25
    assert torch.equal(net(found.images).argmax(1) != y, found.broken)


def test_random_ones_stay_within_reach_and_depend_on_no_company(net, held_out):
    x, y, ids = (part[:30] for part in held_out)

    def run(rows, draws=10):
        return spatial_random(net, x[rows], y[rows], seeds=Draws(0, ids[rows]), draws=draws, angle=20.0, shift=0.1)

    whole = run(torch.arange(30))
    assert (whole.setting.abs() <= torch.tensor([20.0, 0.1, 0.1])).all() and whole.setting.abs().amin() > 0
    assert torch.equal(run(torch.arange(29, -1, -1)).images.flip(0), whole.images)
    assert torch.equal(torch.cat([run(rows).images for rows in torch.arange(30).split(7)]), whole.images)
    more = run(torch.arange(30), draws=40)
    assert (more.margin <= whole.margin).all() and more.broken.sum() > whole.broken.sum()
    assert (whole.forwards[~whole.broken] == 10).all()


def test_what_looks_at_nothing_is_refused(net, held_out):
    x, y, ids = (part[:2] for part in held_out)
    with pytest.raises(ConfigError, match="angles and shifts"):
        spatial_grid(net, x, y, angles=())
    with pytest.raises(ConfigError, match="angles and shifts"):
        spatial_grid(net, x, y, shifts=(math.nan,))
    for options in ({"draws": 0}, {"angle": -1.0}, {"shift": math.inf}):
        with pytest.raises(ConfigError, match="draws, angle and shift"):
            spatial_random(net, x, y, seeds=Draws(0, ids), **options)
    with pytest.raises(ConfigError, match="images and settings"):
        transformed(x, same(3, 0, 0, 0))
