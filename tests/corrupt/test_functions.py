"""Each corruption against an independent implementation or a closed form."""

from __future__ import annotations

import io

import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image
from torch import Tensor

from robench.corrupt._blur import gaussian_blur
from robench.corrupt._digital import pixelate
from robench.corrupt._geometry import rotate, rotation
from robench.corrupt._jpeg import jpeg
from robench.corrupt._light import brightness, contrast
from robench.corrupt._noise import gaussian_noise, shot_noise
from robench.ops.random import Draws


def _draws(n: int) -> Draws:
    return Draws(0, torch.arange(n))


def _bytes(n: int, channels: int, height: int, width: int) -> np.ndarray:
    """Random 8-bit pictures (N, H, W, C)."""
    return np.random.default_rng(1).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _pil(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


@pytest.mark.parametrize("sigma", [0.4, 0.6, 1.0, 2.5, 6.0])
def test_gaussian_blur_equals_scipy(sigma: float) -> None:
    x = _tensor(_bytes(2, 3, 20, 17))
    blurred = gaussian_blur(x, sigma, draws=_draws(2))
    wanted = scipy.ndimage.gaussian_filter(x.double().numpy(), sigma, mode="nearest", truncate=4, axes=(2, 3))
    np.testing.assert_allclose(blurred.numpy(), wanted, atol=1e-6)
    flat = torch.full((1, 1, 9, 9), 100 / 255)
    torch.testing.assert_close(gaussian_blur(flat, sigma, draws=_draws(1)), flat, atol=2e-7, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [95, 80, 40, 25, 7, 1])
@pytest.mark.parametrize("size", [(24, 32), (17, 33), (5, 4), (64, 64)])
def test_jpeg_equals_pillow(channels: int, size: tuple[int, int], quality: int) -> None:
    pictures = _bytes(2, channels, *size)
    out = jpeg(_tensor(pictures), quality, draws=_draws(2))
    for picture, ours in zip(pictures, out, strict=True):
        buffer = io.BytesIO()
        _pil(picture).save(buffer, "JPEG", quality=quality)
        wanted = np.asarray(Image.open(buffer)).reshape(picture.shape)
        assert np.array_equal((ours * 255).round().byte().permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (31, 47), (224, 224)])
@pytest.mark.parametrize("level", [0.95, 0.75, 0.65, 0.3, 0.25, 0.1])
def test_pixelate_equals_pillow(channels: int, size: tuple[int, int], level: float) -> None:
    pictures = _bytes(1, channels, *size)
    ours = (pixelate(_tensor(pictures), level, draws=_draws(1))[0] * 255).round().byte().permute(1, 2, 0).numpy()
    small = _pil(pictures[0]).resize((int(size[1] * level), int(size[0] * level)), Image.Resampling.BOX)
    wanted = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX)).reshape(pictures[0].shape)
    assert np.array_equal(ours, wanted)


def test_pixelate_by_a_whole_number_is_the_block_mean() -> None:
    x = _tensor(_bytes(1, 1, 8, 8))
    blocks = torch.nn.functional.avg_pool2d(x, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert (pixelate(x, 0.25, draws=_draws(1)) - blocks).abs().max() <= 1 / 255


def test_contrast_is_the_mean_plus_a_share_of_the_rest() -> None:
    x = _tensor(_bytes(3, 3, 16, 16))
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(contrast(x, 0.3, draws=_draws(3)), mean + 0.3 * (x - mean))
    torch.testing.assert_close(contrast(x, 0.0, draws=_draws(3)), mean.expand_as(x))
    torch.testing.assert_close(contrast(x, 1.0, draws=_draws(3)), x)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.8])
def test_brightness_equals_a_shift_of_v_in_hsv(level: float) -> None:
    x = _tensor(_bytes(2, 3, 8, 8))
    x[0, :, 0, 0] = 0
    hsv = matplotlib.colors.rgb_to_hsv(x.permute(0, 2, 3, 1).double().numpy())
    hsv[..., 2] = np.clip(hsv[..., 2] + level, 0, 1)
    wanted = matplotlib.colors.hsv_to_rgb(hsv).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(brightness(x, level, draws=_draws(2)).numpy(), wanted, atol=1e-6)


def test_brightness_of_one_channel_is_a_clipped_sum() -> None:
    x = _tensor(_bytes(2, 1, 8, 8))
    torch.testing.assert_close(brightness(x, 0.3, draws=_draws(2)), (x + 0.3).clamp(max=1))


def test_gaussian_noise_has_the_level_as_its_deviation() -> None:
    noise = gaussian_noise(torch.full((4, 3, 64, 64), 0.5), 0.08, draws=_draws(4)) - 0.5
    assert noise.std().item() == pytest.approx(0.08, rel=0.02)
    assert abs(noise.mean().item()) < 0.002


@pytest.mark.parametrize("level", [60.0, 500.0, 4.11])
def test_shot_noise_is_poisson(level: float) -> None:
    grey = 77
    noisy = shot_noise(torch.full((8, 3, 64, 64), grey / 255), level, draws=_draws(8)).mul(255).round().long().flatten()
    counts = np.arange(int(4 * level) + 40)
    values = np.floor(np.minimum(counts / level, 1) * 255 + 1e-9).astype(int)
    wanted = np.bincount(values, scipy.stats.poisson.pmf(counts, grey / 255 * level), minlength=256) * len(noisy)
    found = np.bincount(noisy.numpy(), minlength=256)
    bins = wanted > 5
    assert ((found - wanted)[bins] ** 2 / wanted[bins]).sum() < scipy.stats.chi2.ppf(0.9999, bins.sum())
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(shot_noise(black, level, draws=_draws(1)), black)


@pytest.mark.parametrize("degrees", [7.0, -31.0, 120.0])
def test_rotation_equals_scipy_where_zeros_do_not_mix(degrees: float) -> None:
    x = torch.zeros(1, 1, 33, 24)
    x[..., 9:25, 6:18] = _tensor(_bytes(1, 1, 16, 12))
    wanted = scipy.ndimage.rotate(x[0, 0].double().numpy(), degrees, reshape=False, order=1, mode="constant")
    np.testing.assert_allclose(rotate(x, degrees)[0, 0].numpy(), wanted, atol=1e-6)


def test_a_quarter_turn_and_no_turn_are_exact() -> None:
    x = _tensor(_bytes(2, 3, 9, 9))
    torch.testing.assert_close(rotate(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-6, rtol=0)
    assert torch.equal(rotate(x, 0.0), x)


def test_rotation_takes_either_sign_about_half_the_time() -> None:
    x = _tensor(_bytes(1, 1, 12, 12)).expand(400, 1, 12, 12)
    out = rotation(x, 20.0, draws=_draws(400))
    left, right = rotate(x[:1], 20.0), rotate(x[:1], -20.0)
    lefts, rights = ((out == turned).flatten(1).all(1) for turned in (left, right))
    assert bool((lefts ^ rights).all())
    assert 160 < int(lefts.sum()) < 240
