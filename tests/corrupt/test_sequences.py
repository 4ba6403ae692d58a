"""Perturbation sequences: how many frames, what they are at known places, and the same for an image whatever its company."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from robench.corrupt.perturbations import PERTURBATIONS, compared_with
from robench.corrupt.sequences import SEQUENCES, mapped, scaled, sequence
from robench.errors import ConfigError

IDS = torch.tensor([4, 0, 2**33])
FRAMES = {"motion_blur": 21, "translate": 16}


def pictures(channels: int = 3, side: int = 32) -> torch.Tensor:
    waves = torch.linspace(0, 5, side)
    x = torch.stack([torch.sin(waves + i) * torch.cos(waves[:, None] * (i + 1)) / 2 + 0.5 for i in range(3)])
    return ((x[:, None] * torch.linspace(0.7, 1, channels)[None, :, None, None]) * 255).round() / 255


def frames(x: torch.Tensor, name: str, ids: torch.Tensor = IDS, seed: int = 0) -> torch.Tensor:
    return torch.stack(list(sequence(x, name, ids=ids, seed=seed)))


def test_the_names_are_the_same_with_and_without_torch() -> None:
    assert tuple(SEQUENCES) == PERTURBATIONS and len(PERTURBATIONS) == 10
    assert [n for n in PERTURBATIONS if compared_with(n) == "first"] == ["gaussian_noise", "shot_noise"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_frames_are_many_on_the_grid_and_the_images_own(name: str, channels: int) -> None:
    x = pictures(channels)
    whole = frames(x, name)
    assert whole.shape == (FRAMES.get(name, 31), *x.shape)
    assert torch.equal(whole, (whole * 255).round() / 255) and whole.min() >= 0 and whole.max() <= 1
    assert torch.equal(whole[:, 1:2], frames(x[1:2], name, IDS[1:2]))
    assert torch.equal(whole.flip(1), frames(x.flip(0), name, IDS.flip(0)))
    assert all(not torch.equal(a, b) for a, b in pairwise(whole))


@pytest.mark.parametrize(
    ("name", "still"),
    [("gaussian_noise", 0), ("shot_noise", 0), ("zoom_blur", 0), ("brightness", 15), ("translate", 7), ("rotate", 15),
     ("tilt", 15), ("scale", 15)],
)  # fmt: skip
def test_one_frame_is_the_image_itself(name: str, still: int) -> None:
    x = pictures()
    assert (frames(x, name)[still] - x).abs().max() <= 1.01 / 255


def test_translation_moves_by_whole_pixels_and_leaves_black() -> None:
    x = pictures()
    right = frames(x, "translate")[10]
    assert torch.equal(right[..., 3:], x[..., :-3]) and right[..., :3].abs().max() == 0
    assert torch.equal(frames(pictures(side=64), "translate")[10][..., 6:], pictures(side=64)[..., :-6])


def test_noise_has_the_published_strength_and_other_draws_for_each_frame_and_seed() -> None:
    x = torch.full((3, 3, 32, 32), 0.5)
    found = frames(x, "gaussian_noise")
    noise = found[1:] - 0.5
    assert noise.std().item() == pytest.approx(0.02, rel=0.03)
    flat = noise.flatten(1).numpy()
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.06
    assert not torch.equal(found, frames(x, "gaussian_noise", seed=1))
    shot = frames(x, "shot_noise")[1:]
    assert shot.var().item() == pytest.approx(0.5 / 700, rel=0.05)


@pytest.mark.parametrize(
    "back", [[[0.9, 0.2, 1.5], [-0.1, 1.1, 0.5], [0, 0, 1]], [[1, 0.1, 0], [0, 1, 2], [0.004, 0.002, 1]]]
)
def test_projective_maps_equal_opencv(back: list[list[float]]) -> None:
    x = pictures()[:1]
    centre = np.array([[1, 0, 15.5], [0, 1, 15.5], [0, 0, 1.0]])
    matrix = centre @ np.array(back, dtype=np.float64) @ np.linalg.inv(centre)
    image = x[0].permute(1, 2, 0).numpy()
    wanted = cv2.warpPerspective(image, matrix, (32, 32), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    ours = mapped(x, back)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - wanted)[2:-2, 2:-2].max() < 0.05  # OpenCV rounds positions to 1/32 pixel
    assert np.abs(ours - wanted).mean() < 0.005


def test_scaling_by_two_keeps_the_centre() -> None:
    x = pictures(side=33)
    torch.testing.assert_close(scaled(x, 2.0)[..., ::2, ::2], x[..., 8:25, 8:25])


def test_an_unknown_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a perturbation sequence must be a known one, got 'tllt'; did you mean 'tilt'"):
        sequence(pictures(), "tllt", ids=IDS)
