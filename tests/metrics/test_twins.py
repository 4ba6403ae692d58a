"""Agreement of a deployed model and its twin, in closed form."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics import stats
from robench.metrics.table import tidy
from robench.metrics.twins import (
    lines,
    twin_agreement,
    twin_logit_difference_max,
    twin_logit_difference_mean,
    twin_logit_difference_relative,
)


def frame(agrees, apart, *, images="clean", severity=0):
    apart = np.asarray(apart, float)
    n = len(apart)
    lead = {"model": "m", "dataset": "d", "scenario": "twin", "condition": "onnx_int8", "seed": 0, "cell": "c"}
    told = {"sample": np.arange(n), "label": 0, "images": images, "severity": severity, "agrees": agrees}
    return pd.DataFrame({**lead, **told, "difference_mean": apart, "difference_max": 2 * apart, "relative": apart / 10})


def test_values_in_closed_form():
    rows = frame([1, 1, 0, 1], [0.1, 0.2, 0.6, 0.3])
    assert twin_agreement(rows) == stats.wilson(3, 4)
    assert twin_logit_difference_mean(rows).value == pytest.approx(0.3)
    assert twin_logit_difference_max(rows).value == pytest.approx(1.2) and twin_logit_difference_max(rows).kind == "exact"
    assert twin_logit_difference_relative(rows).value == pytest.approx(0.03)


def test_one_image_none_and_outputs_that_are_not_finite():
    one = frame([1], [0.5])
    assert twin_agreement(one).value == 1 and twin_logit_difference_mean(one).value == 0.5
    assert twin_agreement(one.iloc[:0]).n == twin_logit_difference_max(one.iloc[:0]).n == 0
    broken = frame([1, 0], [0.1, math.nan])
    assert twin_agreement(broken).value == 0.5
    assert math.isnan(twin_logit_difference_max(broken).value) and math.isnan(twin_logit_difference_mean(broken).value)


def test_lines_of_the_table_name_the_images_and_the_severity():
    rows = pd.concat([frame([1], [0.1]), frame([0], [0.2], images="fog", severity=3), frame([1], [0.3], images="linf(0.1)")])
    found = pd.DataFrame(lines(rows, {}))
    shares = found[found["metric"] == "twin_agreement"].set_index("threat")
    assert shares["value"].to_dict() == {"clean": 1.0, "fog": 0.0, "linf(0.1)": 1.0}
    assert shares.loc["fog", "eps"] == 3 and math.isnan(shares.loc["clean", "eps"])
    table = tidy({"twin": rows})
    assert set(table["metric"]) == set(found["metric"]) and set(table["condition"]) == {"onnx_int8"}
