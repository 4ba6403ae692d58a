"""Promise 2 across devices: the smoke suite on the CPU and on CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import robench

pytestmark = pytest.mark.gpu


def test_smoke_on_cuda_keeps_promise_two(tmp_path: Path) -> None:
    """Floats within 1e-4 relative, verdicts equal except where the margin is below 1e-4."""
    frames = [robench.load(robench.run("smoke", out=tmp_path / device, device=device).out) for device in ("cpu", "cuda")]
    keys = ["model", "condition", "seed", "sample"]
    one, other = (f["clean"].query("split == 'test'").set_index(keys).sort_index() for f in frames)
    assert np.allclose(one["margin"], other["margin"], rtol=1e-4, atol=1e-4)
    assert ((one["score"] == other["score"]) | (one["margin"].abs() < 1e-4)).all()
    keys = ["model", "condition", "threat", "attack", "sample"]
    one, other = (f["evasion"].set_index(keys).sort_index() for f in frames)
    assert pd.Index.equals(one.index, other.index)
    assert ((one["score_adv"] == other["score_adv"]) | (one["margin_adv"].abs() < 1e-4)).mean() > 0.995
