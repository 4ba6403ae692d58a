"""Which attacks on two models are the same test, and what an ensemble stands for."""

from __future__ import annotations

import math

import pytest

from robench import catalog
from robench.metrics.alike import ENSEMBLE, MOST, STANDARD, STRONGER, WEAKER, alike, unmet

UNION = "compressed-union(source='net')"


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("pgd(steps=40)", "pgd(steps=40)"),
        ("through(attack='pgd(steps=40)')", "pgd(steps=40)"),
        ("through(attack='robench-standard')", ENSEMBLE),
        ("through", "through"),
        ("transfer(source='net')", "transfer(source='net')"),
        ("robench-standard", ENSEMBLE),
        (UNION, ENSEMBLE),
        ("robench-deep", "robench-deep"),
        ("fog 3", "fog 3"),
    ],
)
def test_names_by_which_models_are_compared(attack, name):
    assert alike(attack) == name


@pytest.mark.parametrize(
    ("met", "wanted", "lacking"),
    [
        (["pgd"], ["through(attack='pgd')"], []),
        (["noise"], ["pgd", "noise"], ["pgd"]),
        (["robench-standard"], [UNION, "fgsm", "noise(draws=20)", "pgd(steps=40)", "apgd(loss='margin')"], []),
        ([UNION], ["pgd(steps=50, restarts=2)", "transfer(source='x')"], []),
        (
            [UNION],
            ["pgd(steps=50, restarts=3)", "square(queries=100)"],
            ["pgd(steps=50, restarts=3)", "square(queries=100)"],
        ),
        ([UNION], ["robench-deep"], ["robench-deep"]),
        (["robench-deep"], [UNION, "robench-standard"], []),
        (["robench-deep"], ["autoattack-standard"], ["autoattack-standard"]),
        (["pgd(steps=1000)"], [UNION], [ENSEMBLE]),
        ([], ["transfer(source='net')", "transfer(source='x')"], ["transfer(source='x')"]),
        (["robench-standard at linf(0.1)"], ["pgd at linf(0.1)", "pgd at linf(0.2)"], ["pgd at linf(0.2)"]),
        (["fog 3"], ["fog 3", "snow 1"], ["snow 1"]),
    ],
)
def test_what_a_model_did_not_meet(met, wanted, lacking):
    assert unmet(met, wanted, "net") == lacking


def test_ensembles_are_protocols_that_see_everything_and_what_they_stand_for_is_short_by_default():
    for name in (*STANDARD, *STRONGER):
        told = catalog.ATTACKS[name].facts
        assert told["protocol"] and told["access"] == "all"
    for name, counts in WEAKER.items():
        defaults = catalog.ATTACKS[name].parameters
        assert math.prod(defaults[count] for count in counts) <= MOST
