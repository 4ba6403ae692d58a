"""The table of compressed models: each under its parent, the same numbers as the tidy table."""

from __future__ import annotations

import pandas as pd

from robench.metrics.table import tidy
from robench.reports.compression import PLAIN, compression
from robench.reports.write import write_reports

ARM = "prune(amount=0.5)"


def frames(synthetic):
    whole = synthetic.frames()
    for scenario in ("clean", "efficiency", "corruption", "evasion"):
        rows = whole[scenario].query("model == 'plain' and condition == ''").assign(condition=ARM, cell="small")
        whole[scenario] = pd.concat([whole[scenario], rows], ignore_index=True)
    whole["disagreement"] = whole["disagreement"].query("model == 'plain'")
    whole["explanation_change"] = whole["explanation_change"].query("model == 'plain'")
    return whole


def test_nothing_compressed_gives_no_table(synthetic):
    whole = synthetic.frames()
    assert compression(tidy({k: f for k, f in whole.items() if k != "disagreement"})) is None


def test_a_compressed_model_stands_under_its_parent(synthetic):
    table = tidy(frames(synthetic))
    found = compression(table).cells
    assert list(found["condition"]) == [PLAIN, ARM] and set(found["model"]) == {"plain"} and "dataset" not in found
    plain, small = found.to_dict("records")
    own = table[(table["condition"] == ARM) & (table["metric"] == "accuracy_drop")].iloc[0]
    assert small["drop %"].startswith(f"{100 * own['value']:.1f} [") and plain["drop %"] == ""
    assert small["corrupted drop %"].startswith("0.0 ") and small["robust drop@linf(8/255) %"].startswith("0.0 ")
    assert plain["kB"] == small["kB"] == "4" and plain["MMACs"] == "5"
    assert small["same map (saliency)"] and plain["same map (saliency)"] == ""


def test_a_number_that_is_not_sound_says_so(synthetic):
    table = tidy(frames(synthetic))
    worst = (table["attack"] == "worst") & (table["condition"] == ARM) & (table["metric"] == "robust_accuracy")
    table.loc[worst, "validity"] = "suspicious: zero gradients"
    found = compression(table).cells.set_index("condition")
    assert found.loc[ARM, "robust@linf(8/255) %"].endswith("(suspicious)")


def test_the_page_and_the_run_directory_have_it(synthetic, tmp_path):
    write_reports(frames(synthetic), tmp_path)
    assert "<h2>Compression</h2>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    written = pd.read_csv(tmp_path / "compression.csv")
    assert list(written["condition"]) == [PLAIN, ARM]
    assert ARM in (tmp_path / "compression.md").read_text(encoding="utf-8")
