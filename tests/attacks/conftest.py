"""A small net trained on scikit-learn's digits, shared by the attacks' tests."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


def small_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@pytest.fixture(scope="session")
def digits():
    """(x, y): 1797 digits enlarged to 16 x 16, in [0, 1]."""
    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 16
    return functional.interpolate(x, size=16, mode="bilinear"), torch.from_numpy(data.target).long()


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 150) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net.eval()


@pytest.fixture(scope="session")
def net(digits):
    """A net that was trained on the first 1400 digits."""
    return train(small_net(0), digits[0][:1400], digits[1][:1400])


@pytest.fixture(scope="session")
def other_net(digits):
    """Another start of the same recipe: a surrogate."""
    return train(small_net(7), digits[0][:1400], digits[1][:1400])


@pytest.fixture(scope="session")
def held_out(digits):
    """(x, y, ids): 200 digits that no net saw."""
    return digits[0][1400:1600], digits[1][1400:1600], torch.arange(1400, 1600)
