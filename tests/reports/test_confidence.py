"""Pictures and tables of confidence and of images of other kinds."""

from __future__ import annotations

import pytest

from robench.metrics.table import tidy
from robench.reports.audit import audit
from robench.reports.cells import interval
from robench.reports.confidence import confidence, detection
from robench.reports.curves import image
from robench.reports.page import page, unfinished
from robench.reports.reliability import reliability_diagram, risk_coverage
from robench.reports.text import exclusions


@pytest.fixture(scope="module")
def table(synthetic):
    return tidy(synthetic.confident())


def test_a_reliability_diagram_has_a_panel_and_a_count_per_model_and_both_temperatures(table):
    figure = reliability_diagram(table)
    drawn = [a for a in figure.axes if a.axison]
    assert len(drawn) == 2 * 3 and [a.get_title(loc="left") for a in drawn[:3]] == ["masked", "plain", "trained"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "clean", "clean, after temperature", "pgd linf(0.1)",
    ]  # fmt: skip
    above, below = figure.axes[0], figure.axes[3]
    rows = table[(table["metric"] == "accuracy_in_bin") & (table["model"] == "masked") & (table["attack"] == "uncalibrated")]
    assert sum(bar.get_height() for bar in below.patches) == rows["n"].sum() == 2 * 60
    assert all(bar.get_x() >= 0 and bar.get_x() + bar.get_width() <= 1 + 1e-9 for bar in below.patches)
    assert above.get_ylim() == (0, 1) and below.get_yscale() == "log"
    assert image(figure) == image(reliability_diagram(table))


def test_risk_is_drawn_against_coverage_by_source(table):
    figure = risk_coverage(table)
    assert [a.get_title(loc="left") for a in figure.axes] == ["clean", "pgd linf(0.1)"]
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["masked", "plain", "trained"]
    assert list(lines[0].get_xdata()) == [i / 10 for i in range(1, 11)]


def test_without_calibration_there_is_no_picture_and_no_table(table):
    rest = table[~table["scenario"].isin(["calibration", "ood"])]
    assert reliability_diagram(rest) is None and risk_coverage(rest) is None
    assert detection(rest) is None and confidence(rest) is None


def test_detectors_stand_by_model_with_the_source_that_passes_most(table):
    cells = detection(table).cells
    assert list(cells) == ["dataset", "model", "detector", "glyphs", "noise", "worst FPR@95TPR(ID+) %"]
    assert len(cells) == 6 and cells.loc[(cells.model == "masked") & (cells.detector == "knn"), "noise"].item() == "skipped"
    rates = table[(table["metric"] == "fpr_at_95_tpr_id_positive") & (table["model"] == "plain")]
    shown = cells.loc[(cells.model == "plain") & (cells.detector == "energy"), "worst FPR@95TPR(ID+) %"].item()
    worst = rates.loc[rates["value"].idxmax()]
    assert shown == interval(worst["value"], worst["ci_low"], worst["ci_high"]) and "[" in shown
    assert float(shown.partition(" [")[0]) == pytest.approx(100 * rates["value"].max(), abs=0.06)


def test_confidence_stands_before_and_after_the_temperature(table):
    section = confidence(table)
    assert "validation images" in section.note and len(section.cells) == 6
    (row,) = section.cells[(section.cells["model"] == "plain") & (section.cells["images"] == "clean")].to_dict("records")
    for metric, column, text in (("ece", "ECE %", interval), ("nll", "NLL", "{:.3f} [{:.3f}, {:.3f}]".format)):
        own = table[(table["metric"] == metric) & (table["scenario"] == "calibration") & (table["model"] == "plain")]
        own = own[own["threat"] == "clean"].sort_values("attack", ascending=False)  # "uncalibrated" first
        values = own[["value", "ci_low", "ci_high"]].itertuples(index=False)
        assert row[column] == " → ".join(text(*estimate) for estimate in values)
    assert (section.cells["T"] == "1.50").all() and section.cells["ECE %"].str.contains(" → ").all()


def test_the_page_shows_all_of_it_and_not_the_pictures_points(table):
    text = page(table)
    for part in ("Reliability (digits)", "Risk against coverage", "Images of other kinds", "FPR@95TPR(ID+)", "Confidence"):
        assert part in text
    assert "accuracy_in_bin" not in text and "risk_at_coverage" not in text


def test_what_is_skipped_is_told_with_the_reason(table):
    assert all("no features" in line and line.startswith("masked") for line in unfinished(table, "skipped")) and unfinished(
        table, "skipped"
    )
    assert not any("no features" in line for line in exclusions(table))


def test_a_requirement_on_confidence_is_about_clean_images_unless_it_names_others(table):
    clean = table[(table["metric"] == "ece") & (table["scenario"] == "clean") & (table["condition"] == "")]
    findings = audit(table, ["ece<=0.9"]).findings
    assert sorted(f.judged for f in findings) == pytest.approx(sorted(clean["ci_high"]))
    adversarial = audit(table, ["ece[pgd linf(0.1)]<=0.0"]).findings
    assert (
        len(adversarial) == 3
        and not any(f.passed for f in adversarial)
        and not any("missing" in f.reason for f in adversarial)
    )


def test_a_skipped_detector_passes_no_requirement(table):
    findings = {f.model: f for f in audit(table, ["auroc[knn]>=0.01"]).findings}
    assert findings["plain"].passed and not findings["masked"].passed
