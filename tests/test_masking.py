"""Findings from measured gradients: numbers in, texts out."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from robench.masking import agreement, diagnose, many, misled, visible
from robench.thresholds import DEFAULTS

N = 60
GOOD = {
    "zero_gradient": 0.0,
    "nonfinite_gradient": 0.0,
    "gradient_error": 0.01,
    "hidden": 0.0,
    "evenness": 0.5,
    "line_error": 0.01,
    "line_turns": 1.0,
    **{f"{place}mass_error": 0.02 for place in ("", "end_", "wide_")},
    **{f"{place}steep": 1.0 for place in ("", "end_", "wide_")},
}


def columns(count: int = 0, **changed: float) -> dict[str, np.ndarray]:
    """Honest columns, with the first ``count`` samples changed (0: all of them)."""
    found = {name: np.full(N, value) for name, value in GOOD.items()}
    slope = np.linspace(-1, 1, N)
    found |= {"slope": slope, "slope_claimed": slope.copy()}
    for name, value in changed.items():
        found[name][: count or N] = value
    return found


def test_true_gradients_give_no_finding():
    assert diagnose(columns(), survived=np.ones(N, bool)) == []
    assert diagnose({}) == []


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"zero_gradient": 1.0}, "zero gradients on 100.0 % of samples"),
        ({"nonfinite_gradient": 1.0}, "non-finite gradients"),
        ({"gradient_error": 0.6}, "gradients disagree with finite differences on 100.0 % of samples"),
        ({"hidden": 0.05}, "5.0 % of the squared gradient lie on pixels where it is said to be zero"),
        ({"evenness": 0.001}, "the gradients of some classes are lost beside those of others on 100.0 % of samples"),
        ({"mass_error": 0.2}, "differences of pixel groups contradict 20.0 % of the gradient at random starts"),
        ({"end_mass_error": 0.2}, "differences of pixel groups contradict 20.0 % of the gradient where an ascent ended"),
        (
            {"wide_steep": 0.8},
            "the steepest step where a wider ascent ended yields 80.0 % of the slope that the gradient claims",
        ),
        ({"line_error": 0.1}, "gradients along an ascent's line miss 10.0 % of the margin's changes"),
        ({"line_turns": 2.5}, "the margin goes up and down 2.5 times as much as it falls along an ascent's line"),
        ({"slope_claimed": 1.0}, "slopes along random directions agree with the gradient by a cosine of 0.00 only"),
    ],
)
def test_each_sign_is_told_when_all_samples_show_it(changed, text):
    assert diagnose(columns(**changed)) == [text]


def test_a_substitute_gradient_is_held_against_random_directions_only():
    assert diagnose(columns(mass_error=0.9, line_error=0.9), lent=True) == []
    assert diagnose(columns(slope_claimed=1.0), lent=True)


@pytest.mark.parametrize(
    "changed", [{"line_error": 0.5}, {"line_turns": 9.0}, {"end_mass_error": 1.0, "wide_mass_error": 1.0}]
)
def test_few_misled_samples_count_where_robustness_rests_on_them(changed):
    left, gone = np.arange(N) < 2, np.arange(N) >= 2
    found = diagnose(columns(2, **changed), survived=left)
    assert found == [f"gradients lead astray on 2 samples that stayed robust, of {N} looked at"]
    assert diagnose(columns(2, **changed), survived=gone) == []
    assert diagnose(columns(1, **changed), survived=left) == []


def test_many_misled_samples_count_wherever_they_are():
    assert diagnose(columns(7, line_error=0.5), survived=np.zeros(N, bool)) == [f"gradients lead astray on 7 of {N} samples"]


def test_one_odd_place_of_three_is_no_evidence():
    assert not misled(columns(5, mass_error=1.0)).any()
    assert misled(columns(5, mass_error=1.0, wide_mass_error=1.0)).sum() == 5


def test_samples_without_ascents_do_not_thin_out_those_with_them():
    measured = columns(2, line_error=0.5)
    for name in ("line_error", "line_turns", "end_mass_error", "wide_mass_error", "end_steep", "wide_steep"):
        measured[name] = np.concatenate([measured[name], np.full(4 * N, np.nan)])
    measured = {k: v if len(v) > N else np.concatenate([v, np.tile(v, 4)]) for k, v in measured.items()}
    survived = np.ones(5 * N, bool)
    assert diagnose(measured, survived=survived) == [
        f"gradients lead astray on 2 samples that stayed robust, of {N} looked at"
    ]


def test_one_sample_is_no_evidence_unless_it_is_all_there_is():
    assert not many(1, 60, 0.0) and many(2, 60, 0.03) and not many(2, 60, 0.04) and many(1, 1, 0.1)


@pytest.mark.parametrize("count", [5, 22, 57, 200])
def test_the_visible_share_is_the_one_met_twice_with_95_percent(count):
    share = visible(count)
    missed = sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(DEFAULTS.floor))
    assert missed == pytest.approx(0.05, abs=1e-6)


def test_more_samples_see_smaller_faults_and_too_few_see_none():
    shares = [visible(count) for count in (0, 1, 2, 5, 22, 60, 200)]
    assert shares == sorted(shares, reverse=True) and shares[:2] == [1.0, 1.0]
    assert visible(22) <= DEFAULTS.power < visible(21)


def test_the_cosine_of_slopes():
    slope = np.array([1.0, -2.0, 0.5])
    assert agreement(slope, 4 * slope) == pytest.approx(1) and agreement(slope, -slope) == pytest.approx(-1)
    assert agreement(0 * slope, 0 * slope) == 1 and agreement(slope, 0 * slope) == 0


def test_differences_below_the_resolution_of_the_outputs_are_no_evidence():
    coarse = {f"{place}mass_{what}": 1.0 for place in ("", "end_", "wide_") for what in ("error", "noise")}
    steep = {f"{place}steep": 0.5 for place in ("", "end_", "wide_")}
    measured = columns(**steep) | {name: np.full(N, value) for name, value in coarse.items()}
    assert diagnose(measured) == []
    assert diagnose(measured | {"line_error": np.full(N, 0.3), "line_noise": np.full(N, 0.01)})
    assert diagnose(measured | {"line_error": np.full(N, 0.06), "line_noise": np.full(N, 0.06)}) == []
