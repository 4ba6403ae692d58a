"""The picture of cost against quality, and its table among the reports."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.curves import image
from robench.reports.pareto import pareto_picture
from robench.reports.write import write_reports


@pytest.fixture(scope="module")
def frames(synthetic):
    """A model on clean images and its smaller copy, which has no latency of its own."""
    small = {"condition": "prune(amount=0.5)", "cell": "small"}
    clean = synthetic.clean("plain").query("split == 'test'").drop(columns=["fraction", "train_n", "train_accuracy"])
    costs = synthetic.efficiency("plain")
    return {
        "clean": pd.concat([clean, clean.assign(**small)], ignore_index=True),
        "efficiency": pd.concat(
            [costs, costs.assign(stored_bytes=2000, latency_p50_ms=math.nan, **small)], ignore_index=True
        ),
    }


def test_without_a_compressed_model_there_is_no_picture(frames):
    assert pareto_picture(tidy({k: f[f["condition"] == ""] for k, f in frames.items()})) is None


def test_one_line_of_panels_per_quality_and_the_front_is_named(frames):
    table = tidy(frames)
    figure = pareto_picture(table)
    panels = figure.axes
    assert len(panels) == 1 and panels[0].get_ylabel() == "clean accuracy", "the smaller copy has no latency of its own"
    assert [a.get_xlabel() for a in panels] == ["stored bytes"]
    told = {t.get_text() for t in panels[0].texts}
    assert any("prune(amount=0.5)" in t for t in told)
    assert image(figure) == image(pareto_picture(table))


@pytest.mark.parametrize("cost", [2000.0, 2000.001, 2100.0, 15_000.0])
def test_the_cost_axis_holds_all_points_and_has_ticks_however_close_the_costs_are(frames, cost):
    costs = frames["efficiency"].assign(stored_bytes=[2000.0, cost], latency_p50_ms=0.1)
    panels = pareto_picture(tidy({**frames, "efficiency": costs})).axes
    assert len(panels) == 2
    for axes, values in zip(panels, ([2000.0, cost], [0.1, 0.1]), strict=True):
        low, high = axes.get_xlim()
        assert all(low < value < high for value in values) and high / low < 100
        assert any(low <= tick <= high and axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks())


def test_the_reports_hold_the_picture_and_its_table(frames, tmp_path):
    write_reports(frames, tmp_path)
    costs = pd.read_csv(tmp_path / "pareto.csv")
    assert set(costs["cost"]) == {"stored_bytes", "latency_p50_ms"} and costs["front"].any()
    assert (tmp_path / "pareto.png").stat().st_size > 5000 and (tmp_path / "pareto.svg").is_file()
    assert "Cost against quality" in (tmp_path / "report.html").read_text(encoding="utf-8")
