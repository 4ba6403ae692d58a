"""The picture by families and the short table of corruptions."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.corruptions import corruptions, family_curves
from robench.reports.curves import corruption_curve, image


@pytest.fixture(scope="module")
def table(synthetic) -> pd.DataFrame:
    frames = synthetic.frames()
    return tidy({name: frames[name] for name in ("corruption", "flips")})


def test_each_family_has_a_panel_with_all_models(table):
    figure = family_curves(table)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["digital", "noise"]
    models = sorted(set(table["model"]))
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == models
        assert all(list(line.get_xdata()) == [1, 2, 3, 4, 5] for line in axes.lines)
    assert "robench-C (regenerated" in figure.get_suptitle()
    assert image(figure, "svg") == image(family_curves(table), "svg")


def test_pictures_name_what_the_images_are(table):
    assert "robench-C (regenerated" in corruption_curve(table).axes[0].get_title(loc="left")
    assert family_curves(table[table["metric"] == "accuracy"]) is None


def test_the_short_table_has_a_line_per_model(table):
    section = corruptions(table)
    assert list(section.cells["model"]) == sorted(set(table["model"]))
    assert {"images", "drop", "noise", "digital", "flips"} <= set(section.cells.columns)
    assert "not the published ones" in section.note
    line = section.cells.iloc[0]
    value = table[(table["model"] == line["model"]) & (table["metric"] == "corruption_drop")]["value"].item()
    assert line["drop"].startswith(f"{100 * value:.1f} points")
    assert corruptions(table[table["scenario"] == "flips"]) is None
