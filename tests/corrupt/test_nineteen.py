"""The corruptions of Hendrycks & Dietterich against slow twins of OpenCV, scipy, scikit-image and the package's code."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.color
import skimage.filters
import torch
from torch import Tensor

from robench.corrupt._blur import defocus_blur, disk, glass_blur
from robench.corrupt._elastic import affine, elastic_transform
from robench.corrupt._light import saturate
from robench.corrupt._motion import enlarged, motion_blur, smeared, zoom_blur
from robench.corrupt._noise import gaussian_noise, impulse_noise, speckle_noise
from robench.corrupt._spatter import MUD, WATER, drops, spatter
from robench.corrupt._weather import _FROST, _textures, fog, frost, grey, snow
from robench.corrupt.apply import CORRUPTIONS, corrupt
from robench.corrupt.edges import canny, distance, equalised
from robench.corrupt.plasma import plasma
from robench.corrupt.tables import BENCHMARK, EXTRA, SEVERITIES, TABLES, level_of
from robench.corrupt.words import angles, normals
from robench.ops.random import Draws

PUBLISHED = ("cifar-v1", "tiny-v1", "imagenet-v1")


def draws_of(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def pictures(n: int, side: int, channels: int = 3) -> Tensor:
    """Smooth pictures with some noise, on the 8-bit grid."""
    rng = np.random.default_rng(side)
    soft = scipy.ndimage.gaussian_filter(rng.uniform(-9, 10, (n, channels, side, side)), (0, 0, side / 12, side / 12))
    return torch.from_numpy((np.clip(soft + rng.normal(0.2, 0.05, soft.shape), 0, 1) * 255).round() / 255).float()


def hwc(x: Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).double().numpy()


def near(found: Tensor, wanted: np.ndarray, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(hwc(found), wanted, atol=atol, rtol=0)


def levels(name: str, tables: tuple[str, ...] = PUBLISHED) -> list:
    return sorted({level_of(t, name, s) for t in tables for s in SEVERITIES})


# noise


def test_noise_is_normal() -> None:
    noise = normals(draws_of(64), "n", (3, 32, 32)).flatten().double().numpy()
    assert scipy.stats.kstest(noise, "norm").pvalue > 0.001
    assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(len(noise)))
    assert noise.var() == pytest.approx(1, abs=0.01)
    assert 3.9 < np.abs(noise).max() < 4.4
    grey_ = gaussian_noise(torch.full((64, 1, 32, 32), 0.5), 0.1, draws=draws_of(64)) - 0.5
    assert scipy.stats.kstest(grey_.flatten().double().numpy() / 0.1, "norm").pvalue > 0.001


def test_speckle_grows_with_the_pixel() -> None:
    x = torch.tensor([0.0, 0.1, 0.4])[None, :, None, None].expand(32, 3, 32, 32)
    noise = speckle_noise(x, 0.2, draws=draws_of(32)) - x
    assert noise[:, 0].abs().max() == 0
    for channel, value in ((1, 0.1), (2, 0.4)):
        assert scipy.stats.kstest(noise[:, channel].flatten().double().numpy() / (0.2 * value), "norm").pvalue > 0.001


@pytest.mark.parametrize("amount", [0.01, 0.07, 0.27])
def test_impulses_are_binomial_and_salt_is_as_frequent_as_pepper(amount: float) -> None:
    x = torch.full((100, 3, 32, 32), 0.5)
    out = impulse_noise(x, amount, draws=draws_of(100))
    salt, pepper = int((out == 1).sum()), int((out == 0).sum())
    assert int((out == 0.5).sum()) + salt + pepper == out.numel()
    assert scipy.stats.binomtest(salt + pepper, out.numel(), amount).pvalue > 0.001
    assert scipy.stats.binomtest(salt, salt + pepper, 0.5).pvalue > 0.001


# blur


@pytest.mark.parametrize("level", levels("defocus_blur"))
def test_defocus_equals_opencv(level: tuple[float, float], published_code) -> None:
    kernel = published_code.disk(radius=level[0], alias_blur=level[1])
    np.testing.assert_allclose(disk(*level), kernel, atol=2e-8)
    x = pictures(2, 40)
    for image, out in zip(x, defocus_blur(x, level, draws=draws_of(2)), strict=True):
        planes = [cv2.filter2D(plane.double().numpy(), -1, kernel) for plane in image]
        near(out, np.clip(np.stack(planes, -1), 0, 1))


@pytest.mark.parametrize("level", levels("glass_blur"))
def test_glass_equals_the_sequential_code(level: tuple[float, float, float]) -> None:
    x, draws = pictures(2, 24), draws_of(2)
    words = draws.shorts("glass", (int(level[2]), 2, 24, 24)).numpy()
    for i, out in enumerate(glass_blur(x, level, draws=draws)):
        off = np.abs(hwc(out) - glass_twin(hwc(x[i]), level, words[i]))
        assert (off > 1e-5).mean() < 0.02 and off.max() <= 1.1 / 255  # the cut to 8 bits before the copies


def glass_twin(image: np.ndarray, level: tuple[float, float, float], words: np.ndarray) -> np.ndarray:
    """The published loops, assignment through views included."""
    sigma, reach, rounds = level[0], int(level[1]), int(level[2])
    x = np.uint8(skimage.filters.gaussian(image, sigma=sigma, channel_axis=-1) * 255 + 2.0**-10)
    for turn in range(rounds):
        for h in range(x.shape[0] - reach, reach, -1):
            for w in range(x.shape[1] - reach, reach, -1):
                dy, dx = ((words[turn, axis, h, w] * 2 * reach) // 65536 - reach for axis in (0, 1))
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return np.clip(skimage.filters.gaussian(x / 255.0, sigma=sigma, channel_axis=-1), 0, 1)


@pytest.mark.parametrize("level", levels("motion_blur"))
def test_motion_equals_the_reference(level: tuple[float, float], published_code) -> None:
    x, draws = pictures(4, 56), draws_of(4)
    out = motion_blur(x, level, draws=draws)
    turned = angles(draws, "angle", -45.0, 45.0).numpy()
    assert turned.min() >= -45 and turned.max() <= 45 and turned.std() > 5
    for image, angle, ours in zip(x, turned, out, strict=True):
        wanted = published_code._motion_blur(hwc(image), radius=int(level[0]), sigma=level[1], angle=angle)
        near(ours, np.clip(wanted, 0, 1), 1e-6)


def test_motion_beyond_the_image_repeats_its_edge() -> None:
    x = pictures(1, 8, 1)
    along = smeared(x, torch.zeros(1, dtype=torch.float64), radius=20, sigma=15)
    weight = np.exp(-(np.arange(41) ** 2) / (2 * 15**2))
    columns = np.minimum(np.arange(8)[:, None] + np.arange(41), 7)
    wanted = (x[0, 0].double().numpy()[:, columns] * weight / weight.sum()).sum(-1)
    np.testing.assert_allclose(along[0, 0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("side", [31, 32, 64])
@pytest.mark.parametrize("level", levels("zoom_blur"))
def test_zoom_equals_scipy(level: tuple[float, float], side: int) -> None:
    x = pictures(1, side)
    factors = np.arange(1, *level)
    image = hwc(x[0])
    wanted = (image + sum(clipped_zoom(image, f) for f in factors)) / (len(factors) + 1)
    near(zoom_blur(x, level, draws=draws_of(1))[0], np.clip(wanted, 0, 1))


def clipped_zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of an image, enlarged by scipy."""
    side = len(image)
    kept = int(np.ceil(side / factor))
    top = (side - kept) // 2
    spread = scipy.ndimage.zoom(image[top : top + kept, top : top + kept], (factor, factor, 1)[: image.ndim], order=1)
    trim = (len(spread) - side) // 2
    return spread[trim : trim + side, trim : trim + side]


# weather


@pytest.mark.parametrize("table", PUBLISHED)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_equals_a_slow_twin(table: str, severity: int, published_code) -> None:
    level, x, draws = level_of(table, "snow", severity), pictures(2, 48), draws_of(2)
    noise = normals(draws, "flakes", (1, 48, 48)).double().numpy()
    turned = angles(draws, "angle", -135.0, -45.0).numpy()
    out = snow(x, level, draws=draws)
    for i in range(2):
        image = np.float32(hwc(x[i]))
        layer = clipped_zoom(np.clip(noise[i, 0] * level[1] + level[0], -2, 2), level[2])
        layer[layer < level[3]] = 0
        layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8) / 255.0
        layer = published_code._motion_blur(layer, radius=int(level[4]), sigma=level[5], angle=turned[i])
        layer = np.round(layer * 255)[..., None] / 255
        light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5
        image = level[6] * image + (1 - level[6]) * np.maximum(image, light)
        wanted = np.clip(image + layer + np.rot90(layer, k=2), 0, 1)
        off = np.abs(hwc(out[i]) - wanted)
        assert (off > 1e-5).mean() < 0.01 and off.max() <= 2.1 / 255


@pytest.mark.parametrize("decay", [1.4, 2.0, 3.0])
@pytest.mark.parametrize("side", [32, 64])
def test_the_fractal_equals_the_reference(side: int, decay: float, published_code, monkeypatch) -> None:
    draws = draws_of(3)
    stream = ((draws.shorts("p", (side * side - 1,)).double() + 0.5) / 2**15 - 1).numpy()
    maps = plasma(draws, "p", side, decay=decay)
    for i in range(3):
        words = iter(stream[i])

        def uniform(low: float, high: float, shape: tuple[int, int], words=words) -> np.ndarray:
            return np.array([next(words) for _ in range(shape[0] * shape[1])]).reshape(shape) * high

        monkeypatch.setattr(np.random, "uniform", uniform)
        np.testing.assert_allclose(maps[i].numpy(), published_code.plasma_fractal(side, decay), atol=1e-12)
        assert next(words, None) is None


@pytest.mark.parametrize("level", levels("fog", ("cifar-v1",)))
def test_fog_keeps_the_brightest_value(level: tuple[float, float]) -> None:
    x, draws = pictures(2, 32) * 0.8, draws_of(2)
    haze = plasma(draws, "haze", 32, decay=level[1]).numpy()
    for i, out in enumerate(fog(x, level, draws=draws)):
        most = x[i].max().item()
        near(out, np.clip((hwc(x[i]) + level[0] * haze[i][..., None]) * most / (most + level[0]), 0, 1))


def test_frost_lays_one_of_five_textures_over_each_image() -> None:
    x = pictures(1, 32).expand(80, 3, 32, 32)
    bare = frost(torch.zeros_like(x), (1.0, 1.0), draws=draws_of(80))
    torch.testing.assert_close(frost(x, (0.75, 0.45), draws=draws_of(80)), (0.75 * x + 0.45 * bare).clamp(0, 1))
    textures = _textures(256, 3)
    means = bare.mean((2, 3))
    closest = (means[:, None] - torch.tensor(_FROST)[None, :, :3]).norm(dim=2).argmin(1)
    assert set(closest.tolist()) == set(range(5))
    for c, (*tint, contrast) in enumerate(_FROST):
        texture = textures[:, c]
        assert texture.mean((1, 2)).tolist() == pytest.approx(tint, abs=0.02)
        assert texture.std().item() < 2.5 * contrast
    assert len({row.tobytes() for row in bare.numpy()}) > 75


def test_frost_of_one_channel_is_grey() -> None:
    assert frost(torch.zeros(4, 1, 32, 32), (1.0, 1.0), draws=draws_of(4)).shape == (4, 1, 32, 32)


# digital


@pytest.mark.parametrize("level", levels("elastic_transform"))
def test_elastic_equals_a_slow_twin(level: tuple[float, float, float]) -> None:
    side, draws = 40, draws_of(2)
    x = pictures(2, side)
    corners = ((draws.shorts("corners", (3, 2)).double() + 0.5) / 2**15 - 1).numpy()
    noise = ((draws.shorts("displacement", (2, side, side)).double() + 0.5) / 2**15 - 1).numpy()
    for i, out in enumerate(elastic_transform(x, level, draws=draws)):
        near(out, elastic_twin(hwc(x[i]), np.array(level) * side, corners[i], noise[i]), 2e-4)


def elastic_twin(image: np.ndarray, level: np.ndarray, corners: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The published code with scipy's interpolation in the place of OpenCV's, which rounds positions to 1/32 pixel."""
    side = len(image)
    centre, third = np.float32([side // 2, side // 2]), side // 3
    old = np.float32([centre + third, [centre[0] + third, centre[1] - third], centre - third])
    matrix = cv2.getAffineTransform(old, (old + corners * level[2]).astype(np.float32))
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    cols, rows = np.meshgrid(np.arange(side), np.arange(side))
    across, down = (back[i, 0] * cols + back[i, 1] * rows + back[i, 2] for i in (0, 1))
    turned = [scipy.ndimage.map_coordinates(image[..., c], (down, across), order=1, mode="mirror") for c in range(3)]
    if level[0] == 0:
        return np.clip(np.stack(turned, -1), 0, 1)
    dx, dy = (skimage.filters.gaussian(n, level[1], mode="reflect", truncate=3) * level[0] for n in noise)
    moved = [scipy.ndimage.map_coordinates(p, (rows + dy, cols + dx), order=1, mode="reflect") for p in turned]
    return np.clip(np.stack(moved, -1), 0, 1)


def test_three_points_go_where_the_affine_map_says() -> None:
    start, end = torch.rand(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.eye(3)[:, :2]
    matrix, offset = affine(start, end.double())
    torch.testing.assert_close(torch.einsum("nij,npj->npi", matrix, start) + offset[:, None], end.double().expand(4, 3, 2))


# extra


@pytest.mark.parametrize("level", levels("saturate"))
def test_saturate_equals_scikit_image(level: tuple[float, float]) -> None:
    x = pictures(2, 16)
    x[0, :, :4] = x[0, :1, :4]  # grey
    x[0, :, 5] = 0
    for image, out in zip(x, saturate(x, level, draws=draws_of(2)), strict=True):
        hsv = skimage.color.rgb2hsv(hwc(image))
        hsv[..., 1] = np.clip(hsv[..., 1] * level[0] + level[1], 0, 1)
        near(out, np.clip(skimage.color.hsv2rgb(hsv), 0, 1), 1e-6)


def liquids(n: int, side: int, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    soft = scipy.ndimage.gaussian_filter(rng.normal(0.65, 0.3, (n, side, side)), (0, sigma, sigma), mode="nearest")
    return np.where(soft < 0.68, 0, np.clip(soft, 0, 1))


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 4.0])
def test_edges_distances_and_ranks_equal_opencv(sigma: float) -> None:
    layers = (liquids(6, 48, sigma) * 255).astype(np.uint8)
    layers[5] = 0
    ours = canny(torch.from_numpy(layers).int(), 50, 150)
    away = distance(ours, most=20)
    for i, layer in enumerate(layers):
        edges = cv2.Canny(layer, 50, 150)
        assert np.array_equal(ours[i].numpy(), edges > 0)
        _, wanted = cv2.threshold(cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5), 20, 20, cv2.THRESH_TRUNC)
        np.testing.assert_allclose(away[i].numpy(), wanted, atol=2e-4)
        ranks = equalised(torch.from_numpy(wanted)[None].floor(), levels=21)[0].numpy()
        assert np.array_equal(ranks, cv2.equalizeHist(wanted.astype(np.uint8)))


@pytest.mark.parametrize("sigma", [0.8, 2.0, 4.0])
def test_drops_equal_opencv(sigma: float) -> None:
    layers = liquids(6, 48, sigma)
    ours = drops(torch.from_numpy(layers))
    for layer, out in zip(layers, ours, strict=True):
        liquid = (layer * 255).astype(np.uint8)
        dist = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
        _, dist = cv2.threshold(dist, 20, 20, cv2.THRESH_TRUNC)
        dist = cv2.equalizeHist(cv2.blur(dist, (3, 3)).astype(np.uint8))
        dist = cv2.filter2D(dist, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
        wanted = liquid * cv2.blur(dist, (3, 3)).astype(np.float32)
        np.testing.assert_allclose(out[0].numpy(), wanted / wanted.max(), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_water_shines_and_mud_covers(channels: int) -> None:
    x = torch.full((8, channels, 48, 48), 0.5)
    water = spatter(x, level_of("imagenet-v1", "spatter", 2), draws=draws_of(8))
    mud = spatter(x, level_of("imagenet-v1", "spatter", 5), draws=draws_of(8))
    assert bool((water >= x).all()) and 0.02 < (water > x).float().mean() < 0.9
    brown = grey(torch.tensor(MUD)[None, :, None, None]).item() if channels == 1 else MUD
    worst = mud.flatten(2).amin((0, 2))
    assert worst.tolist() == pytest.approx([brown] if channels == 1 else list(brown), abs=0.05)
    assert WATER[1] == WATER[2]


def test_no_drop_no_shine() -> None:
    assert drops(torch.zeros(2, 16, 16)).abs().sum() == 0


# all


@pytest.mark.parametrize("name", ["contrast", "brightness", "pixelate", "jpeg_compression", "defocus_blur", "saturate"])
def test_deterministic_ones_equal_the_reference_within_a_grey_value(name: str, published_code) -> None:
    from PIL import Image

    x = pictures(2, 64)
    for severity in SEVERITIES:
        ours = corrupt(x, name, severity=severity, table="imagenet-v1", ids=torch.arange(2)).mul(255).round()
        for image, out in zip(x, ours, strict=True):
            picture = Image.fromarray((hwc(image) * 255).round().astype(np.uint8))
            theirs = np.uint8(np.asarray(getattr(published_code, name)(picture, severity)))
            off = np.abs(theirs.astype(int) - out.permute(1, 2, 0).numpy())
            assert off.max() <= 1 and (off > 0).mean() < 0.15  # theirs cuts 99.99999 to 99


@pytest.mark.parametrize("name", [*BENCHMARK, *EXTRA])
def test_damage_grows_with_severity(name: str) -> None:
    x = pictures(16, 32)
    means = [
        (corrupt(x, name, severity=s, table="cifar-v1", ids=torch.arange(16)) - x).abs().mean().item() for s in SEVERITIES
    ]
    assert min(means) > 0
    if CORRUPTIONS[name].facts["harder"] != "table":
        assert means == sorted(means)


def test_enlarging_by_one_is_the_identity() -> None:
    assert np.array_equal(enlarged(32, 1.0), np.eye(32))
    assert all(np.allclose(enlarged(n, f).sum(1), 1) for n in (28, 32, 225) for f in (1.01, 1.26, 4.5))


def test_tables_of_the_test_are_all_there() -> None:
    assert set(PUBLISHED) <= set(TABLES)
