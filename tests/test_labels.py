"""What index k means, from the command line to the page: folders, class lists, maps, and labels in doubt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from robench.cli import main

MODEL = """
import torch
from torch import nn


class Brightest(nn.Module):
    '''Answers the column that is bright; outputs 0..11 of {outputs}.'''

    def forward(self, x):
        columns = x.mean((1, 2))
        return torch.cat([columns, columns.new_full((len(x), {outputs} - 12), -1.0)], 1)


def make():
    return Brightest()
"""
SUITE = "{name: tiny, data: digits, threats: [linf(0.01)], attacks: [noise(draws=1)]}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run of a model with so many outputs on ``photos``, clean images only: exit code, output, accuracy."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SUITE)

    def call(*args: str, outputs: int = 12) -> tuple[int, str, float | None]:
        Path("m.py").write_text(MODEL.format(outputs=outputs))
        base = ["run", "--suite", "tiny.yaml", "--scenario", "clean", "--workers", "1", "--out", "run", "--trust"]
        told = CliRunner().invoke(main, [*base, "--model", "m.py:make", "--data", "folder:photos", *args])
        table = Path("run/table.csv")
        rows = pd.read_csv(table).query("metric == 'accuracy'") if table.exists() else pd.DataFrame()
        return told.exit_code, told.output, float(rows["value"].iloc[0]) if len(rows) else None

    return call


def photos(names: dict[str, int], n: int = 3) -> None:
    """Folders of 12 x 12 pictures, each with its own bright column."""
    for name, column in names.items():
        Path("photos", name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng(i).integers(0, 60, (12, 12, 3), dtype=np.uint8)
            pixels[:, column] = 230
            Image.fromarray(pixels).save(Path("photos", name, f"{i}.png"))


@pytest.mark.slow
def test_folders_named_by_number_keep_their_order(run) -> None:
    photos({str(i): i for i in range(12)}, n=6)
    code, told, accuracy = run()
    assert (code, accuracy) == (0, 1.0) and "WARNING" not in told
    assert (
        "read 72 of 72 files of folder:photos" in told
        and "labels 0..11 are the indices of the model's outputs (folder names counted as numbers)" in told
    )


@pytest.mark.slow
def test_a_model_of_many_outputs_needs_a_list_or_a_map(run) -> None:
    photos({"cat": 7, "dog": 0, "horse": 3})
    code, told, accuracy = run(outputs=1000)
    assert (code, accuracy) == (2, None) and "must be 3 per image" in told and "--classes FILE" in told
    Path("names.txt").write_text("\n".join({7: "cat", 0: "dog", 3: "horse"}.get(i, f"c{i}") for i in range(1000)))
    code, told, accuracy = run("--classes", "names.txt", outputs=1000)
    assert (code, accuracy) == (0, 1.0)
    assert "classes: 0 = dog, 3 = horse, 7 = cat (class list names.txt; 3 of the model's 1000)" in told
    Path("map.csv").write_text("cat,7\ndog,0\nhorse,4\n")
    code, told, accuracy = run("--class-map", "map.csv", outputs=1000)
    assert code == 0 and accuracy == pytest.approx(2 / 3)
    Path("map.csv").write_text("cat,7\ndog,0\nhorse,3\n")
    code, told, accuracy = run("--class-map", "map.csv", outputs=1000)
    assert (code, accuracy) == (0, 1.0) and "0 cells computed" not in told
