"""Metrics of the ``efficiency`` frame: its single row, as exact numbers."""

from __future__ import annotations

import pandas as pd

from robench.metrics.stats import EMPTY
from robench.registry import facts
from robench.spec import Estimate


def _only(frame: pd.DataFrame, column: str) -> Estimate:
    known = frame[column].dropna() if column in frame else frame.iloc[:0]
    return EMPTY if known.empty else Estimate.exact(float(known.iloc[0]))


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def parameters(frame: pd.DataFrame) -> Estimate:
    """Number of parameters."""
    return _only(frame, "parameters")


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def nonzero(frame: pd.DataFrame) -> Estimate:
    """Number of parameters that are not 0."""
    return _only(frame, "nonzero")


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def macs(frame: pd.DataFrame) -> Estimate:
    """Multiply-accumulate operations of one image, as if dense."""
    return _only(frame, "macs")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def stored_bytes(frame: pd.DataFrame) -> Estimate:
    """Bytes of all files of the form that ships."""
    return _only(frame, "stored_bytes")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def nominal_bytes(frame: pd.DataFrame) -> Estimate:
    """Bytes of the non-zero parameters at their bits, without their places."""
    return _only(frame, "nominal_bytes")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_p50_ms(frame: pd.DataFrame) -> Estimate:
    """Median latency of one image in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_p50_ms")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_p95_ms(frame: pd.DataFrame) -> Estimate:
    """95th percentile of the latency of one image in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_p95_ms")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_large_p50_ms(frame: pd.DataFrame) -> Estimate:
    """Median latency of a large batch in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_large_p50_ms")


@facts(version=1, unit="ms", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def latency_large_p95_ms(frame: pd.DataFrame) -> Estimate:
    """95th percentile of the latency of a large batch in milliseconds (measured: differs between runs)."""
    return _only(frame, "latency_large_p95_ms")


@facts(version=1, unit="images/s", higher_is_better=True, bounds=(0, None), needs="efficiency", group="efficiency")
def throughput(frame: pd.DataFrame) -> Estimate:
    """Images per second at the best batch size (measured: differs between runs)."""
    return _only(frame, "throughput")


@facts(version=1, unit="count", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def throughput_batch(frame: pd.DataFrame) -> Estimate:
    """Batch size of the throughput (measured: differs between runs)."""
    return _only(frame, "throughput_batch")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def peak_memory_bytes(frame: pd.DataFrame) -> Estimate:
    """Memory that the model and one large batch add at most (measured: differs between runs)."""
    return _only(frame, "peak_memory_bytes")


@facts(version=1, unit="bytes", higher_is_better=False, bounds=(0, None), needs="efficiency", group="efficiency")
def peak_tensor_bytes(frame: pd.DataFrame) -> Estimate:
    """Bytes of the tensors alive at once in one forward of a large batch, at most."""
    return _only(frame, "peak_tensor_bytes")


METRICS = {
    "latency_large_p50_ms": latency_large_p50_ms,
    "latency_large_p95_ms": latency_large_p95_ms,
    "latency_p50_ms": latency_p50_ms,
    "latency_p95_ms": latency_p95_ms,
    "macs": macs,
    "nominal_bytes": nominal_bytes,
    "nonzero": nonzero,
    "parameters": parameters,
    "peak_memory_bytes": peak_memory_bytes,
    "peak_tensor_bytes": peak_tensor_bytes,
    "stored_bytes": stored_bytes,
    "throughput": throughput,
    "throughput_batch": throughput_batch,
}
