"""Models by others, with accuracies published by others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
