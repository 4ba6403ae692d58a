"""Models that end, hang or change their process: their own cells fail with the reason, all others are as without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robench import api
from robench.metrics.table import tidy

NETS = """
import os, random, sys, time
import numpy, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, deed=None):
        super().__init__()
        self.last = nn.Linear(64, 10)
        with torch.no_grad():
            self.last.weight.copy_(torch.sin(torch.arange(640.0)).view(10, 64))
        self.deed = deed

    def forward(self, x):
        if self.deed:
            self.deed()
        return self.last(nn.functional.interpolate(x, (8, 8)).flatten(1))

def honest(): return Net()
def exits(): return Net(lambda: os._exit(0))
def leaves(): return Net(lambda: sys.exit(0))
def sleeps(): return Net(lambda: time.sleep(1000))
def killed(): return Net(lambda: os.kill(os.getpid(), 9))
def prints(): return Net(lambda: print("said by the model"))

def changes():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
    os.chdir("/")
    sys.stdout = None
    return Net().float()
"""
SUITE = """
name: faults
data: digits
limit: 16
threats: [linf(0.1)]
attacks: ["noise(draws=1)"]
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


def robench(folder: Path, *names: str, **more: str) -> subprocess.CompletedProcess[str]:
    models = [argument for name in names for argument in ("--model", f"{folder / 'nets.py'}:{name}")]
    command = [sys.executable, "-c", "from robench.cli import main; main()", "run", "--suite", "suite.yaml", "--trust"]
    options = [argument for name, value in more.items() for argument in (f"--{name.replace('_', '-')}", value)]
    return subprocess.run([*command, *models, *options], cwd=folder, capture_output=True, text=True)


def numbers(run: Path, model: str) -> pd.DataFrame:
    """What a model's own cells give; a rank depends on the other models too."""
    table = tidy(api.load(run), limited=False)
    own = table[(table["model"] == model) & (table["metric"] != "rank")]
    return own[["metric", "condition", "value"]].reset_index(drop=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pd.DataFrame:
    """What the honest model's clean cells give without others beside it."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "nets.py").write_text(NETS)
    (folder / "suite.yaml").write_text(SUITE)
    done = robench(folder, "honest", out="alone", workers="1", scenario="clean")
    assert done.returncode == 0, done.stderr
    return numbers(folder / "alone", "nets.py:honest")


@pytest.mark.slow
def test_models_that_end_their_process_cost_their_own_cells_only(folder, alone):
    """The same command goes on, and does not try for ever."""
    for attempt in range(3):
        done = robench(folder, "exits", "killed", "honest", out="run", workers="2", format="csv", scenario="clean")
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        assert "the model ended the process with exit code 0" in done.stderr and "signal 9" in done.stderr
        assert ("not tried again without --retry" in done.stderr) == (attempt == 2)
    pd.testing.assert_frame_equal(numbers(folder / "run", "nets.py:honest"), alone)


@pytest.mark.slow
def test_models_that_leave_or_change_settings_cost_nobody_a_number(folder, alone):
    done = robench(folder, "leaves", "changes", "honest", out="run", workers="1", format="csv", scenario="clean")
    assert done.returncode == 3 and "Traceback" not in done.stderr and "sys.exit(0)" in done.stderr, done.stderr
    pd.testing.assert_frame_equal(numbers(folder / "run", "nets.py:honest"), alone)
    assert (numbers(folder / "run", "nets.py:changes")["metric"] == "accuracy").any()


@pytest.mark.slow
def test_a_model_that_hangs_is_stopped_at_the_time_limit(folder):
    done = robench(folder, "sleeps", out="run", workers="1", cell_timeout="15", scenario="clean")
    assert done.returncode == 3 and "time limit of 15 s" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_prints_of_a_model_do_not_disturb_the_table(folder):
    done = robench(folder, "prints", out="run", workers="1", format="csv")
    assert done.returncode == 0 and "said by the model" in done.stderr
    assert "said" not in done.stdout and done.stdout.startswith("rank,")


SCRIPT = """
import robench
done = robench.run("suite.yaml", out="run", workers=2, models=["digits-mlp"])
print(len(done.summary.failures), done.summary.computed > 0)
"""


@pytest.mark.slow
def test_a_script_needs_no_main_guard(folder):
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr


@pytest.mark.slow
def test_nothing_of_the_current_folder_is_executed_by_a_run(folder):
    """The program itself never looks there; its workers and the process that measures memory must not either."""
    for name in ("tempfile", "pickle", "json", "random", "torch", "numpy"):
        (folder / f"{name}.py").write_text(f"open('executed-{name}', 'a').write('x')\n")
    (folder / "suite.yaml").write_text(SUITE + "models: [digits-mlp]\nefficiency: true\n")
    command = [sys.executable, "-P", "-c", "from robench.cli import main; main()", "run", "--suite", "suite.yaml"]
    done = subprocess.run([*command, "--workers", "2", "--out", "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("executed-*")) == []
