"""Run directories and model files of a stranger on the command line: nothing that they name is executed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robench.lineage import planned
from robench.sources import UserModel
from robench.spec import Artifact, Cell, Ref, Settings
from robench.store import Store
from tests.models import hostile


def robench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder that holds modules which mark their import."""
    code = "import sys; from robench.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    for name in ("tempfile.py", "pickle.py", "sitecustomize.py"):
        (tmp_path / name).write_text((tmp_path / "evil.py").read_text())
    return tmp_path


@pytest.mark.slow
def test_reports_of_a_strangers_run_execute_nothing(folder: Path) -> None:
    """Its models are factories of a file beside it, its names are escape codes and formulas."""
    data = Artifact("data", Ref.of("images", source="digits"), label="digits")
    name = "\x1b[2J=cmd()|$x_{$<script>"
    model = Artifact("model", Ref.of("file", path="evil.py:make"), label=name)
    cell = Cell(Ref("clean"), "1", model, data)
    count = 12
    rows = pd.DataFrame({"sample": np.arange(count), "label": np.arange(count) % 10, "pred": np.arange(count) % 10})
    store = Store(folder / "run")
    store.put(cell, rows.assign(score=1.0, score_clean=1.0, confidence=0.9), {})
    header = {"suite": {"name": "x", "models": [name]}, "seed": 0, "limited": False, "limit": None, "versions": {}}
    header |= {"edits": {"adapts": False, "typed": [], "notes": []}, "settings": asdict(Settings())}
    header |= {"sources": {name: asdict(UserModel("evil.py:make", name=name))}, "identities": {"models": {}}}
    store.write_run({**header, "left_out": [], "data_notes": [], "cells": {cell.digest: planned(cell)}})
    for code, verb in ((0, ["report"]), (0, ["leaderboard"]), (0, ["audit", "--require", "accuracy>=0.5"]), (2, ["verify"])):
        done = robench(folder, verb[0], "run", *verb[1:])
        assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr, (verb, done.stderr)
        assert not (folder / "executed").exists(), verb
        assert done.returncode == code, (verb, done.stderr)
    assert "--trust" in done.stderr and "evil.py" in done.stderr


@pytest.mark.slow
def test_hostile_programs_are_one_line_on_the_command_line(folder: Path) -> None:
    records = hostile.honest(folder / "honest.pt2")
    (folder / "evil.pt2").write_bytes(hostile.four_ways(records, folder / "executed")["two directories"])
    done = robench(folder, "run", "--suite", "smoke", "--data", "digits", "--model", "evil.pt2", "--out", "out")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()[-1]) < 700 and "Traceback" not in done.stderr
    assert "evil.pt2" in done.stderr and not (folder / "executed").exists()
