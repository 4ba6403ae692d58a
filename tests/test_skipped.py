"""A backend that is not installed: its rows say so with the remedy, everything else is measured, and nothing stands in."""

from __future__ import annotations

import re
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from robench import api, runner, workshop
from robench.cli import main
from robench.errors import NotInstalledError
from robench.metrics.table import SKIPPED, tidy
from robench.reports.leaderboard import leaderboard
from robench.reports.page import page
from robench.runner import Job, Outcome, perform
from robench.spec import Artifact, Cell, Context, Ref, Settings
from robench.store import Store
from robench.suite import parse_suite

SUITE = """
name: deployed
limit: 8
models: [digits-mlp]
compression:
  models: [digits-mlp]
  arms: [prune(amount=0.5), onnx_int8]
  threats: [linf(0.1)]
  attacks: [noise(draws=2)]
"""
HERE = {"workers": 1, "device": "cpu", "settings": Settings(width=16)}


@pytest.fixture
def without(monkeypatch):
    workshop.forget()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    yield monkeypatch
    workshop.forget()


def test_the_run_goes_on_and_the_rows_say_how_to_get_it(without, tmp_path):
    done = api.run(parse_suite(SUITE), out=tmp_path / "run", **HERE)
    assert done.summary.failures == ()
    asked = [cell for cell in done.plan.cells if cell.condition == "onnx_int8"]
    assert len(done.summary.skipped) == len(asked) > 3
    assert done.summary.computed == len(done.plan.cells) - len(asked)
    assert all("pip install 'robench[onnx]'" in reason for _, reason in done.summary.skipped)
    frames = api.load(tmp_path / "run")
    assert set(frames["clean"]["condition"]) == {"", "prune(amount=0.5)"}
    table = tidy(frames)
    rows = table[table["status"] == SKIPPED]
    assert len(rows) == len(asked) and set(rows["condition"]) == {"onnx_int8"}
    assert rows["value"].isna().all() and (rows["n"] == 0).all() and set(rows["metric"]) == {SKIPPED}
    assert rows["validity"].str.contains("onnxruntime must be installed").all()
    union = rows[rows["attack"].str.startswith("compressed-union")]
    assert union["threat"].tolist() == ["linf(0.1)"]
    assert set(table.loc[table["status"] != SKIPPED, "condition"]) == {"", "prune(amount=0.5)"}
    assert "digits-mlp onnx_int8" in page(table).partition("<h2>Skipped</h2>")[2]
    assert len(leaderboard(table)) == len(leaderboard(table[table["status"] != SKIPPED]))


def test_the_command_line_says_it_and_ends_well(without, tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITE.replace("limit: 8", "limit: 4").replace("prune(amount=0.5), ", ""))
    told = ["run", "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "run"), "--workers", "1"]
    told += ["--width", "16"]
    done = CliRunner().invoke(main, told, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"skipped: \d+ cells: the library onnxruntime must be installed", done.stderr)


def test_installed_later_the_same_command_measures_what_is_missing(without, tmp_path):
    pytest.importorskip("onnx")
    suite = parse_suite(SUITE)
    first = api.run(suite, out=tmp_path, **HERE)
    without.undo()
    workshop.forget()
    again = api.run(suite, out=tmp_path, **HERE)
    assert again.summary.computed == len(first.summary.skipped) and again.summary.skipped == again.summary.failures == ()
    table = tidy(api.load(tmp_path))
    assert SKIPPED not in set(table["status"])
    deployed = table[table["condition"] == "onnx_int8"]
    assert {"accuracy", "robust_accuracy", "twin_agreement"} <= set(deployed["metric"])
    worst = deployed[(deployed["attack"] == "worst") & (deployed["metric"] == "robust_accuracy")]
    assert worst["n_unknown"].tolist() == [0]


def test_only_a_missing_library_is_a_skip(monkeypatch, tmp_path):
    cell = Cell(Ref("clean"), "1", Artifact("model", Ref("a")), Artifact("data", Ref("b")))

    def raising(error):
        def run_cell(*args):
            raise error

        monkeypatch.setattr(runner, "run_cell", run_cell)
        return perform(Job(cell, Context(str(tmp_path))))

    assert raising(NotInstalledError("x must be installed")).skipped
    assert not raising(ImportError("x")).skipped and not raising(ValueError("x")).skipped


def test_a_cell_that_needs_a_failed_and_a_missing_thing_has_failed():
    skip, failure = Outcome(None, {}, "get it", skipped=True), Outcome(None, {}, "broken")
    fine = Outcome(pd.DataFrame(), {})
    assert runner._lost(None, [fine]) is None
    assert runner._lost(None, [fine, skip]).skipped
    assert not runner._lost(None, [skip, failure]).skipped and runner._lost(None, [skip, failure]).error == "broken"


def test_a_damaged_note_of_an_attempt_is_no_skip(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "d.json").write_text("{")
    store.cells.mkdir()
    (row,) = store.unfinished({"d": {"model": "net"}}).to_dict("records")
    assert (row["status"], row["model"]) == ("failed", "net") and row["error"].startswith("no result yet")
