"""Rows as parquet: plain columns come back as they were, all else is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robench.tables import read_parquet, to_parquet

PLAIN = pd.DataFrame(
    {
        "sample": np.arange(3),
        "score": np.array([0.5, np.nan, 1.0], np.float32),
        "broken": [True, False, True],
        "model": ["a", None, "c"],
        "small": np.array([1, 2, 3], np.uint8),
        "kind": pd.Categorical(["x", "y", "x"]),
        "count": pd.array([1, None, 3], "Int64"),
        "nothing": [None, None, None],
    }
)


def test_plain_columns_come_back() -> None:
    pd.testing.assert_frame_equal(read_parquet(to_parquet(PLAIN)), PLAIN)
    empty = PLAIN.iloc[:0]
    assert list(read_parquet(to_parquet(empty)).columns) == list(PLAIN.columns)


def test_lists_of_floats_come_back() -> None:
    """The logits of the calibration scenario."""
    rows = pd.DataFrame({"sample": [0, 1], "logits": [[0.5, -1.0], [float("nan"), 2.0]]})
    found = read_parquet(to_parquet(rows))
    np.testing.assert_array_equal(np.array(found["logits"].tolist()), np.array(rows["logits"].tolist()))


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


class Odd(pa.ExtensionType):
    """A type that a reader could look up by its name."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "odd.type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"import os"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Odd:
        return cls()


def test_columns_of_other_types_are_refused() -> None:
    pa.register_extension_type(Odd())
    try:
        extension = parquet(pa.table({"x": pa.ExtensionArray.from_storage(Odd(), pa.array([1, 2]))}))
        with pytest.raises(ValueError, match="of type"):
            read_parquet(extension)
    finally:
        pa.unregister_extension_type("odd.type")
    for values in (
        pa.array([[1]]),
        pa.array([[[1.0]]]),
        pa.array([["x"]]),
        pa.array([b"x"]),
        pa.array([{"a": 1}]),
        pa.array([0], pa.timestamp("s")),
    ):
        with pytest.raises(ValueError, match="of type"):
            read_parquet(parquet(pa.table({"x": values})))


@pytest.mark.parametrize("kind", ["os.system", "period[D]", "interval", "datetime64[ns]", "Sparse[int]"])
def test_types_named_by_the_metadata_are_refused(kind: str) -> None:
    table = pq.read_table(io.BytesIO(to_parquet(PLAIN[["sample"]])))
    told = json.loads(table.schema.metadata[b"pandas"])
    told["columns"][0]["numpy_type"] = kind
    with pytest.raises(ValueError, match="a column of type"):
        read_parquet(parquet(table.replace_schema_metadata({b"pandas": json.dumps(told).encode()})))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", to_parquet(PLAIN)[:-20]])
def test_damaged_files_are_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="no readable parquet"):
        read_parquet(data)


def test_a_small_file_of_very_many_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = parquet(pa.table({"x": pa.array(np.zeros(100_000, np.int64))}))
    monkeypatch.setattr("robench.tables._MOST_CELLS", 99_999)
    with pytest.raises(ValueError, match="100000 values"):
        read_parquet(many)
