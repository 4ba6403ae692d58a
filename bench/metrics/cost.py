"""Metrics of the ``efficiency`` frame: its single row, as exact numbers."""

from __future__ import annotations

import pandas as pd

from robench.metrics.stats import EMPTY
from robench.registry import facts
from robench.spec import Estimate


def _only(frame: pd.DataFrame, column: str) -> Estimate:
    known = frame[column].dropna()
    return EMPTY if known.empty else Estimate.exact(float(known.iloc[0]))


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def parameters(frame: pd.DataFrame) -> Estimate:
    """Number of parameters."""
    return _only(frame, "parameters")


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def macs(frame: pd.DataFrame) -> Estimate:
    """Multiply-accumulate operations of one image."""
    return _only(frame, "macs")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def stored_bytes(frame: pd.DataFrame) -> Estimate:
    """Bytes of the stored weights."""
    return _only(frame, "stored_bytes")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_p50_ms(frame: pd.DataFrame) -> Estimate:
    """Median latency of one batch in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_p50_ms")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_p95_ms(frame: pd.DataFrame) -> Estimate:
    """95th percentile of the latency of one batch in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_p95_ms")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def peak_memory_bytes(frame: pd.DataFrame) -> Estimate:
    """Peak memory in bytes (measured: differs between runs)."""
    return _only(frame, "peak_memory_bytes")
