"""Augmentation arms: range, seeds, labels, and against slow twins, Pillow and kornia."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats

from robench import catalog
from robench.defenses import _augmix
from robench.defenses._augmix import OPERATIONS, augmix, jensen_shannon
from robench.defenses._cutting import cutout
from robench.defenses._flip_crop import crop
from robench.defenses._mixing import cutmix, mixup
from robench.defenses.training import AUGMENTATIONS, train
from robench.errors import ConfigError
from robench.models import fresh
from robench.ops.random import Draws

NAMES = sorted(AUGMENTATIONS)
KORNIA = ("randaugment", "trivialaugment")
G = torch.Generator().manual_seed(3)


def batch(channels: int = 3, n: int = 24, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, Draws]:
    x = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n) % 5, Draws(7, torch.arange(n) + 100)


def run(name: str, channels: int = 3, *, seed: int = 7, step: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x, y, draws = batch(channels)
    return AUGMENTATIONS[name].load()(x, y, num_classes=5, draws=Draws(seed, draws.ids), step=step)


def test_the_arms_of_the_issue_are_there() -> None:
    wanted = {"flip_crop", "rotation", "cutout", "randaugment", "trivialaugment", "mixup", "cutmix", "augmix"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_arm_keeps_range_and_shape_and_depends_on_seed_and_step_only(name: str, channels: int) -> None:
    before = torch.get_rng_state()
    x, y = run(name, channels)
    torch.rand(3)
    again, same = run(name, channels)
    assert x.shape == (24, channels, 16, 16) and x.dtype == torch.float32
    assert float(x.min()) >= 0 and float(x.max()) <= 1 and bool(x.isfinite().all())
    assert torch.equal(x, again) and torch.equal(y, same)
    for other in (run(name, channels, seed=8)[0], run(name, channels, step=3)[0]):
        assert not torch.equal(x, other)
    assert not torch.equal(x, batch(channels)[0])
    torch.set_rng_state(before)
    run(name, channels)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_labels_stay_or_become_shares_of_classes(name: str) -> None:
    _, y = run(name)
    if name in ("mixup", "cutmix"):
        assert y.shape == (24, 5) and y.dtype == torch.float32
        assert torch.allclose(y.sum(1), torch.ones(24)) and bool((y >= 0).all())
    else:
        assert torch.equal(y, batch()[1])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*KORNIA, "mixup", "cutmix")])
def test_what_an_image_becomes_does_not_depend_on_its_company(name: str) -> None:
    x, y, draws = batch()
    rows = torch.tensor([11, 3])
    whole = run(name)[0]
    part = AUGMENTATIONS[name].load()(x[rows], y[rows], num_classes=5, draws=draws[rows], step=2)[0]
    assert torch.allclose(whole[rows], part, atol=1e-6)


def test_mixup_is_the_average_it_says() -> None:
    x, y, draws = batch()
    mixed, shares = mixup(x, y, num_classes=5, draws=draws, step=0)
    weight = draws.uniform("mixup/weight", (1,), step=0)[:, 0]
    other = torch.argsort(draws.bits("mixup/partner", (1,), step=0)[:, 0], stable=True)
    for i in range(len(x)):
        assert torch.allclose(mixed[i], weight[i] * x[i] + (1 - weight[i]) * x[other[i]])
        expected = torch.zeros(5)
        expected[y[i]] += weight[i]
        expected[y[other[i]]] += 1 - weight[i]
        assert torch.allclose(shares[i], expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_of_mixup_are_beta(alpha: float) -> None:
    n = 2000
    x = torch.stack([torch.zeros(1, 1, 1), torch.ones(1, 1, 1)])[torch.arange(n) % 2]
    y = torch.arange(n) % 2
    _, shares = mixup(x, y, num_classes=2, draws=Draws(0, torch.arange(n)), step=0, alpha=alpha)
    own = shares[torch.arange(n), y]
    mixed = own[own < 1]  # a partner of the same class leaves the label whole
    assert stats.kstest(mixed.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_labels_are_shares_of_pixels() -> None:
    n, size = 64, 20
    y = torch.arange(n) % 8
    x = (y.float() / 8)[:, None, None, None].expand(n, 1, size, size)
    mixed, shares = cutmix(x, y, num_classes=8, draws=Draws(1, torch.arange(n)), step=4, p=1.0)
    for image, share in zip(mixed, shares, strict=True):
        counts = torch.bincount((image.flatten() * 8).round().long(), minlength=8)
        assert torch.allclose(counts / size**2, share, atol=1e-6)
    assert (shares.amax(1) < 1).float().mean() > 0.5
    assert torch.equal(cutmix(x, y, num_classes=8, draws=Draws(1, torch.arange(n)), step=4, p=0.0)[0], x)


def test_cutout_blackens_one_square_of_at_most_its_size() -> None:
    x = torch.ones(200, 1, 32, 32)
    cut = cutout(x, torch.zeros(200, dtype=torch.long), num_classes=2, draws=Draws(0, torch.arange(200)), step=0, size=8)[0]
    for image in cut[:, 0]:
        black = (image == 0).nonzero()
        (top, left), (bottom, right) = black.amin(0).tolist(), black.amax(0).tolist()
        assert len(black) == (bottom - top + 1) * (right - left + 1)
        assert bottom - top < 8 and right - left < 8
        assert bottom - top == 7 or top == 0 or bottom == 31
    assert int((cut == 0).sum((1, 2, 3)).max()) == 64


def test_crop_never_mirrors() -> None:
    x = torch.zeros(50, 1, 9, 9)
    x[:, 0, 4, 4], x[:, 0, 4, 5] = 1.0, 0.5
    moved = crop(x, torch.zeros(50, dtype=torch.long), num_classes=2, draws=Draws(0, torch.arange(50)), step=0, pad=2)[0]
    for image in moved[:, 0]:
        ((row, col),) = (image == 1).nonzero().tolist()
        assert image[row, col + 1] == 0.5 and abs(row - 4) <= 2 and abs(col - 4) <= 2


OUT_OF_RANGE = ["cutout(size=0)", "mixup(alpha=0)", "cutmix(p=2)", "augmix(severity=11)", "randaugment(m=30)"]


@pytest.mark.parametrize("arm", OUT_OF_RANGE)
def test_arguments_out_of_range_are_refused(arm: str) -> None:
    x, y, draws = batch()
    with pytest.raises(ConfigError, match=r"must be"):
        ref = AUGMENTATIONS.resolve(arm)
        AUGMENTATIONS[ref.name].load()(x, y, num_classes=5, draws=draws, step=0, **ref.kwargs)


SAME_KIND = {
    "rotate": {"rotation", "rotate"}, "contrast": {"contrast"}, "brightness": {"brightness"}, "color": {"saturate"},
    "sharpness": {"defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"}, "cutout": set(),
    "noise": {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"},
}  # fmt: skip
"""Operation → tested corruptions of its kind."""


PUBLISHED = {
    "saturate", "defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur",
}  # fmt: skip


def test_augmix_has_no_operation_of_a_tested_corruption() -> None:
    tested = set(catalog.CORRUPTIONS)
    left_out = {name for name, kinds in SAME_KIND.items() if kinds & tested} | {"cutout"}
    assert {"rotate", "contrast", "brightness"} <= left_out
    assert not set(OPERATIONS) & (tested | left_out)
    assert set(OPERATIONS) == {
        "autocontrast", "equalize", "posterize", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
    }  # fmt: skip
    for name in NAMES:
        assert set(AUGMENTATIONS[name].facts.get("overlaps", ())) - tested <= PUBLISHED


def test_operations_of_augmix_agree_with_pillow() -> None:
    x = (torch.rand(6, 3, 12, 12, generator=G) ** 2 * 200).round() / 255
    one = torch.ones(6)
    for i, image in enumerate(x):
        pillow = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        for name, expected in (
            ("equalize", ImageOps.equalize(pillow)), ("autocontrast", ImageOps.autocontrast(pillow)),
            ("posterize", ImageOps.posterize(pillow, 4)), ("solarize", ImageOps.solarize(pillow, 128)),
        ):  # fmt: skip
            strength = one * 127.5 / 255 if name == "solarize" else one
            got = (OPERATIONS[name](x, strength)[i] * 255).permute(1, 2, 0).numpy()
            # Pillow cuts the stretched value off where this keeps its fraction.
            assert np.abs(got - np.asarray(expected)).max() <= (1.0 if name == "autocontrast" else 1e-3)


def test_shifts_and_shears_at_full_strength_are_as_far_as_they_say() -> None:
    x = torch.zeros(1, 1, 30, 30)
    x[0, 0, 15, 15] = 1.0
    for name, place in (("translate_x", (15, 5)), ("translate_y", (5, 15))):
        assert OPERATIONS[name](x, torch.ones(1))[0, 0][place] == pytest.approx(1.0, abs=1e-4)
    line = torch.zeros(1, 1, 31, 31)
    line[0, 0, :, 15] = 1.0
    sheared = OPERATIONS["shear_x"](line, torch.ones(1))[0, 0]
    columns = (sheared * torch.arange(31)).sum(1) / sheared.sum(1)
    assert float(columns[5] - columns[25]) == pytest.approx(0.3 * 20, abs=1e-3)


def test_constant_images_survive_every_operation() -> None:
    x = torch.full((4, 1, 8, 8), 0.4)
    for operation in OPERATIONS.values():
        assert bool(operation(x, torch.tensor([-1.0, 0.0, 0.3, 1.0])).isfinite().all())


def test_augmix_of_no_strength_is_nearly_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, draws = batch()
    monkeypatch.setattr(_augmix, "OPERATIONS", {"nothing": lambda x, strength: x})
    assert torch.allclose(augmix(x, y, num_classes=5, draws=draws, step=0)[0], x, atol=1e-5)


def test_jensen_shannon_agrees_with_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    logits = torch.randn(2, 7, 4, generator=G)
    p = logits.softmax(2).double().numpy()
    expected = np.mean([jensenshannon(p[0, i], p[1, i]) ** 2 for i in range(7)])
    assert float(jensen_shannon((logits[0], logits[1]))) == pytest.approx(expected, rel=1e-4)
    assert float(jensen_shannon((logits[0],) * 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", KORNIA)
def test_without_kornia_the_remedy_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(module: str, *args: object, **kwargs: object) -> object:
        if module.startswith("kornia"):
            raise ImportError("No module named 'kornia'")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'robench\[augment\]'"):
        run(name)


def test_two_channels_are_refused_by_kornias_arms() -> None:
    x, y, draws = batch(2)
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        AUGMENTATIONS["trivialaugment"].load()(x, y, num_classes=5, draws=draws, step=0)


@pytest.mark.parametrize("recipe", ["standard", "pgd_at(steps=1)", "trades(steps=1)"])
@pytest.mark.parametrize("augment", ["mixup", "trivialaugment"])
def test_arms_work_with_recipes_and_leave_other_hashes(recipe: str, augment: str) -> None:
    x, y, _ = batch(1, size=8)
    hashes = set()
    for arm in ("", augment):
        net = fresh("small_cnn(num_classes=7, width=2, size=8)", seed=0)
        hashes.add(train(net, x, y, recipe=recipe, augment=arm, steps=3, seed=0, batch_size=8).weights_sha256)
    assert len(hashes) == 2


def test_the_recipe_with_augmix_and_its_consistency_trains() -> None:
    x, y, _ = batch(1, size=8)
    net = fresh("small_cnn(num_classes=5, width=4, size=8)", seed=0)
    seen: list[float] = []
    train(
        net,
        x,
        y,
        recipe="augmix_jsd",
        steps=30,
        seed=0,
        lr=0.02,
        batch_size=24,
        progress=lambda d, n, loss: seen.append(loss),
    )
    assert seen[-1] < seen[0] - 0.1
