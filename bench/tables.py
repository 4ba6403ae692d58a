"""Per-sample rows as parquet bytes, read as plain columns only: a run directory may come from a stranger."""

from __future__ import annotations

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_MOST_CELLS = 2 * 10**9
"""Most values of one table: 100 times the largest that a suite writes; a few bytes can declare more."""
_DTYPES = {
    "bool", "object", "str", "string", "category", "Int64", "boolean", "Float64", "Float32", "empty", "unicode", "float16",
    "list[float32]", "list[float64]",
    *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)),
}  # fmt: skip
"""Names of types that pandas may be asked for by the metadata of a file."""


def to_parquet(rows: pd.DataFrame) -> bytes:
    """The rows, without their index, as the bytes of a parquet file."""
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def read_parquet(data: bytes) -> pd.DataFrame:
    """The rows of a parquet file that has numbers, truth values, texts and lists of floats only.

    Raises:
        ValueError: Damaged, columns of other types (extension types can carry code), or more values than memory holds.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        schema = file.schema_arrow
        count = file.metadata.num_rows * max(len(schema), 1)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no readable parquet: {error}") from error
    if count > _MOST_CELLS:
        raise ValueError(f"{count} values")
    for column in schema:
        if not _is_plain(column.type):
            raise ValueError(f"column {column.name!a} is of type {str(column.type)[:60]}")
    _check_pandas(schema.metadata or {})
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise ValueError(f"no readable parquet: {error}") from error


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type) and not pa.types.is_dictionary(kind.value_type)
    if pa.types.is_list(kind):  # the logits of a sample
        return pa.types.is_floating(kind.value_type)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(check(kind) for check in (*numbers, pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _check_pandas(metadata: dict[bytes, bytes]) -> None:
    """What the file asks pandas for: plain types of plain columns."""
    told = json.loads(metadata.get(b"pandas", b"{}"))
    if not isinstance(told, dict):
        raise ValueError("metadata that is no object")
    for column in [*told.get("columns", []), *told.get("column_indexes", [])]:
        named = {str(column.get("numpy_type")), str(column.get("pandas_type"))} - {"None"}
        if not named <= _DTYPES | {"categorical"}:
            raise ValueError(f"a column of type {sorted(named - _DTYPES)[0][:60]!a}")
