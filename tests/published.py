"""Factories of the published models in ../shared/data, for ``--model tests/published.py:kw_mnist_01 --trust``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import nn

from robench.models.wrap import Normalised

FOLDER = Path(os.environ.get("ROBENCH_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data") / "models"
MAKERS = {
    "conv": lambda a: nn.Conv2d(a[0], a[1], a[2], stride=a[3], padding=a[4]),
    "fc": lambda a: nn.Linear(a[0], a[1]),
    "relu": lambda a: nn.ReLU(),
    "flatten": lambda a: nn.Flatten(),
}


def published(folder: Path, name: str) -> nn.Module:
    """A model from its layer list and state_dict, with its normalisation inside."""
    facts = json.loads((folder / f"{name}.json").read_text())
    net = nn.Sequential(*(MAKERS[kind](numbers) for kind, *numbers in facts["layers"]))
    net.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return Normalised(net, mean=facts["mean"], std=facts["std"])


def kw_mnist_01() -> nn.Module:
    """Wong and Kolter's MNIST network for linf(0.1)."""
    return published(FOLDER, "kw_mnist_0.1")


def kw_mnist_small_03() -> nn.Module:
    """Wong and Kolter's small MNIST network for linf(0.3)."""
    return published(FOLDER, "kw_mnist_small_0.3")


def eran_mnist() -> nn.Module:
    """The naturally trained fully connected MNIST network of ERAN."""
    return published(FOLDER, "eran_mnist_6_100_nat")


def sdp_cifar() -> nn.Module:
    """The adversarially trained small CIFAR-10 network."""
    return published(FOLDER, "sdp_cifar_cnn_a_adv")
