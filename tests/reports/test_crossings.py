"""Crossings on the page: a line per chain, doubt beside the number, nothing for single conditions."""

from __future__ import annotations

import pandas as pd

from robench.metrics.table import COLUMNS
from robench.reports.crossings import crossings
from robench.reports.page import page
from robench.reports.sections import sections

CHAIN = "prune(amount=0.7) | corruption(name='fog', severity=3)"


def line(condition: str, metric: str, value: float, **more: object) -> dict:
    known = {"model": "net", "dataset": "digits", "scenario": "clean", "n": 60, "validity": "", "status": "ok", "eps": 0.1}
    fixed = {"condition": condition, "metric": metric, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
    return {**dict.fromkeys(COLUMNS, ""), "n_unknown": 0, **known, **fixed, **more}


def table(*lines: dict) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=list(COLUMNS))


ROBUST = {"scenario": "evasion", "threat": "linf(0.1)", "attack": "worst"}
WHOLE = table(
    line(CHAIN, "accuracy", 0.5),
    line(CHAIN, "robust_accuracy", 0.2, **ROBUST, validity="suspicious: zero gradients"),
    line(CHAIN, "robust_accuracy", 0.3, **{**ROBUST, "attack": "fgsm"}),
    line("prune(amount=0.7)", "accuracy", 0.9),
    line("", "accuracy", 1.0),
)


def test_a_chain_is_one_line_of_what_it_keeps():
    found = crossings(WHOLE)
    assert found.cells.to_dict("records") == [
        {"dataset": "digits", "model": "net", "chain": CHAIN, "n": 60, "accuracy %": "50.0 [40.0, 60.0]",
         "robust@linf(0.1) %": "20.0 [10.0, 30.0] (suspicious)"},
    ]  # fmt: skip


def test_single_conditions_make_no_section():
    assert crossings(WHOLE[WHOLE["condition"] != CHAIN]) is None
    assert "Crossed conditions" not in [s.title for s in sections(WHOLE[WHOLE["condition"] != CHAIN])]


def test_the_page_shows_crossings_and_what_was_left_out():
    text = page(WHOLE, header={"left_out": ["saturate needs three channels"]})
    assert "<h2>Crossed conditions</h2>" in text and "50.0 [40.0, 60.0]" in text
    assert "<h2>Left out</h2>" in text and "saturate needs three channels" in text
    assert "<h2>Left out</h2>" not in page(WHOLE)
