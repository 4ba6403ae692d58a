from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from robench.errors import DataError
from robench.metrics import calibration
from robench.metrics.stats import bootstrap

BINNED = (calibration.ece, calibration.adaptive_ece, calibration.mce)


def drawn(n: int = 400, classes: int = 6, *, seed: int = 0, sharpness: float = 2.0):
    """Logits and labels of which the logits know something."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, sharpness, (n, classes))
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def rows(score, confidence, **more) -> pd.DataFrame:
    return pd.DataFrame({"sample": range(len(score)), "score": score, "confidence": confidence, "split": "test", **more})


def test_ece_of_known_bins_and_a_slow_twin():
    assert calibration.ece(rows([1, 1, 0, 0], [0.95, 0.95, 0.55, 0.55])).value == pytest.approx((0.1 + 1.1) / 4)
    rng = np.random.default_rng(2)
    conf, score = rng.uniform(0.1, 1, 300), rng.integers(0, 2, 300).astype(float)
    slow, gaps = 0.0, []
    for b in range(15):
        inside = (conf > b / 15) & (conf <= (b + 1) / 15)
        if inside.any():
            gaps.append(abs(score[inside].mean() - conf[inside].mean()))
            slow += inside.mean() * gaps[-1]
    frame = rows(score, conf)
    assert calibration.ece(frame).value == pytest.approx(slow, abs=1e-8)
    assert calibration.mce(frame).value == pytest.approx(max(gaps), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_binned_errors_equal_torchmetrics_and_scikit_learn(seed):
    from sklearn.calibration import calibration_curve
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = drawn(seed=seed)
    p = calibration.softmax(logits)
    frame = calibration.outcomes(p, labels)
    told = {"num_classes": 6, "n_bins": 15}
    few = frame.iloc[: 15 * (len(frame) // 15)]
    rates, means = calibration_curve(few["score"], few["confidence"], n_bins=15, strategy="quantile")
    assert len(rates) == 15 and calibration.adaptive_ece(few).value == pytest.approx(np.abs(rates - means).mean(), abs=1e-9)
    for metric, norm in ((calibration.ece, "l1"), (calibration.mce, "max")):
        expected = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), norm=norm, **told)
        assert metric(frame).value == pytest.approx(float(expected), abs=1e-6)


def test_adaptive_bins_hold_equally_many_and_equal_a_slow_twin():
    logits, labels = drawn(300, seed=4)
    frame = calibration.outcomes(calibration.softmax(logits), labels)
    order = np.argsort(frame["confidence"].to_numpy())
    slow = 0.0
    for part in np.array_split(order, 15):
        slow += len(part) / 300 * abs((frame["score"] - frame["confidence"]).to_numpy()[part].mean())
    assert calibration.adaptive_ece(frame).value == pytest.approx(slow, abs=1e-8)
    bins = calibration.equal_mass(frame["confidence"].to_numpy())
    assert np.bincount(bins).tolist() == [20] * 15
    assert calibration.adaptive_ece(frame.sample(frac=1, random_state=1)).value == pytest.approx(slow, abs=1e-8)


def test_equal_confidences_share_an_adaptive_bin():
    assert len(set(calibration.equal_mass(np.full(50, 0.7)))) == 1
    half = calibration.equal_mass(np.r_[np.full(40, 0.2), np.linspace(0.5, 0.9, 60)])
    assert len(set(half[:40])) == 1 and not set(half[:40]) & set(half[50:])


def test_classwise_error_equals_a_slow_twin_with_a_class_absent():
    logits, labels = drawn(200, 4, seed=6)
    labels[labels == 3] = 0
    p = calibration.softmax(logits)
    slow = 0.0
    for k in range(4):
        for b in range(15):
            inside = (p[:, k] > b / 15) & (p[:, k] <= (b + 1) / 15)
            if inside.any():
                slow += inside.mean() * abs((labels[inside] == k).mean() - p[inside, k].mean()) / 4
    from torchmetrics.functional.classification import binary_calibration_error

    each = [
        float(binary_calibration_error(torch.tensor(p[:, k]), torch.tensor((labels == k).astype(int)), n_bins=15))
        for k in range(4)
    ]
    assert slow == pytest.approx(np.mean(each), abs=1e-6)
    found = calibration.classwise_ece(pd.DataFrame({"label": labels, "logits": list(logits)}))
    assert found.value == pytest.approx(slow, abs=1e-8)
    assert found.low <= found.value <= found.high and found.n == 200


def test_many_classes_are_taken_in_parts(monkeypatch):
    logits, labels = drawn(60, 7, seed=1)
    whole = calibration.classwise(calibration.softmax(logits), labels)
    monkeypatch.setattr(calibration, "_AT_ONCE", 2 * 60 * 15)
    parts = calibration.classwise(calibration.softmax(logits), labels)
    assert (parts.value, parts.low, parts.high) == pytest.approx((whole.value, whole.low, whole.high), abs=1e-12)
    monkeypatch.setattr(calibration, "_MANY", 0)
    few = calibration.classwise(calibration.softmax(logits), labels)
    assert (few.value, few.high) == (parts.value, parts.high) and few.low == pytest.approx(parts.low, abs=0.1 * few.value)


def test_brier_and_log_loss_equal_scikit_learn():
    logits, labels = drawn(seed=8)
    p = calibration.softmax(logits)
    frame = calibration.outcomes(p, labels)
    hot = np.eye(6)[labels]
    assert calibration.brier(frame).value == pytest.approx(np.square(p - hot).sum(1).mean(), abs=1e-8)
    assert calibration.nll(frame).value == pytest.approx(log_loss(labels, p, labels=range(6)), abs=1e-8)
    binary = calibration.softmax(logits[:, :2])
    from sklearn.metrics import brier_score_loss

    y = (labels == 1).astype(int)
    found = calibration.brier(calibration.outcomes(binary, y)).value
    assert found == pytest.approx(2 * brier_score_loss(y, binary[:, 1]), abs=1e-8)


def test_the_score_is_that_of_the_tie_rule():
    frame = calibration.outcomes(np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([0, 0]))
    assert frame["score"].tolist() == [0, 1]


def test_extremes_reach_the_stated_bounds():
    sure = np.array([[0.0, 1.0], [1.0, 0.0]])
    wrong, right = (calibration.outcomes(sure, np.array(y)) for y in ([0, 1], [1, 0]))
    assert calibration.brier(wrong).value == 2 and calibration.brier(right).value == 0
    assert calibration.nll(wrong).value == pytest.approx(-math.log(1e-12)) and calibration.nll(right).value == 0
    assert [m(wrong).value for m in BINNED] == [1, 1, 1] and [m(right).value for m in BINNED] == [0, 0, 0]


def test_outputs_that_are_not_finite_count_as_sure_and_wrong():
    bad = np.array([[math.nan, 1.0, 2.0], [math.inf, 0.0, 0.0], [0.0, -math.inf, 1.0]])
    frame = calibration.outcomes(calibration.softmax(bad), np.array([2, 0, 2]))
    assert frame["score"].tolist() == [0, 0, 0] and frame["confidence"].tolist() == [1, 1, 1]
    assert frame["brier"].tolist() == [2, 2, 2]
    assert calibration.classwise(calibration.softmax(bad), np.array([2, 0, 2])).value == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", BINNED)
def test_rows_that_are_not_numbers_never_help(metric):
    good = rows([1.0] * 20, [0.99] * 20)
    for column in ("score", "confidence"):
        holed = good.copy()
        holed.loc[3, column] = math.nan
        assert metric(holed).value > metric(good).value
    held = rows([1.0, 1.0], [1.0, 1.0], brier=[0.0, math.nan], nll=[0.0, math.inf])
    assert calibration.brier(held).value == 1 and calibration.nll(held).value == pytest.approx(-math.log(1e-12) / 2)


@pytest.mark.parametrize("metric", [*BINNED, calibration.brier, calibration.nll])
def test_nothing_one_sample_and_the_training_rows(metric):
    empty = rows([], [], brier=[], nll=[])
    assert metric(empty).n == 0
    one = rows([1.0], [0.75], brier=[0.25], nll=[0.25])
    assert metric(one).value == pytest.approx(0.25) and metric(one).n == 1
    both = pd.concat([one, one.assign(split="train", confidence=0.1, brier=2.0, nll=9.0)])
    assert metric(both).value == pytest.approx(0.25)


@pytest.mark.parametrize("metric", BINNED)
def test_constant_confidence_is_one_bin(metric):
    assert metric(rows([1.0, 0.0, 1.0, 1.0], [0.5] * 4)).value == pytest.approx(0.25)


def test_intervals_of_means_are_near_a_bootstrap_over_samples_and_within_the_bounds():
    rng = np.random.default_rng(11)
    values = rng.uniform(0, 2, 80)
    found = calibration.brier(rows(np.ones(80), np.ones(80), brier=values))
    low, high = bootstrap(80, lambda index: values[index].mean(axis=1))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    few = calibration.brier(rows(np.ones(4), np.ones(4), brier=[0.0, 0.0, 0.0, 2.0]))
    assert 0 <= few.low < 0.5 < few.high <= 2


@pytest.mark.parametrize("metric", BINNED)
def test_no_number_depends_on_the_order_of_the_samples(metric):
    logits, labels = drawn(300, seed=12)
    frame = calibration.outcomes(calibration.softmax(logits), labels)
    assert metric(frame) == metric(frame.sample(frac=1, random_state=3))
    for mean in (calibration.brier, calibration.nll):
        assert mean(frame) == mean(frame.sample(frac=1, random_state=3))


def calibrated(n: int, rng) -> pd.DataFrame:
    """Outcomes of a model that is right as often as it says."""
    p = calibration.softmax(rng.normal(0, 1.5, (n, 5)))
    labels = (rng.uniform(size=(n, 1)) > np.cumsum(p, axis=1)).sum(axis=1).clip(0, 4)
    return calibration.outcomes(p, labels)


@pytest.mark.parametrize("metric", BINNED)
def test_the_interval_of_a_calibrated_model_reaches_zero_and_that_of_an_overconfident_one_does_not(metric):
    rng = np.random.default_rng(5)
    reached = sum(metric(calibrated(300, rng)).low == 0 for _ in range(40))
    assert reached >= 36 and metric(calibrated(300, rng)).value > 0.01
    sure = rows((rng.uniform(size=300) < 0.6).astype(float), rng.uniform(0.9, 1, 300))
    found = metric(sure)
    assert 0.2 < found.low <= found.value <= found.high


def test_the_temperature_of_overconfident_logits_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20000, 5))
    p = calibration.softmax(logits)
    labels = (rng.uniform(size=(20000, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
    for factor in (0.2, 1.0, 3.0, 10.0):
        assert calibration.fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.04)


def test_the_temperature_is_that_of_scipy_and_scikit_learn_and_never_raises_the_loss():
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    logits, labels = drawn(500, seed=9, sharpness=3.0)
    t = calibration.fit_temperature(logits, labels)

    def loss(u: float) -> float:
        return calibration.nll(calibration.outcomes(calibration.softmax(logits, temperature=u), labels)).value

    assert t > 1 and all(loss(t) <= loss(u) for u in (1.0, 0.9 * t, 1.1 * t))
    theirs = minimize_scalar(lambda u: log_loss(labels, calibration.softmax(logits / math.exp(u))), bounds=(-3, 3)).x
    assert t == pytest.approx(math.exp(theirs), rel=1e-3)


def test_a_temperature_without_a_minimum_stays_within_its_bounds():
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert calibration.fit_temperature(logits, np.array([1, 0])) == pytest.approx(math.exp(5), rel=1e-3)
    assert math.exp(-5) <= calibration.fit_temperature(logits, np.array([0, 1])) < 0.2


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.array([[math.nan, 0.0]]), np.array([[math.inf, 0.0]])])
def test_a_temperature_is_not_fitted_on_nothing_or_on_nan(logits):
    with pytest.raises(DataError, match="temperature"):
        calibration.fit_temperature(logits, np.zeros(len(logits), np.int64))


@pytest.mark.parametrize(
    ("p", "y"), [(np.ones((2, 3)) / 3, [0]), (np.ones((1, 3)) / 3, [3]), (np.ones((1, 1)), [0]), (np.ones(3), [0, 0, 0])]
)
def test_probabilities_and_labels_that_do_not_match_are_refused(p, y):
    with pytest.raises(DataError):
        calibration.outcomes(p, np.array(y))
