"""Calibration on a model whose answer is known, and the shipped digits table on the net it was made for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from robench.corrupt.calibrate import TARGETS, calibrate, cost
from robench.corrupt.tables import DIGITS, DIGITS_V2, Level
from robench.data._digits import digits
from robench.errors import ConfigError
from robench.zoo import load

COARSE = ("pixelate_uneven", "jpeg_thumbnail")
"""Corruptions whose levels were chosen by hand; see the table's documentation."""


class _Dark(nn.Module):
    """Says 1 where a picture's mean is below 0.8."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean - 0.8, 0.8 - mean], dim=1)


@pytest.fixture(scope="module")
def validation() -> tuple[Tensor, Tensor, Tensor]:
    data = digits(split="validation")
    return data.images(torch.arange(len(data))), data.labels, data.ids


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    return load("digits-standard")


def test_bisection_finds_the_level_that_is_known_in_closed_form() -> None:
    x = (torch.arange(100).float() / 200)[:, None, None, None].expand(100, 1, 4, 4).contiguous()
    y, ids = torch.ones(100, dtype=torch.int64), torch.arange(100)
    ladder = [step / 1000 for step in range(1, 900)]
    levels = calibrate(_Dark(), x, y, ids=ids, name="brightness", ladder=ladder)
    for level, target in zip(levels, TARGETS, strict=True):
        assert level == pytest.approx(0.8 - (100 - target) / 200, abs=0.01)
        assert cost(_Dark(), x, y, ids=ids, name="brightness", level=level, severity=1) >= target


def test_calibrate_says_when_a_corruption_cannot_do_it() -> None:
    x, y = torch.zeros(4, 1, 8, 8), torch.ones(4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"the hardest rotation must be worth 1.5 points, got 0.0; extend the ladder"):
        calibrate(_Dark(), x, y, ids=torch.arange(4), name="rotation")
    with pytest.raises(ConfigError, match=r"one with a ladder, got 'rotatoin'; did you mean 'rotation'"):
        calibrate(_Dark(), x, y, ids=torch.arange(4), name="rotatoin")


@pytest.mark.parametrize(("name", "table"), [(n, t) for t in (DIGITS, DIGITS_V2) for n in t])
def test_digits_table_costs_the_standard_net_what_it_says(
    name: str, table: Mapping[str, tuple[Level, ...]], standard: nn.Module, validation: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, y, ids = validation
    costs = [cost(standard, x, y, ids=ids, name=name, level=v, severity=s) for s, v in enumerate(table[name], start=1)]
    assert costs == sorted(costs)
    assert 0 <= costs[0] <= 3.5
    assert 25 <= costs[4] <= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DIGITS_V2 if name not in COARSE])
def test_calibration_gives_the_shipped_levels_again(
    name: str, standard: nn.Module, validation: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, y, ids = validation
    assert calibrate(standard, x, y, ids=ids, name=name) == DIGITS_V2[name]
