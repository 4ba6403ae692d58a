"""Which attacks on two models are the same test."""

from __future__ import annotations

import pandas as pd
import pytest

from robench import catalog
from robench.metrics.alike import ENSEMBLE, ENSEMBLES, alike, comparable


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("pgd(steps=40)", "pgd(steps=40)"),
        ("through(attack='pgd(steps=40)')", "pgd(steps=40)"),
        ("transfer(source='net')", ""),
        ("robench-standard", ENSEMBLE),
        ("compressed-union(source='net')", ENSEMBLE),
    ],
)
def test_names_by_which_models_are_compared(attack, name):
    assert alike(attack) == name


def test_where_an_ensemble_was_met_nothing_else_counts():
    single = pd.DataFrame({"attack": ["noise", "transfer(source='net')", "through(attack='pgd')"], "value": [1, 2, 3]})
    assert comparable(single).to_dict("list") == {"attack": ["noise", "pgd"], "value": [1, 3]}
    strong = pd.DataFrame({"attack": ["robench-standard", "compressed-union(source='net')"], "value": [4, 5]})
    assert comparable(pd.concat([single, strong])).to_dict("list") == {"attack": [ENSEMBLE] * 2, "value": [4, 5]}
    assert comparable(single.iloc[:0]).empty


def test_every_ensemble_is_a_protocol_that_sees_everything():
    for name in ENSEMBLES:
        told = catalog.ATTACKS[name].facts
        assert told["protocol"] and told["access"] == "all"
