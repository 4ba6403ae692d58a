"""Lines of the tidy table on confidence: of frames with ``score`` and ``confidence``, and of the ``calibration`` frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from robench.metrics import calibration, selective
from robench.metrics.rows import Metric, each, row
from robench.metrics.stats import EMPTY, wilson
from robench.spec import Estimate

CONFIDENCE: dict[str, Metric] = {
    "adaptive_ece": calibration.adaptive_ece,
    "augrc": selective.augrc,
    "aurc": selective.aurc,
    "brier": calibration.brier,
    "e_aurc": selective.e_aurc,
    "ece": calibration.ece,
    "mce": calibration.mce,
    "nll": calibration.nll,
    "risk_at_80_coverage": selective.risk_at_80_coverage,
    "risk_at_90_coverage": selective.risk_at_90_coverage,
}
"""Measures of a frame with ``score``, ``confidence``, ``brier`` and ``nll``."""

BEFORE, AFTER = "uncalibrated", "temperature"
"""Column ``attack`` of lines on outputs as they are, and divided by the temperature."""
COVERAGES = tuple(i / 10 for i in range(1, 11))
"""Shares of the images at which the risk-coverage curve is drawn."""


def lines(rows: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Every measure of confidence on every source, before and after temperature scaling; bins and risks for pictures."""
    known = rows["temperature"].dropna()
    temperature = float(known.iloc[0]) if len(known) else math.nan
    split_ = str(rows["split"].iloc[0])
    told = {"attack": f"{AFTER} ({split_})", "threat": split_}
    if math.isnan(temperature):
        reason = "; ".join(sorted(set(rows["error"])))
        yield row("temperature", EMPTY, rows, status="skipped", validity=f"skipped: {reason}", **told)
    else:
        yield row("temperature", Estimate.exact(temperature, int(rows["fit_n"].iloc[0])), rows, **told)
    scalings = {BEFORE: 1.0} if math.isnan(temperature) else {BEFORE: 1.0, f"{AFTER} ({split_})": temperature}
    for source, part in rows.groupby("source", sort=True):
        for name, t in scalings.items():
            yield from _confidence(part, t, threat=source, attack=name, **_doubt(part))


def _doubt(rows: pd.DataFrame) -> dict[str, str]:
    """Status and reason where an attack says nothing of some samples, which count as sure and wrong."""
    reasons = rows["unknown"].fillna("").astype(str)
    count = int((reasons != "").sum())
    if not count:
        return {}
    why = "; ".join(sorted(set(reasons) - {""}))
    return {
        "status": "unknown",
        "excludes": f"{count} of {len(rows)} samples are unknown and count as sure and wrong: {why}",
    }


def _confidence(rows: pd.DataFrame, temperature: float, **told: Any) -> Iterator[dict[str, Any]]:
    """All lines of one source at one temperature."""
    probabilities, labels = (
        calibration.softmax(calibration.stacked(rows), temperature=temperature),
        rows["label"].to_numpy(np.int64),
    )
    frame = calibration.outcomes(probabilities, labels).assign(cell=rows["cell"].to_numpy() if "cell" in rows else "")
    yield from each(CONFIDENCE, frame, **told)
    yield row("classwise_ece", calibration.classwise(probabilities, labels), frame, **told)
    bins_of = calibration.equal_width(frame["confidence"].to_numpy())
    for _, part in frame.groupby(bins_of):
        place = float(part["confidence"].mean())
        yield row("accuracy_in_bin", wilson(round(float(part["score"].sum())), len(part)), part, eps=place, **told)
    for coverage in COVERAGES:
        yield row("risk_at_coverage", selective.risk_at(frame, coverage), frame, eps=coverage, **told)
