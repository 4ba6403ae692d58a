"""The table of compressed models: each under its parent, the same numbers as the tidy table."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.compression import PLAIN, compression
from robench.reports.write import write_reports

ARM = "prune(amount=0.5)"


@pytest.fixture(scope="module")
def table(synthetic):
    """A model and its compressed copy, which fares the same."""
    found = {}
    for name in ("clean", "efficiency", "corruption", "evasion"):
        rows = getattr(synthetic, name)("plain")
        rows = rows.query("split == 'test'") if name == "clean" else rows
        rows = rows[rows["threat"] == "linf(8/255)"] if name == "evasion" else rows
        found[name] = pd.concat([rows, rows.assign(condition=ARM, cell="small")], ignore_index=True)
    for name in ("disagreement", "explanation_change"):
        found[name] = getattr(synthetic, name)("plain", ARM)
    return tidy(found)


def test_nothing_compressed_gives_no_table(table):
    assert compression(table[table["scenario"] != "disagreement"]) is None


def test_a_compressed_model_stands_under_its_parent(table):
    found = compression(table).cells
    assert list(found["condition"]) == [PLAIN, ARM] and set(found["model"]) == {"plain"} and "dataset" not in found
    plain, small = found.to_dict("records")
    own = table[(table["condition"] == ARM) & (table["metric"] == "accuracy_drop")].iloc[0]
    assert small["drop points"].startswith(f"{100 * own['value']:.1f} [") and plain["drop points"] == ""
    assert small["corrupted drop points"].startswith("0.0 ") and small["robust drop@linf(8/255) points"].startswith("0.0 ")
    assert plain["kB"] == small["kB"] == "4" and plain["MMACs"] == "5"
    assert small["same map (saliency)"] and plain["same map (saliency)"] == ""


def test_a_number_that_is_not_sound_says_so(table):
    table = table.copy()
    worst = (table["attack"] == "worst") & (table["condition"] == ARM) & (table["metric"] == "robust_accuracy")
    table.loc[worst, "validity"] = "suspicious: zero gradients"
    found = compression(table).cells.set_index("condition")
    assert found.loc[ARM, "robust@linf(8/255) %"].endswith("(suspicious)")


def test_the_page_and_the_run_directory_have_it(table, tmp_path):
    write_reports(table, tmp_path)
    assert "<h2>Compression</h2>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    written = pd.read_csv(tmp_path / "compression.csv")
    assert list(written["condition"]) == [PLAIN, ARM]
    assert ARM in (tmp_path / "compression.md").read_text(encoding="utf-8")
