"""Metrics of the ``twin`` frame: how far a deployed model and the twin that lends it gradients agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from robench.metrics import stats
from robench.metrics.rows import Metric, each
from robench.registry import facts
from robench.spec import Estimate


@facts(version=2, unit="rate", higher_is_better=True, bounds=(0, 1), needs="twin", group="compression")
def twin_agreement(frame: pd.DataFrame) -> Estimate:
    """Share of images on which model and twin predict the same class, in [0, 1], with the modified Wilson interval.

    Args:
        frame: Rows of one kind of images with the column ``agrees``, 0 or 1.
    """
    return stats.rate(frame["agrees"].astype(float))


@facts(version=1, unit="logits", higher_is_better=False, bounds=(0, None), needs="twin", group="compression")
def twin_logit_difference_mean(frame: pd.DataFrame) -> Estimate:
    """Mean absolute difference of a logit, over images and classes, with a bootstrap interval over images.

    Args:
        frame: Rows with the column ``difference_mean``, one image's mean over its classes.
    """
    return stats.mean_interval(frame["difference_mean"])


@facts(version=1, unit="logits", higher_is_better=False, bounds=(0, None), needs="twin", group="compression")
def twin_logit_difference_max(frame: pd.DataFrame) -> Estimate:
    """Largest absolute difference of a logit on any image; NaN where any is.

    Args:
        frame: Rows with the column ``difference_max``.
    """
    if frame.empty:
        return stats.EMPTY
    return Estimate.exact(float(frame["difference_max"].max(skipna=False)), n=len(frame))


@facts(version=1, unit="share", higher_is_better=False, bounds=(0, None), needs="twin", group="compression")
def twin_logit_difference_relative(frame: pd.DataFrame) -> Estimate:
    """Mean over images of the largest difference of a logit as a share of the image's highest minus lowest logit.

    Args:
        frame: Rows with the column ``relative``.

    Returns:
        Value at least 0 with a bootstrap interval over images.
    """
    return stats.mean_interval(frame["relative"])


METRICS: dict[str, Metric] = {
    "twin_agreement": twin_agreement,
    "twin_logit_difference_max": twin_logit_difference_max,
    "twin_logit_difference_mean": twin_logit_difference_mean,
    "twin_logit_difference_relative": twin_logit_difference_relative,
}


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Lines of the tidy table: ``threat`` is the kind of images (clean, a corruption, a threat), ``eps`` the severity."""
    for (images, severity), part in rows.groupby(["images", "severity"]):
        yield from each(METRICS, part, threat=images, **({"eps": float(severity)} if severity else {}))
