"""What is refused as images and labels, and the texts that say so."""

from __future__ import annotations

import pytest
import torch

from robench.data import check_images, check_labels
from robench.data.checks import check_split
from robench.errors import ConfigError, DataError


def test_good_images_pass_unchanged() -> None:
    x = torch.tensor([0.0, 1.0, 0.5, 0.25]).reshape(1, 1, 2, 2)
    assert check_images(x) is x


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ([[1.0]], "must be a torch.Tensor, got 'list'"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "divide by 255"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.float64), "x.float()"),
        (torch.zeros(1, 2, 2), "(N, C, H, W)"),
        (torch.zeros(0, 1, 2, 2), "(N, C, H, W)"),
        (torch.full((1, 1, 2, 2), torch.inf), "finite"),
    ],
)
def test_other_images_are_refused(x: object, text: str) -> None:
    with pytest.raises(DataError) as caught:
        check_images(x)
    assert text in str(caught.value)


def test_nan_names_the_first_row() -> None:
    x = torch.zeros(5, 1, 2, 2)
    x[3, 0, 1, 1] = torch.nan
    with pytest.raises(DataError, match="NaN or infinity in 1 images, first at row 3"):
        check_images(x)


@pytest.mark.parametrize(
    ("low", "high", "excess", "remedy"),
    [
        (-2.25, 2.5, "2.25", "normalisation belongs in the model"),
        (-0.5, 1.0, "0.5", "normalisation belongs in the model"),
        (0.0, 255.0, "254", "divide by 255"),
        (-(2.0**-20), 1.0, "9.54e-07", "clamp"),
    ],
)
def test_range_says_by_how_much(low: float, high: float, excess: str, remedy: str) -> None:
    x = torch.tensor([low, high, 0.5, 0.5]).reshape(1, 1, 2, 2)
    with pytest.raises(DataError) as caught:
        check_images(x)
    assert f"outside by {excess}'" in str(caught.value)
    assert remedy in str(caught.value)


def test_good_labels_pass_unchanged() -> None:
    y = torch.tensor([0, 2, 1])
    assert check_labels(y, 3) is y


@pytest.mark.parametrize(
    ("y", "text"),
    [
        ([0], "torch.Tensor"),
        (torch.tensor([0.0]), "int64"),
        (torch.tensor([[0]]), "(N,)"),
        (torch.tensor([0, 3, 4]), "in 0..2, got '3 at row 1 (2 such labels)'"),
        (torch.tensor([0, 0, -1]), "got '-1 at row 2"),
    ],
)
def test_other_labels_are_refused(y: object, text: str) -> None:
    with pytest.raises(DataError) as caught:
        check_labels(y, 3)
    assert text in str(caught.value)


def test_unknown_split_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        check_split("trian", ("train", "test"))
