"""Metrics of the ``corruption`` frame: accuracy, and errors beside those of AlexNet or of a reference model.

Columns used: ``sample, corruption, family, severity, score, score_clean``, and for mCE ``classes, table, reference, model``.
All intervals resample images, because the corrupted versions of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robench.metrics import stats
from robench.metrics.rows import Metric, each
from robench.registry import facts
from robench.spec import Estimate

ALEXNET: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
        "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
        "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
        "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
    }
)  # fmt: skip
"""AlexNet's mean error over five severities on ImageNet-C: Hendrycks & Dietterich, ICLR 2019, as in their ``test.py``."""
ALEXNET_CLEAN = 0.435
"""AlexNet's error on ImageNet's validation images (Hendrycks & Dietterich, ICLR 2019, table 1: 43.5 %)."""
SEVERITIES = 5
IMAGENET_CLASSES = 1000

Floats = NDArray[np.float64]


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="corruption", group="robustness")
def corrupted_accuracy(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the mean score over corruptions and severities, in [0, 1]; n counts images.

    The interval resamples images, because the corrupted versions of one image are not independent.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (unnormalised mean, as for CIFAR-C).
    """
    if frame["sample"].is_unique:  # one corruption at one severity, as most of a table's lines
        return stats.rate(frame["score"].to_numpy()[np.argsort(frame["sample"].to_numpy(), kind="stable")])
    return stats.rate(frame.groupby("sample")["score"].mean())


@facts(version=1, unit="rate", higher_is_better=True, bounds=(0, 1), needs="corruption", group="robustness")
def family_corrupted_accuracy(frame: pd.DataFrame) -> Estimate:
    """``corrupted_accuracy`` of the corruptions of one family (noise, blur, weather, digital, ...)."""
    return corrupted_accuracy(frame)


@facts(version=1, unit="rate", higher_is_better=False, bounds=(-1, 1), needs="corruption", group="robustness")
def corruption_drop(frame: pd.DataFrame) -> Estimate:
    """Mean corrupted error minus clean error of the same images: the unnormalised form of relative mCE.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4 (relative corruption error, without AlexNet).
    """
    return stats.mean_interval(frame.groupby("sample")["score_clean"].mean() - frame.groupby("sample")["score"].mean())


@facts(version=1, unit="rate", higher_is_better=False, bounds=(0, 1), needs="corruption", group="robustness")
def mean_corruption_error(frame: pd.DataFrame) -> Estimate:
    """Mean error over exactly the 15 corruptions and five severities, not normalised; nothing where one is missing.

    Source: Hendrycks et al. (AugMix), ICLR 2020, section 4.1 (unnormalised, as for CIFAR-10-C).
    """
    errors = benchmark_errors(frame)
    return stats.EMPTY if errors is None else stats.rate(errors.mean(axis=1))


@facts(version=1, unit="ratio", higher_is_better=False, bounds=(0, None), needs="corruption", group="robustness")
def mce_alexnet(frame: pd.DataFrame) -> Estimate:
    """Mean corruption error over AlexNet's: 1 is AlexNet's; nothing unless the images are ImageNet's at 224 pixels.

    Needs all 15 corruptions at five severities, 1000 classes, and the table for 224 pixels (or published images): AlexNet's
    errors mean nothing beside other data.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4, equation of CE.
    """
    errors = benchmark_errors(frame)
    if errors is None or not is_imagenet(frame):
        return stats.EMPTY
    return stats.mean_interval((errors / np.array(list(ALEXNET.values()))).mean(axis=1))


@facts(version=1, unit="ratio", higher_is_better=False, bounds=(-100, None), needs="corruption", group="robustness")
def relative_mce_alexnet(frame: pd.DataFrame) -> Estimate:
    """Mean over corruptions of the rise of the error over AlexNet's rise; nothing unless ``mce_alexnet`` has a value.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4, equation of relative CE.
    """
    errors = benchmark_errors(frame)
    if errors is None or not is_imagenet(frame):
        return stats.EMPTY
    rises = np.array(list(ALEXNET.values())) - ALEXNET_CLEAN
    return stats.mean_interval(((errors - _clean_errors(frame)[:, None]) / rises).mean(axis=1))


@facts(version=1, unit="ratio", higher_is_better=False, bounds=(0, None), needs="corruption", group="robustness")
def mce_reference(frame: pd.DataFrame) -> Estimate:
    """Mean over corruptions of the error over a reference model's on the same images; 1 is the reference's.

    The frame has the reference's scores as ``reference_score``. Nothing where the reference makes no error on a corruption.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4, with another reference than AlexNet.
    """
    own, other = (_by_corruption(frame, column) for column in ("score", "reference_score"))
    return _ratio(1 - own, 1 - other)


@facts(version=1, unit="ratio", higher_is_better=False, bounds=(-100, None), needs="corruption", group="robustness")
def relative_mce_reference(frame: pd.DataFrame) -> Estimate:
    """As ``mce_reference``, of the rises of the error over the clean error; nothing where the reference's does not rise.

    Source: Hendrycks & Dietterich, ICLR 2019, section 4, with another reference than AlexNet.
    """
    own, other = (_by_corruption(frame, column) for column in ("score", "reference_score"))
    clean, clean_other = (
        frame.groupby("sample")[column].mean().to_numpy()[:, None] for column in ("score_clean", "reference_score_clean")
    )
    return _ratio(clean - own, clean_other - other)


def benchmark_errors(frame: pd.DataFrame) -> Floats | None:
    """Mean error over severities per image and corruption, (N, 15) in AlexNet's order; None unless all are there."""
    counts = frame.groupby("corruption")["severity"].nunique()
    if any(counts.get(name, 0) != SEVERITIES for name in ALEXNET):
        return None
    errors: Floats = 1 - _by_corruption(frame[frame["corruption"].isin(ALEXNET)], "score", order=list(ALEXNET))
    return errors


def is_imagenet(frame: pd.DataFrame) -> bool:
    """Whether AlexNet's errors may stand beside the frame's: 1000 classes, images of 224 pixels or published ones."""
    if "classes" not in frame or "table" not in frame:
        return False
    fits = frame["table"].eq("imagenet-v1") | frame["table"].str.startswith("published(")
    return bool((frame["classes"] == IMAGENET_CLASSES).all() and fits.all())


def _by_corruption(frame: pd.DataFrame, column: str, *, order: list[str] | None = None) -> Floats:
    """Mean over severities, (images, corruptions)."""
    table = frame.pivot_table(index="sample", columns="corruption", values=column, aggfunc="mean")
    return np.asarray(table if order is None else table[order], dtype=np.float64)


def _clean_errors(frame: pd.DataFrame) -> Floats:
    return 1 - frame.groupby("sample")["score_clean"].mean().to_numpy(dtype=np.float64)


def _ratio(own: Floats, other: Floats) -> Estimate:
    """Mean over columns of the ratio of column means, bootstrap over rows; nothing where a denominator is not positive."""
    if not len(own) or not (other.mean(axis=0) > 0).all():
        return stats.EMPTY
    value = float((own.mean(axis=0) / other.mean(axis=0)).mean())
    if len(own) == 1:
        return Estimate(value, np.nan, np.nan, 1)

    def statistic(index: NDArray[np.int64]) -> Floats:
        replicates, n = index.shape
        flat = (index + np.arange(replicates)[:, None] * n).ravel()
        counts = np.bincount(flat, minlength=replicates * n).reshape(replicates, n)
        below = counts @ other
        ratios: Floats = np.divide(counts @ own, below, out=np.full_like(below, np.inf), where=below > 0).mean(axis=1)
        return ratios

    low, high = stats.bootstrap(len(own), statistic)
    return Estimate(value, min(low, value), max(high, value), len(own))


def failed(rows: pd.DataFrame) -> pd.Series:
    """Which rows stand for a corruption that was planned and has no result; their score is 0."""
    return rows["failed"].eq(True) if "failed" in rows else pd.Series(False, index=rows.index)


def most(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with failed ones counted as right."""
    return rows.assign(score=rows["score"].mask(failed(rows), 1.0))


def _bounded(*metrics: Metric) -> dict[str, Metric]:
    """Metrics by name, whose intervals hold what failed corruptions could make of the number."""
    return {metric.__name__: partial(_with_failed, metric) for metric in metrics}


def _with_failed(metric: Metric, rows: pd.DataFrame) -> Estimate:
    found = metric(rows)
    return stats.widened(found, metric(most(rows))) if found.n and failed(rows).any() else found


_MEANS: dict[str, Metric] = _bounded(corrupted_accuracy, corruption_drop)
_BENCHMARK: dict[str, Metric] = _bounded(mean_corruption_error, mce_alexnet, relative_mce_alexnet)
_REFERENCE: dict[str, Metric] = _bounded(mce_reference, relative_mce_reference)
_ACCURACY: dict[str, Metric] = _bounded(corrupted_accuracy)
_FAMILY: dict[str, Metric] = _bounded(family_corrupted_accuracy)


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """The tidy table's lines of one model, data set and condition on corrupted images.

    ``threat`` is the corruption, a family, ``mean`` (over all corruptions of the suite) or ``benchmark`` (exactly the 15),
    ``eps`` the severity or missing (over all five), ``attack`` where the images come from, or the reference model.
    """
    more: dict[str, Any] = {"n_clean_correct": int((rows.groupby("sample")["score_clean"].min() > 0).sum())}
    more["attack"] = " + ".join(sorted(rows["source"].unique())) if "source" in rows else ""
    more["n_unknown"] = int(rows.loc[failed(rows), "sample"].nunique())
    yield from each(_MEANS, rows, threat="mean", **more)
    yield from each(_BENCHMARK, rows, threat="benchmark", **more)
    for severity, part in rows.groupby("severity"):
        yield from each(_ACCURACY, part, threat="mean", eps=float(severity), **more)
    yield from _families(rows, **more)
    for (name, severity), part in rows.groupby(["corruption", "severity"]):
        own = {**more, "n_unknown": int(failed(part).sum())}
        yield from each(_ACCURACY, part, threat=name, eps=float(severity), **own)
    yield from _beside_reference(rows, frames["corruption"], **more)


def _families(rows: pd.DataFrame, **more: Any) -> Iterator[dict[str, Any]]:
    if "family" not in rows:
        return
    for family, of_family in rows.groupby("family"):
        yield from each(_FAMILY, of_family, threat=family, **more)
        for severity, part in of_family.groupby("severity"):
            yield from each(_FAMILY, part, threat=family, eps=float(severity), **more)


def _beside_reference(rows: pd.DataFrame, everyone: pd.DataFrame, **more: Any) -> Iterator[dict[str, Any]]:
    """Errors over those of the reference model without conditions, on the same images, where it was measured on all."""
    first = rows.iloc[0]
    same = everyone[(everyone["dataset"] == first["dataset"]) & (everyone["condition"] == "")]
    same = same[same["seed"] == first["seed"]] if "seed" in same else same
    if same.empty or "source" not in rows:
        return
    name = str(first["reference"]) or min(same["model"].unique())
    same = same[(same["model"] == name) & same["source"].isin(rows["source"].unique())]
    if failed(same).any():
        return  # a reference that is worse than it is would flatter everyone beside it
    keys = ["sample", "corruption", "severity"]
    told = same[[*keys, "score", "score_clean"]].rename(
        columns={"score": "reference_score", "score_clean": "reference_score_clean"}
    )
    both = rows.merge(told, on=keys, how="left")
    if len(both) == len(rows) and both["reference_score"].notna().all():
        more["attack"] = f"{more['attack']} over {name}"
        yield from each(_REFERENCE, both, threat="mean", **more)
