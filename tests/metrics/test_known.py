"""Facts about metrics: everything in the tidy table is known, and metrics of other packages are computed and judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robench.errors import ConfigError
from robench.metrics import known
from robench.metrics.table import tidy
from robench.reports.audit import audit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = '''
import numpy as np
from robench.metrics.stats import wilson
from robench.registry import facts
from robench.spec import Estimate


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean")
def even_accuracy(frame):
    """Accuracy on even samples."""
    even = frame[frame["sample"] % 2 == 0]
    return wilson(int((even["score"] > 0).sum()), len(even))


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="evasion")
def broken_share(frame):
    """Share of samples that at least one attack broke."""
    broken = frame.groupby("sample", observed=True)["score_adv"].min() == 0
    return wilson(int(broken.sum()), len(broken))


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean")
def raising(frame):
    """Raises."""
    return frame["no such column"]


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean")
def too_large(frame):
    """Leaves its bounds."""
    return Estimate.exact(7.0)
'''
CODE = """
import pickle, sys
from robench.metrics.table import tidy
from robench.reports.audit import audit
from robench.reports.leaderboard import leaderboard
from robench.reports.page import page
table = tidy(pickle.load(open(sys.argv[1], "rb")))
even = table[table["metric"] == "even_accuracy"].set_index("model")
assert set(even.index) >= {"plain", "trained"} and (even["value"] > 0.7).all() and (even["ci_low"] < even["value"]).all()
broken = table[table["metric"] == "broken_share"]
worst = table[(table["metric"] == "robust_accuracy") & (table["attack"] == "worst")]
assert len(broken) == len(worst) and set(broken["threat"]) == set(worst["threat"])
assert list(broken["validity"]) == list(worst["validity"])
for name in ("raising", "too_large"):
    rows = table[table["metric"] == name]
    assert len(rows) and rows["value"].isna().all() and set(rows["status"]) == {"failed"}
assert "even_accuracy" in page(table) and "broken_share" in page(table)
assert audit(table[table["model"] == "trained"], ["even_accuracy>=0.5", "broken_share[linf(2/255)]<=0.9"]).passed
assert not audit(table, ["broken_share[linf(2/255)]<=1"]).passed, "masked is suspicious"
assert not audit(table, ["raising>=0"]).passed
board = leaderboard(table, by="even_accuracy")
assert "even_accuracy" in board and set(board["rank"]) <= {"1", "2", "3", "-"} and "1" in set(board["rank"])
print("fine")
"""


@pytest.fixture(scope="module")
def table(synthetic):
    return tidy(synthetic.frames() | synthetic.confident() | synthetic.shifts())


def test_every_metric_of_the_table_is_known_and_can_be_required(table):
    for metric in sorted(set(table["metric"])):
        about = known.facts_of(metric)
        assert {"higher_is_better", "unit", "bounds", "needs"} <= set(about), metric
        audit(table, [f"{metric}>=0"])


def test_values_keep_to_their_declared_bounds(table):
    rows = table[table["value"].notna()]
    for metric, value in zip(rows["metric"], rows["value"], strict=True):
        low, high = known.facts_of(metric)["bounds"]
        assert (low is None or value >= low) and (high is None or value <= high), metric


@pytest.mark.parametrize("name", ["robust_gap", "relative_robustness", "rank", "temperature", "gain_in_robust_accuracy",
                                  "corrupted_data_efficiency_auc", "robust_accuracy_at_fraction"])  # fmt: skip
def test_metrics_that_join_several_results_are_known(name):
    assert name in known.names() and known.facts_of(name)["needs"]


def test_an_unknown_metric_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'robust_gap'"):
        known.facts_of("robust_gpa")


def test_a_plug_in_metric_is_in_the_table_the_page_the_audit_and_the_leaderboard(synthetic, tmp_path):
    """A package with entry points of the group ``robench.metrics``, as pip would install it."""
    import pickle

    (tmp_path / "odd_metrics.py").write_text(PACKAGE)
    info = tmp_path / "odd_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-metrics\nVersion: 1.0\n")
    names = ("even_accuracy", "broken_share", "raising", "too_large")
    (info / "entry_points.txt").write_text("[robench.metrics]\n" + "".join(f"{n} = odd_metrics:{n}\n" for n in names))
    frames = tmp_path / "frames.pickle"
    frames.write_bytes(pickle.dumps({k: v for k, v in synthetic.frames().items() if k in ("clean", "evasion", "sentinel")}))
    done = subprocess.run([sys.executable, "-c", CODE, str(frames)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)  # fmt: skip
    assert done.stdout.strip() == "fine", done.stderr
