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
    sha256: str = ""
    """Hash of the weights (``robench.models.weights_sha256`` of the bare net)."""
    accuracy: float = math.nan
    """Clean accuracy on the test split, in [0, 1]."""
    n: int = 0
    """Test images that the accuracy was measured on."""
    train_accuracy: float = math.nan

    @property
    def spec(self) -> ModelSpec:
        """How to build the net; the zoo's nets take pixels in [0, 1] as they are."""
        return ModelSpec(self.arch, num_classes=10, shape=(1, 32, 32), licence="Apache-2.0")


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
}

NAMES = tuple(_PLANS)
"""Names of the zoo, in the order of tables."""


def recorded(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """What was measured when the weights of ``name`` were made; empty where nothing is recorded."""
    path = folder / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


ZOO = {name: replace(plan, **recorded(name)) for name, plan in _PLANS.items()}
"""Name -> entry."""
