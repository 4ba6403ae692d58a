"""The law err = a n^-b + c against scipy, planted laws, and the sizes that targets take by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from robench.metrics import power_law, stats
from robench.metrics.power_law import estimates, fit, needed

SIZES = np.array([52.0, 105.0, 262.0, 524.0, 1047.0])


def law(n: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a * n**-b + c


@pytest.mark.parametrize("planted", [(0.9, 0.5, 0.03), (5.0, 1.2, 0.1), (0.5, 0.1, 0.0), (2.0, 0.35, 0.2)])
def test_a_planted_law_is_found(planted: tuple[float, float, float]) -> None:
    found = fit(SIZES, law(SIZES, *planted))
    assert (found.a[0], found.b[0], found.c[0]) == pytest.approx(planted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_noisy_curves_are_fitted_as_scipy_fits_them(seed: int) -> None:
    errors = law(SIZES, 0.9, 0.5, 0.03) + np.random.default_rng(seed).normal(0, 0.004, 5)
    found = fit(SIZES, errors)
    bounds = ([0, power_law.EXPONENTS[0], 0], [np.inf, power_law.EXPONENTS[1], 1])
    best = min(
        (curve_fit(law, SIZES, errors, p0=(1, start, 0.01), bounds=bounds, xtol=1e-14, ftol=1e-14, max_nfev=10**5)[0]
         for start in (0.2, 0.5, 1.0)),
        key=lambda p: ((law(SIZES, *p) - errors) ** 2).sum(),
    )  # fmt: skip
    ours = ((law(SIZES, found.a[0], found.b[0], found.c[0]) - errors) ** 2).sum()
    assert ours <= ((law(SIZES, *best) - errors) ** 2).sum() * (1 + 1e-6)
    assert (found.b[0], found.c[0]) == pytest.approx(best[1:], abs=2e-4)


def test_rows_are_fitted_apart() -> None:
    rows = np.stack([law(SIZES, 0.9, 0.5, 0.03), law(SIZES, 2.0, 0.8, 0.1)])
    assert np.allclose(fit(SIZES, rows).b, [0.5, 0.8], rtol=1e-3)


def cube(errors: np.ndarray, seeds: int = 3, images: int = 400) -> np.ndarray:
    drawn = np.random.default_rng(1).random((len(errors), seeds, images))
    return (drawn > errors[:, None, None]).astype(float)


def test_the_interval_holds_the_planted_exponent() -> None:
    scores = cube(law(SIZES, 2.0, 0.5, 0.02), images=2000)
    found = estimates(SIZES, scores)
    assert found["exponent"].low < 0.5 < found["exponent"].high and found["exponent"].n == 2000
    assert found["floor"].low <= 0.02 <= found["floor"].high


def test_a_curve_that_does_not_fall_has_no_exponent() -> None:
    assert estimates(SIZES, np.ones((5, 3, 20)))["exponent"] == stats.EMPTY
    rising = estimates(SIZES, cube(np.array([0.1, 0.12, 0.15, 0.2, 0.3])))
    assert rising["exponent"] == stats.EMPTY and rising["floor"] == stats.EMPTY


def test_too_few_sizes_are_not_fitted() -> None:
    for count in (1, 2, 3):
        assert estimates(SIZES[:count], cube(law(SIZES[:count], 0.9, 0.5, 0.0)))["exponent"] == stats.EMPTY
    assert estimates(np.array([50.0] * 5), cube(law(SIZES, 0.9, 0.5, 0.0)))["exponent"] == stats.EMPTY


def test_an_unsure_fall_has_no_interval() -> None:
    found = estimates(SIZES, cube(np.array([0.21, 0.20, 0.205, 0.2, 0.195]), images=30))["exponent"]
    assert found == stats.EMPTY


def test_sizes_for_a_target_by_hand() -> None:
    n, accuracy = (
        np.array([10.0, 100.0, 1000.0]),
        np.array([[0.5, 0.7, 0.9], [0.6, 0.5, 0.55], [0.9, 0.95, 0.97], [0.1, 0.8, 0.6]]),
    )
    assert needed(n, accuracy, 0.8)[0] == pytest.approx(10**2.5)
    assert needed(n, accuracy, 0.8).tolist()[1:] == [np.inf, pytest.approx(10.0), pytest.approx(100.0)]
    assert needed(n, accuracy, 0.6).tolist()[1] == 10.0 and needed([52.0, 105.0], [[0.9, 0.9]], 0.8)[0] == 52.0
    assert needed(n, accuracy, 0.75)[3] == pytest.approx(10 ** (1 + 0.65 / 0.7))
