"""Weight files that try to harm: nothing is executed or written, one line says what is wrong."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robench.errors import ModelError
from robench.models import fresh, load_model
from tests.models.hostile import Payload, pickled, torch_pickled

ARCH = "mlp(num_classes=2, in_channels=1, size=4)"


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "header longer than the file", safetensors({}, length=2**40)
    yield "header of 2**63 bytes", safetensors({}, length=2**63)
    yield "huge shape", safetensors({"a": {**one, "shape": [2**40, 2**40]}}, bytes(8))
    yield "offsets outside", safetensors({"a": {**one, "data_offsets": [0, 2**40]}}, bytes(8))
    yield "negative offsets", safetensors({"a": {**one, "data_offsets": [-8, 0]}}, bytes(8))
    yield "overlap", safetensors({"a": one, "b": one}, bytes(8))
    yield "hole", safetensors({"a": {**one, "data_offsets": [8, 16]}}, bytes(16))
    yield "trailing bytes", safetensors({"a": one}, bytes(16))
    yield "unknown type", safetensors({"a": {**one, "dtype": "pickle"}}, bytes(8))
    yield "nested metadata", safetensors({"__metadata__": {"a": {"b": 1}}, "a": one}, bytes(8))
    yield "deep header", safetensors(b'{"a":' * 100_000)
    text = json.dumps(one).encode()
    yield "one key twice", safetensors(b'{"a":' + text + b',"a":' + text + b"}", bytes(8))
    yield "no JSON", safetensors(b"\xff\xfe")


@pytest.mark.parametrize(("name", "data"), safetensors_files(), ids=lambda v: v if isinstance(v, str) else "")
def test_odd_safetensors_are_told(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(data)
    with pytest.raises(ModelError) as told:
        load_model(str(tmp_path / "net.safetensors"), arch=ARCH)
    assert "\n" not in str(told.value)


def legacy(mark: Path) -> bytes:
    """A file of torch before 1.6: pickles one after the other."""
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, Payload(mark)))


def tar(mark: Path) -> bytes:
    """A file of torch before 0.1.10: a tar archive of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickled(mark)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def script(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def hidden(mark: Path) -> bytes:
    """A state dict whose pickle is in the archive twice."""
    buffer = io.BytesIO()
    torch.save(fresh(ARCH, seed=0).state_dict(), buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/DATA.PKL", pickled(mark))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [pickled, torch_pickled, legacy, tar, script])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".pt2"])
def test_pickles_are_not_executed(make, suffix: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / f"net{suffix}").write_bytes(make(mark))
    with pytest.raises(ModelError) as told:
        load_model(str(tmp_path / f"net{suffix}"), arch=ARCH)
    assert not mark.exists() and "\n" not in str(told.value)


def test_a_second_pickle_of_another_case_is_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "net.pt").write_bytes(hidden(mark))
    try:
        load_model(str(tmp_path / "net.pt"), arch=ARCH)
    except ModelError as error:
        assert "\n" not in str(error)
    assert not mark.exists()
