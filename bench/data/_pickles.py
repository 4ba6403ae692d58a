"""Reading the pickled batches of CIFAR without running what a pickle may contain.

Nothing of numpy is reachable from the file: the few names that pickled arrays mention are replaced by plain stand-ins.

Source: Python documentation, module pickle, "Restricting Globals"; numpy's ``ndarray.__reduce__`` for the layout.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from robench.data._sources import read_bytes
from robench.errors import DataError, must

_CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "b1", "f4", "f8")
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class _Dtype:
    """Stand-in for ``numpy.dtype``: a number type, nothing else."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code
        self.order = "="
        if self.code not in _CODES:
            raise DataError(must("the type of a pickled array", "a number type", self.code, "use the official files"))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">") else "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Stand-in for ``numpy.ndarray``."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _build(raw, dtype, shape, order="F" if fortran else "C")


def _build(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], *, order: str) -> np.ndarray[Any, Any]:
    if len(raw) != math.prod(shape) * dtype.numpy().itemsize:
        raise ValueError("an array with another number of bytes than its shape says")
    return np.frombuffer(raw, dtype=dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: Any) -> _Array:
    array = _Array()
    array.value = _build(raw, dtype, shape, order=order)
    return array


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            remedy = "it may run code: download the official archive again, or use its binary version"
            raise DataError(must("a pickled batch", "plain arrays, lists and dictionaries", f"{module}.{name}", remedy))
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of a pickled batch, keys as text, arrays as read-only numpy arrays; no code of the file is run.

    Raises:
        DataError: Anything but arrays, lists, dictionaries and plain values, or a damaged file.
    """
    try:
        found = _Restricted(io.BytesIO(read_bytes(path)), encoding="bytes").load()
    except _DAMAGED as error:
        raise DataError(must(path.name, "a readable pickled batch", str(error), "download it again")) from error
    if not isinstance(found, dict):
        raise DataError(must(path.name, "a pickled dictionary", type(found).__name__, "use the official files"))
    return {_text(key): value.value if isinstance(value, _Array) else value for key, value in found.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
