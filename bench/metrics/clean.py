"""Metrics of the ``clean`` frame: accuracy, its worst class and its gap to training."""

from __future__ import annotations

import pandas as pd

from robench.metrics import stats
from robench.registry import facts
from robench.spec import Estimate


def split(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of one split; a frame without the column is all ``test``."""
    if "split" not in frame:
        return frame if name == "test" else frame.iloc[:0]
    return frame[frame["split"] == name]


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean", group="generalization")
def accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean score of the test samples in [0, 1], with the modified Wilson interval."""
    return stats.rate(split(frame, "test")["score"])


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="clean", group="generalization")
def train_test_gap(frame: pd.DataFrame) -> Estimate:
    """Training accuracy minus test accuracy, in [-1, 1], with Newcombe's interval for two independent samples.

    Training accuracy comes from rows of the split ``train``, else from the columns ``train_accuracy`` and ``train_n``.
    """
    test, train = split(frame, "test")["score"], split(frame, "train")["score"]
    hits, count = float(train.sum()), len(train)
    if not count and {"train_accuracy", "train_n"} <= set(frame) and frame["train_accuracy"].notna().any():
        known = frame.dropna(subset=["train_accuracy", "train_n"]).iloc[0]
        count = int(known["train_n"])
        hits = float(known["train_accuracy"]) * count
    return stats.newcombe(round(hits), count, round(float(test.sum())), len(test))


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="clean", group="generalization")
def worst_class_accuracy(frame: pd.DataFrame) -> Estimate:
    """Accuracy of the worst class, in [0, 1]; n is that class's number of samples.

    The interval runs from the lowest lower to the lowest upper modified Wilson bound of all classes at the level 1 - 0.05/K,
    so that choosing the worst of K classes does not make it too narrow (Bonferroni).
    """
    counts = split(frame, "test").groupby("label")["score"].agg(["sum", "count"])
    if counts.empty:
        return stats.EMPTY
    level = 1 - (1 - stats.LEVEL) / len(counts)
    each = [stats.wilson(round(float(k)), int(n), level=level) for k, n in counts.to_numpy()]
    worst = min(each, key=lambda e: (e.value, e.n))
    return Estimate(worst.value, min(e.low for e in each), min(e.high for e in each), worst.n)
