"""Whether labels and predictions speak of the same classes."""

from __future__ import annotations

import numpy as np
import pytest

from robench.metrics.label_checks import label_warnings


def answers(y: np.ndarray, accuracy: float, classes: int, seed: int = 0) -> np.ndarray:
    """Predictions that are right with a probability, and any other class otherwise."""
    rng = np.random.default_rng(seed)
    wrong = (y + rng.integers(1, classes, len(y))) % classes
    return np.where(rng.random(len(y)) < accuracy, y, wrong)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("accuracy", [0.8, 0.99])
def test_honest_models_are_not_warned_of(classes: int, accuracy: float) -> None:
    for seed in range(20):
        for n in (60, 100, 500):  # at 60 images of two classes, 80 % is above 50 % in all but 1 of 10,000 draws
            y = np.arange(n) % classes
            assert label_warnings(y, answers(y, accuracy, classes, seed)) == ()


def test_a_perfect_model_is_never_warned_of() -> None:
    for n in range(1, 40):
        for classes in (1, 2, 5):
            y = np.arange(n) % classes
            assert label_warnings(y, y) == ()
    rare = np.array([0] * 99 + [1])
    assert label_warnings(rare, rare) == ()
    assert label_warnings([], []) == ()


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_guessing_is_told_with_reasons(classes: int) -> None:
    y = np.arange(200) % classes
    told = [label_warnings(y, answers(y, 1 / classes, classes, seed)) for seed in range(40)]
    assert sum(bool(lines) for lines in told) >= 34  # 5 % of guessers are above chance by the test's own level
    shown = " ".join(line for lines in told for line in lines)
    assert "not above chance" in shown and "class order, labels counted from 1, mean and std" in shown


def test_labels_from_one_are_recognised() -> None:
    y = np.arange(100) % 10
    assert "count from 1" in label_warnings(y + 1, y)[0]


def test_another_order_of_classes_is_recognised() -> None:
    names = [str(i) for i in range(12)]
    model = np.array([sorted(names).index(name) for name in names])
    for n in (120, 1200):
        y = np.arange(n) % 12
        (line,) = label_warnings(y, model[y])
        assert "another order of the classes fits better" in line and "label 2 is answered by 4" in line
    # Two classes of 100 exchanged leave 98 % right: still told.
    y = np.arange(2000) % 100
    exchanged = np.where(y == 3, 4, np.where(y == 4, 3, y))
    assert "label 3 is answered by 4" in label_warnings(y, exchanged)[0]


def test_of_a_shift_and_an_order_the_one_that_makes_more_images_right_is_told() -> None:
    """Labels 6 to 19 are answered by their predecessor, the others by an order of their own, as text orders numbers."""
    y = np.arange(400) % 20
    order = np.array([3, 4, 0, 1, 2, *range(4, 19)])
    order[5] = 19
    (line,) = label_warnings(y, order[y])
    assert "another order of the classes fits better (400 instead of 0 of 400 right" in line and "count from 1" not in line
    pure = label_warnings(1 + y, y)
    assert "400 of 400 would be right with labels shifted by -1" in pure[0] and "another order" not in pure[0]
    noisy = label_warnings(1 + y, answers(y, 0.7, 20))
    assert "labels shifted by -1" in noisy[0] and "another order" not in noisy[0]


def test_a_shift_and_an_order_that_are_close_are_both_told() -> None:
    y = np.arange(60) % 20
    order = np.arange(-1, 19)
    order[[0, 1, 2]] = 1, 19, 0
    (line,) = label_warnings(y, order[y])
    assert "51 of 60 would be right with labels shifted by -1, or another order of the classes" in line
    assert "(60 instead of 0 of 60 right" in line


def test_of_two_shifts_the_better_is_told() -> None:
    y = np.arange(400) % 10
    mixed = np.where(np.arange(400) % 3 == 0, y - 1, y + 1)
    assert "shifted by 1" in label_warnings(y, mixed)[0] and "266 of 400" in label_warnings(y, mixed)[0]


def test_one_answer_for_all_is_told() -> None:
    y = np.array([0] * 90 + [1] * 10)
    assert "answers class 0 for all 100 images" in label_warnings(y, np.zeros(100))[0]
    assert label_warnings([0, 0, 1], [0, 0, 0]) == ()


def test_a_part_of_a_models_classes_is_held_against_what_occurs() -> None:
    y = np.array([281, 207, 339] * 10)
    assert label_warnings(y, np.random.default_rng(0).integers(0, 1000, 30))
    assert label_warnings(y, y) == ()
