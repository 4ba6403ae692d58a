"""Models by others, with accuracies published by others.

What can be tested of each bound: what plain PGD found was taken on the first 1000 or 500 images (the 200 of the archive for
CIFAR-10), so it bounds robust accuracy there from above. The verified shares of the two Wong and Kolter nets hold for all
10,000 test images, so they bound from below only what was measured on all; the one of the CIFAR-10 net holds for its 200
images, and was quoted from memory. The ERAN net has no verified share.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import robench
from robench.catalog import DATA
from robench.inference import predict, untouched

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def mnist(shared_data: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("unpacked")
    subprocess.run([sys.executable, shared_data / "unpack.py", out, "--train", "1"], check=True, capture_output=True)
    return DATA["mnist"].load()(split="test", root=str(out / "mnist"))


@pytest.mark.parametrize(
    ("name", "count", "percent"), [("kw_mnist_0.1", 10_000, 98.2), ("eran_mnist_6_100_nat", 1000, 96.0)]
)
def test_published_clean_accuracy(published, mnist, name: str, count: int, percent: float) -> None:
    model = published(name)
    with untouched(model):
        logits = predict(model, mnist.images(torch.arange(count)), width=256)
    correct = (logits.argmax(1) == mnist.labels[:count]).double().mean()
    assert round(float(correct) * 100, 1) == percent


@pytest.mark.slow
def test_robust_accuracy_lies_between_the_proved_bound_and_plain_pgd(published, mnist) -> None:
    """kw_mnist_0.1: verified on 94.2 % of all images, so an attack that finds less would be wrong."""
    model = published("kw_mnist_0.1")
    found = robench.evaluate(
        model,
        mnist.images(torch.arange(500)),
        mnist.labels[:500],
        threat="linf(0.1)",
        attacks=["noise", "pgd(steps=40, loss='margin')"],
    )
    assert found.robust_accuracy.high >= 0.942
    assert found.robust_accuracy.low <= 0.959
    assert found.validity.reasons == ()


def standard(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, threat: str) -> float:
    """Robust accuracy under ``robench-standard``, in percent."""
    found = robench.attack(model, x, y, threat=threat, protocol="robench-standard")
    assert set(found.rows["status"]) == {"ok"}
    percent = 100 * float(found.robust.double().mean())
    print(f"{threat}: n={len(y)}, robust {percent:.2f} %, {found.validity}", flush=True)
    return percent


BOUNDS = [
    ("eran_mnist_6_100_nat", 1000, "linf(0.026)", 84.1),
    ("kw_mnist_0.1", 1000, "linf(0.1)", 95.3),
    ("kw_mnist_small_0.3", 500, "linf(0.3)", 69.8),
]
"""Images and percent that plain PGD (4 starts, 80 steps) left robust of them."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count", "threat", "most"), BOUNDS)
def test_robench_standard_is_no_weaker_than_plain_pgd(published, mnist, name, count, threat, most) -> None:
    rows = torch.arange(count)
    assert standard(published(name), mnist.images(rows), mnist.labels[:count], threat) <= most + 1e-6


@pytest.mark.slow
def test_the_cifar_net_lies_between_its_verified_share_and_plain_pgd(shared_data: Path, published) -> None:
    held = np.load(shared_data / "models" / "cifar_sdp200.npz")
    x, y = torch.from_numpy(held["x"]).float() / 255, torch.from_numpy(held["y"]).long()
    assert len(y) == 200
    assert 44.0 <= standard(published("sdp_cifar_cnn_a_adv"), x, y, "linf(2/255)") <= 50.5


@pytest.mark.slow
def test_all_of_mnist_lies_between_the_verified_share_and_published_pgd(published, mnist) -> None:
    """Minutes: 10,000 images, of which 94.2 % are verified and 95.9 % withstood the authors' PGD."""
    everything = mnist.images(torch.arange(10_000))
    assert 94.2 <= standard(published("kw_mnist_0.1"), everything, mnist.labels, "linf(0.1)") <= 95.9
