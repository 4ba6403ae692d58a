"""Pictures and the table of scarce data, from synthetic lines: what is drawn, where, and how doubt shows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics.table import COLUMNS, tidy
from robench.reports.curves import image
from robench.reports.page import page
from robench.reports.pictures import PICTURES
from robench.reports.scarcity import (
    augmentation_gains,
    data_quality_curve,
    efficiency_of_data,
    scarcity_curve,
    transfer_gains,
)  # fmt: skip

MEASURES = {"accuracy": "clean", "corrupted_accuracy": "corruption", "robust_accuracy": "linf(0.1)"}


def line(metric: str, value: float, **more: object) -> dict[str, object]:
    base = {"model": "m", "dataset": "digits", "scenario": "scarcity", "condition": "", "attack": "clean"}
    told = {"metric": metric, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 300}
    return {**base, **told, "status": "ok", "validity": "", **more}


TEXTS = ("threat", "attack", "condition", "validity", "excludes", "escalated", "cell")


def lines() -> pd.DataFrame:
    found = []
    for model, offset in (("m", 0.0), ("other", 0.05)):
        for metric, attack in MEASURES.items():
            for fraction, value in ((0.1, 0.4), (0.5, 0.6), (1.0, 0.7)):
                told = {"validity": "suspicious: x" if model == "m" and metric == "robust_accuracy" else ""}
                found.append(line(f"{metric}_at_fraction", value + offset, model=model, attack=attack, threat="fraction",
                                  eps=fraction, **told))  # fmt: skip
    found += [line("trainings_at_fraction", 3.0, threat="fraction", eps=0.1)]
    for arm, gain in (("mixup", 0.05), ("cutout(size=8)", -0.02)):
        for fraction in (0.1, 1.0):
            condition = f"scarcity(augment={arm!r}, fraction={fraction})"
            found.append(line("gain_in_accuracy", gain, condition=condition, threat="gain", eps=fraction))
            found.append(line("gain_in_corrupted_accuracy", gain, condition=condition, threat="gain", eps=fraction,
                              attack="corruption without contrast"))  # fmt: skip
    half = {"condition": "scarcity(fraction=0.1, transfer='lp_ft')", "threat": "gain", "dataset": "half"}
    found.append(line("gain_in_accuracy", 0.2, **half))
    for axis, values in (("shots", (2.0, 5.0)), ("label_noise", (0.0, 0.4))):
        base = {"threat": axis, "condition": "scarcity(fraction=1.0)"}
        found += [line(f"accuracy_at_{axis}", 0.9 - v / 10, eps=v, **base) for v in values]
    found += [line("data_efficiency_auc", 0.6, threat="fraction"), line("power_law_exponent", 0.5, threat="fraction")]
    found += [line("samples_for_target", 250.4, eps=0.5, threat="fraction", ci_low=200.0, ci_high=math.inf),
              line("samples_for_target", math.nan, eps=0.8, threat="fraction", ci_low=1047.0, ci_high=math.inf),
              line("samples_for_target", 52.0, eps=0.9, threat="fraction", ci_low=0.0, ci_high=52.0)]  # fmt: skip
    table = pd.DataFrame(found, columns=list(COLUMNS))
    return table.assign(**{name: table[name].astype(object).fillna("") for name in TEXTS})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return lines()


def test_curves_have_a_panel_per_measure_and_a_line_per_model(table: pd.DataFrame) -> None:
    figure = scarcity_curve(table)
    assert [ax.get_title() for ax in figure.axes] == ["accuracy", "corrupted accuracy", "robust accuracy at linf(0.1)"]
    assert figure.axes[0].get_title(loc="left").strip() == "Scarce training data (digits, n = 300, 3 trainings each)"
    first, second = figure.axes[0].lines
    assert list(first.get_xdata()) == [0.1, 0.5, 1.0] and list(first.get_ydata()) == pytest.approx([0.4, 0.6, 0.7])
    assert first.get_color() != second.get_color() and len(figure.axes[0].collections) == 2
    doubted = figure.axes[2].lines[0]
    assert doubted.get_fillstyle() == "none" and doubted.get_label() == "m (suspicious)"


def test_gains_are_dots_at_their_arm_with_their_interval(table: pd.DataFrame) -> None:
    figure = augmentation_gains(table)
    assert [ax.get_title() for ax in figure.axes] == ["gain in accuracy", "gain in corrupted accuracy"]
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mixup", "cutout(size=8)"]
    drawn = [np.column_stack(got.get_data()) for got in ax.lines if got.get_marker() in ("o", "s")]
    dots = {(round(x, 6), round(y)) for x, y in np.concatenate(drawn)}
    assert dots == {(5.0, 0), (-2.0, 1)}
    ends = np.concatenate([path.vertices for bars in ax.collections for path in bars.get_paths()])
    assert ends[:, 0].min() == pytest.approx(-12) and ends[:, 0].max() == pytest.approx(15)
    assert "corruptions it is made of" in figure.axes[1].get_xlabel()
    assert transfer_gains(table, dataset="digits") is None and transfer_gains(table, dataset="half") is not None


def test_shots_and_noise_have_panels_of_their_own(table: pd.DataFrame) -> None:
    figure = data_quality_curve(table)
    assert [ax.get_title() for ax in figure.axes] == ["shots", "label noise"]
    assert list(figure.axes[1].lines[0].get_xdata()) == [0.0, 0.4]


def test_nothing_is_drawn_without_lines_and_the_same_bytes_twice(table: pd.DataFrame) -> None:
    draws = (scarcity_curve, data_quality_curve, augmentation_gains, transfer_gains)
    assert [draw(tidy({})) for draw in draws] == [None] * 4 and efficiency_of_data(tidy({})) is None
    assert image(augmentation_gains(table), "svg") == image(augmentation_gains(table), "svg")


def test_the_table_says_what_is_only_bounded(table: pd.DataFrame) -> None:
    cells = efficiency_of_data(table).cells
    assert cells.to_dict("records") == [{
        "dataset": "digits", "training": "m", "measured": "clean", "area %": "60.0 [50.0, 70.0]",
        "exponent b": "0.50 [0.40, 0.60]", "images for 50 %": "250 [200, ∞]", "images for 80 %": "> 1047",
        "images for 90 %": "≤ 52",
    }]  # fmt: skip


def test_a_target_that_the_smallest_size_reaches_is_bounded_from_above_though_resamples_miss_it(table: pd.DataFrame) -> None:
    at = (table["metric"] == "samples_for_target") & (table["eps"] == 0.9)
    texts = []
    for high in (400.0, math.inf):
        changed = table.assign(value=table["value"].mask(at, 262.0), ci_high=table["ci_high"].mask(at, high))
        texts.append(efficiency_of_data(changed).cells["images for 90 %"].item())
    assert texts == ["≤ 262 [0, 400]", "≤ 262 [0, ∞]"]


def test_what_has_no_result_yet_is_neither_drawn_nor_written(table: pd.DataFrame) -> None:
    missing = {name: math.nan for name in ("value", "ci_low", "ci_high")}
    waiting = table.assign(status="pending", validity="pending: no result yet", **missing)
    draws = (scarcity_curve, data_quality_curve, augmentation_gains, transfer_gains)
    assert [draw(waiting) for draw in draws] == [None] * 4 and efficiency_of_data(waiting) is None
    first = table["eps"].eq(0.1) | table["metric"].str.startswith("trainings_at")
    part = pd.concat([table[~first], waiting[first]], ignore_index=True)
    figure = scarcity_curve(part)
    assert figure.axes[0].get_title(loc="left").strip() == "Scarce training data (digits, n = 300)"
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 1.0]


def test_the_page_has_pictures_and_table(table: pd.DataFrame) -> None:
    text = page(table)
    assert "Scarce data" in text and "Augmentation against none (digits" in text and "Transfer against training" in text
    assert {"scarcity_curve", "data_quality_curve", "augmentation_gains", "transfer_gains"} <= set(PICTURES)
