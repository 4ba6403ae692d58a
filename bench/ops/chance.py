"""The global generators, which a randomised model draws from: seeded by counters while it is looked at, then restored."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, stage: str, *, step: int = 0, draw: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """The generators of torch (CPU and ``device``), numpy and Python hold a state of (seed, stage, step, draw) inside.

    What they held before is put back, whatever happens. What a sample of a batch draws depends on its place in the
    batch, as it does in every model that draws for whole batches.

    Args:
        seed: Seed of the evaluation.
        stage: What is looked at; other stages have other draws.
        step: Number of the look.
        draw: Number of the repetition within a look.
        device: Where the model computes.
    """
    digest = hashlib.sha256(f"{seed}/{stage}/{step}/{draw}".encode()).digest()
    value = int.from_bytes(digest[:8], "big") >> 1
    place = torch.device(device)
    cuda = [place] if place.type == "cuda" else []
    held = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(value)
            for one in cuda:
                torch.cuda.default_generators[one.index or 0].manual_seed(value)
            random.seed(value)
            np.random.seed(int.from_bytes(digest[8:12], "big"))
            yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
