"""What the embedded zoo holds: how each net was made, and what was measured then. Standard library only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.spec import ModelSpec, Ref

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of ``NAME.safetensors`` and ``NAME.json``."""

EPS = 0.1
"""The house's linf radius on digits, in units of [0, 1]: standard nets fall to about a tenth there, trained ones hold."""


SHAPES = {"digits": (1, 32, 32), "cifar10": (3, 32, 32)}
"""Data set → (channels, height, width) of its images."""


@dataclass(frozen=True)
class ZooEntry:
    """A net of the zoo: its recipe, and what was recorded when the weights in the package were made."""

    arch: Ref
    recipe: Ref
    steps: int
    seed: int
    """Seed of the first weights, the batches and the recipe's draws."""
    lr: float = 3e-3
    batch_size: int = 64
    start: str = ""
    """Entry whose weights the training starts from; empty: fresh weights."""
    data: str = "digits"
    """Data set it was trained on."""
    fraction: float = 1.0
    """Share of the training images, stratified."""
    augment: str = ""
    precision: str = "float32"
    """Of the training."""
    half: bool = False
    """Whether its weight matrices are kept rounded to float16; the net itself computes in float32."""
    sha256: str = ""
    """Hash of the weights (``robench.models.weights_sha256`` of the bare net)."""
    accuracy: float = math.nan
    """Clean accuracy on the test split, in [0, 1]."""
    n: int = 0
    """Test images that the accuracy was measured on."""
    train_accuracy: float = math.nan
    train_n: int = 0
    """Training images; 0 where they were not counted: all of the split."""

    @property
    def spec(self) -> ModelSpec:
        """How to build the net; the zoo's nets take pixels in [0, 1] as they are."""
        return ModelSpec(self.arch, num_classes=10, shape=SHAPES[self.data], licence="Apache-2.0")

    @property
    def summary(self) -> str:
        """Architecture, training, data and recorded clean accuracy in one line."""
        start = f", starting from {self.start}" if self.start else ""
        share = f"{self.fraction:.0%} of " if self.fraction < 1 else ""
        found = f"clean accuracy {self.accuracy:.1%} of {self.n} images" if self.n else "not measured"
        return f"{self.arch} trained by {self.recipe} on {share}{self.data}{start}; {found}"


_CIFAR: dict[str, Any] = {
    "arch": Ref.of("resnet18", in_channels=3, width=16),
    "seed": 0,
    "batch_size": 128,
    "data": "cifar10",
    "fraction": 0.4,
    "augment": "flip_crop",
    "precision": "bfloat16",
    "half": True,
}
"""Small ResNets on 20,000 training images of CIFAR-10, as JPEG copies: no rivals of published nets."""

_PLANS = {
    "digits-standard": ZooEntry(Ref.of("small_cnn"), Ref.of("standard"), steps=600, seed=0),
    "digits-augmented": ZooEntry(Ref.of("small_cnn"), Ref.of("augmented"), steps=1000, seed=0),
    "digits-pgd-at": ZooEntry(Ref.of("small_cnn"), Ref.of("pgd_at", eps=EPS), steps=1000, seed=0),
    "digits-trades": ZooEntry(Ref.of("small_cnn"), Ref.of("trades", eps=EPS), steps=1000, seed=0),
    "digits-vit": ZooEntry(Ref.of("vit"), Ref.of("augmented"), steps=1000, seed=0),
    "digits-mlp": ZooEntry(Ref.of("mlp"), Ref.of("standard"), steps=600, seed=0),
    # The trap hides the gradient of what is nearly the standard net: gradients fail on it, transfer does not.
    "digits-trap": ZooEntry(
        Ref.of("quantised_cnn", levels=16), Ref.of("standard"), steps=150, seed=0, lr=1e-3, start="digits-standard"
    ),
    "cifar10-standard": ZooEntry(recipe=Ref.of("standard"), steps=3000, **_CIFAR),
    "cifar10-pgd-at": ZooEntry(recipe=Ref.of("pgd_at", eps=8 / 255, steps=2), steps=1600, **_CIFAR),
}

NAMES = tuple(_PLANS)
"""Names of the zoo, in the order of tables."""
DIGITS = tuple(name for name, plan in _PLANS.items() if plan.data == "digits")
"""Those that need no data but what comes with scikit-learn."""


def recorded(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """What was measured when the weights of ``name`` were made; empty where nothing is recorded."""
    path = folder / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


ZOO = {name: replace(plan, **recorded(name)) for name, plan in _PLANS.items()}
"""Name -> entry."""
