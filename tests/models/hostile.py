"""Archives that try to harm whoever reads them, made from the program of an honest small net."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

CANARY = "canary_module"
"""A module that the hostile files name; it marks its import by a file."""


@dataclass(frozen=True)
class Record:
    """One record of an archive, with what an attacker can set of it."""

    name: str
    data: bytes
    method: int = 0
    packed: bytes | None = None
    attributes: int = 0
    flags: int = 0x800
    size: int | None = None
    local_name: str | None = None
    extra: bytes = b""


def honest(path: Path) -> list[Record]:
    """The records of a small convolutional net that was exported for any batch size."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    torch.export.save(torch.export.export(net, (torch.rand(4, 1, 8, 8),), dynamic_shapes=shapes), path)
    with zipfile.ZipFile(path) as archive:
        return [Record(name, archive.read(name)) for name in archive.namelist()]


def written(
    records: list[Record], *, before: bytes = b"", after: bytes = b"", comment: bytes = b"", gap: bytes = b""
) -> bytes:
    """The bytes of a zip archive, as honest as its records."""
    body, entries = bytearray(before), bytearray()
    for record in records:
        offset, name = len(body), record.name.encode()
        packed = record.data if record.packed is None else record.packed
        crc, size = zlib.crc32(record.data), len(record.data) if record.size is None else record.size
        length = len(packed) if record.size is None else size
        head = struct.pack("<HHHHHIII", 20, record.flags, record.method, 0, 0, crc, length, size)
        local = name if record.local_name is None else record.local_name.encode()
        body += b"PK\3\4" + head + struct.pack("<HH", len(local), 0) + local + packed + gap
        tail = struct.pack("<HHHHHII", len(name), len(record.extra), 0, 0, 0, record.attributes, offset)
        entries += b"PK\1\2" + struct.pack("<H", 0x314) + head + tail + name + record.extra
    return bytes(body + entries) + end(len(records), len(entries), len(body), comment) + after


def end(count: int, size: int, start: int, comment: bytes = b"") -> bytes:
    return b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, size, start, len(comment)) + comment


def folder(records: list[Record]) -> str:
    return records[0].name.partition("/")[0]


def named(records: list[Record], name: str) -> int:
    return next(i for i, record in enumerate(records) if record.name.endswith(name))


def with_record(records: list[Record], name: str, data: bytes, **facts: Any) -> list[Record]:
    return [*records, Record(f"{folder(records)}/{name}", data, **facts)]


def changed(records: list[Record], ending: str, /, **facts: Any) -> list[Record]:
    place = named(records, ending)
    return [*records[:place], replace(records[place], **facts), *records[place + 1 :]]


def document(records: list[Record]) -> Any:
    return json.loads(records[named(records, "models/model.json")].data)


def with_document(records: list[Record], change: Callable[[Any], Any]) -> list[Record]:
    found = document(records)
    change(found)
    return changed(records, "models/model.json", data=json.dumps(found).encode())


def with_config(records: list[Record], change: Callable[[Any], Any]) -> list[Record]:
    place = named(records, "model_weights_config.json")
    found = json.loads(records[place].data)
    change(found["config"])
    return changed(records, "model_weights_config.json", data=json.dumps(found).encode())


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


def pickled(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def torch_pickled(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    return buffer.getvalue()


def nodes(found: Any) -> Any:
    return found["graph_module"]["graph"]["nodes"]


def from_file(found: Any, mark: Path) -> None:
    """Maps a file of 72 floats into memory, makes it, and writes the activations into it."""
    graph = found["graph_module"]["graph"]
    meta = json.loads(json.dumps(graph["tensor_values"]["relu"]))
    meta["sizes"], meta["strides"] = [{"as_int": 72}], [{"as_int": 1}]
    given = {"filename": {"as_string": str(mark)}, "shared": {"as_bool": True}, "size": {"as_int": 72}}
    first = node("torch.ops.aten.from_file.default", given, "mapped")
    reduced = node("torch.ops.aten.sum.dim_IntList", {"self": tensor("flatten"), "dim": {"as_ints": [0]}}, "reduced")
    second = node("torch.ops.aten.copy_.default", {"self": tensor("mapped"), "src": tensor("reduced")}, "copied")
    place = next(i for i, n in enumerate(graph["nodes"]) if n["name"] == "linear")
    graph["nodes"][place:place] = [first, reduced, second]
    graph["tensor_values"].update(mapped=meta, reduced=meta, copied=meta)


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def node(target: str, given: dict[str, Any], name: str) -> dict[str, Any]:
    inputs = [{"name": key, "arg": value, "kind": 1} for key, value in given.items()]
    outputs = [tensor(name)]
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": {}, "name": name}


def importing(found: Any) -> None:
    """A structure of outputs whose reader imports a module by name."""
    factory = {"default_factory_module": CANARY, "default_factory_name": "made", "dict_context": ["logits"]}
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": factory, "children_spec": [leaf]}
    found["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, spec])


def four_ways(records: list[Record], mark: Path) -> dict[str, bytes]:
    """The ways in which a file ran code, wrote files, or imported modules before there was a reader of our own."""
    upper = records[named(records, "sample_inputs/model.pt")].name[:-2] + "PT"
    pickle_in_capitals = changed(records, "sample_inputs/model.pt", name=upper, data=torch_pickled(mark))
    writing = with_document(records, lambda found: from_file(found, mark))
    return {
        "capitals": written(pickle_in_capitals),
        "two directories": two_directories(changed(records, "sample_inputs/model.pt", data=torch_pickled(mark)), records),
        "from_file": written(writing),
        "tree spec": written(with_document(records, importing)),
    }


def two_directories(one: list[Record], other: list[Record]) -> bytes:
    """One file with two directories: its zip64 end (which torch follows) points to the first, its plain end to the other."""
    first = written(one)[:-22]
    start, size = _directory_of(one)
    body = bytearray(first)
    shift = len(body)
    second = written(other)
    begin, length = _directory_of(other)
    body += second[:begin]
    entries = bytearray(second[begin : begin + length])
    place = 0
    while place < len(entries):
        names, extra, comment = struct.unpack("<HHH", entries[place + 28 : place + 34])
        offset = struct.unpack("<I", entries[place + 42 : place + 46])[0]
        entries[place + 42 : place + 46] = struct.pack("<I", offset + shift)
        place += 46 + names + extra + comment
    last = len(body)
    body += entries
    at, count = len(body), len(one)
    body += b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 0x31E, 45, 0, 0, count, count, size, start)
    body += b"PK\6\7" + struct.pack("<IQI", 0, at, 1)
    return bytes(body) + end(count, length, last)


def _directory_of(records: list[Record]) -> tuple[int, int]:
    data = written(records)
    size, start = struct.unpack("<II", data[-10:-2])
    return start, size


def odd_archives(r: list[Record], mark: Path) -> Iterator[tuple[str, bytes]]:
    """Archives that are not of the form that torch writes."""
    top, text = folder(r), r[named(r, "models/model.json")]
    deflated = zlib.compress(text.data, 9)[2:-4]
    whole = written(r)
    yield "duplicate names", written([*r, text])
    yield "names that differ in case", written([*r, replace(text, name=f"{top}/models/MODEL.json")])
    yield "deflate", written(changed(r, "models/model.json", method=8, packed=deflated))
    bomb = zlib.compress(bytes(10**7), 9)[2:-4]
    yield "bomb", written(with_record(r, "extra/zeros", bytes(10**7), method=8, packed=bomb))
    yield "lzma", written(changed(r, "models/model.json", method=14))
    yield "method 99", written(changed(r, "models/model.json", method=99))
    yield "encrypted", written(changed(r, "models/model.json", flags=0x801))
    link = {"attributes": 0o120777 << 16}
    yield "symbolic link", written(with_record(r, "extra/link", b"/etc/passwd", **link))
    yield "symbolic link for a tensor", written(changed(r, "weight_0", data=b"/etc/passwd", **link))
    yield "folder", written(with_record(r, "extra/", b"", attributes=0x10))
    yield "huge size", written(changed(r, "weight_0", size=0xFFFFFFF0))
    sizes64 = struct.pack("<HHQQ", 1, 16, 2**50, 2**50)
    yield "zip64 size", written(changed(r, "weight_0", size=0xFFFFFFFF, extra=sizes64))
    yield "zip64 field", written(changed(r, "weight_0", extra=sizes64))
    for name in (
        "../../escaped",
        "/etc/escaped",
        "extra/../../x",
        "extra\\..\\x",
        "extra/\0x",
        "extra//x",
        "C:/x",
        "\u202etp.x",
    ):
        yield f"name {name!a}", written(with_record(r, name, b"x"))
    yield "two folders", written([*r, Record("other/models/model.json", text.data)])
    yield "look-alike name", written(with_record(r, "m\u043edels/model.json", text.data))
    yield "trailing bytes", whole + b"PK" + bytes(10)
    yield "trailing archive", whole + whole
    yield "bytes before", written(r, before=b"#!/bin/sh\n")
    yield "bytes before, offsets kept", b"#!/bin/sh\n" + whole
    yield "gap", written(r, gap=b"hidden")
    yield "comment", written(r, comment=b"hello")
    yield "comment with an end", written(r, comment=end(0, 0, 0))
    yield "overlap", _overlapping(r)
    yield "other local name", written(changed(r, "models/model.json", local_name=text.name[:-1] + "x"))
    yield "wrong checksum", bytes(written(r)).replace(r[0].data, bytes(len(r[0].data)), 1)
    yield "count too small", whole[:-22] + end(len(r) - 1, *reversed(_directory_of(r)))
    yield "empty archive", end(0, 0, 0)
    yield "nothing but a header", b"PK\3\4"
    yield "no program", written([record for record in r if "models/" not in record.name])


def _overlapping(r: list[Record]) -> bytes:
    """The second entry of the directory points into the first record."""
    data = bytearray(written(r))
    start, _ = _directory_of(r)
    second = start + 46 + len(r[0].name.encode())
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(data)


def odd_records(r: list[Record], mark: Path) -> Iterator[tuple[str, bytes]]:
    """Records that torch's reader would unpickle, load or execute."""
    evil, evil_torch = pickled(mark), torch_pickled(mark)
    yield "compiled code", written(with_record(r, "data/aotinductor/model/model.so", b"\x7fELF"))
    yield "library", written(with_record(r, "extra/x.so", b"\x7fELF"))
    yield "legacy weights", written(with_record(r, "data/weights/model.pt", evil_torch))
    yield "legacy constants", written(with_record(r, "data/constants/model.pt", evil_torch))
    yield "custom object", written(with_record(r, "data/constants/custom_obj_0", evil))
    yield "opaque object", written(with_record(r, "data/constants/opaque_obj_0", evil))
    yield "another program", written(with_record(r, "models/other.json", b"{}"))
    yield "pickled tensor", written(with_config(changed(r, "weight_0", data=evil_torch), _first(use_pickle=True)))
    yield "tensor by path", written(with_config(r, _first(path_name="../../../../etc/passwd")))
    yield "tensor named as a class", written(with_config(r, lambda c: c.update({"__class__": next(iter(c.values()))})))
    yield "no tensor facts", written(with_config(r, _first(tensor_meta=None)))
    yield "huge tensor", written(with_config(r, _meta(sizes=[{"as_int": 10**15}], strides=[{"as_int": 1}])))
    yield "huge repeated tensor", written(with_config(r, _meta(sizes=[{"as_int": 10**15}], strides=[{"as_int": 0}])))
    negative = [{"as_int": n} for n in (-1, 1, 1, 1)]
    yield "negative stride", written(with_config(r, _meta(strides=negative)))
    yield "negative size", written(with_config(r, _meta(sizes=negative)))
    yield "offset outside", written(with_config(r, _meta(storage_offset={"as_int": 10**9})))
    yield "type of quantised values", written(with_config(r, _meta(dtype=99)))
    other = b"big" if sys.byteorder == "little" else b"little"
    yield "byte order", written(changed(r, "byteorder", data=other))


def _first(**facts: Any) -> Callable[[Any], Any]:
    return lambda config: next(iter(config.values())).update(facts)


def _meta(**facts: Any) -> Callable[[Any], Any]:
    return lambda config: next(iter(config.values()))["tensor_meta"].update(facts)


def odd_graphs(r: list[Record], mark: Path) -> Iterator[tuple[str, bytes]]:
    """Graphs that call what is no pure operator, or say things that torch's reader would evaluate."""
    code = f"open({str(mark)!r}, 'w')"
    for target in (
        "torch.os.system", "math.__loader__.load_module", "torch.ops.load_library", "torch.load", "torch.hub.load",
        "torch.ops.aten.__class__", "torch.ops.aten.add.__init__", "torch.ops.aten.relu.op", "torch.ops.aten.add.out",
        "torch.ops.aten.relu.out", "torch.ops.aten.set_.source_Storage", "torch.ops.aten.as_strided.default",
        "torch.ops.aten.resize_.default", "torch.ops.aten.bernoulli.default", "torch.ops.aten.rand.default",
        "torch.ops.aten.randn_like.default", "torch.ops.aten._print.default", "torch.ops.aten.save.default",
        "torch.ops.higher_order.cond", "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.profiler._record_function",  # noqa: E501
        "_operator.attrgetter", "_operator.methodcaller", "_operator.call", "_operator.getitem", "operator.add", "builtins.eval",  # noqa: E501
        "#extension:x", "torch.ops.aten.relu.default\n", "torch.ops.\u0430ten.relu.default", "torch.ops.aten.relu_.default.__call__",  # noqa: E501
        CANARY, f"{CANARY}.made", None, 3, ["torch.ops.aten.relu.default"],
    ):  # fmt: skip
        yield f"operator {target!a}", written(with_document(r, lambda f, t=target: nodes(f)[1].update(target=t)))
    yield "writes to the weights", written(with_document(r, lambda f: _writing(f, "p_0_weight")))
    yield "writes to the images", written(with_document(r, lambda f: _writing(f, "input")))
    yield "writes through a view", written(with_document(r, _through_a_view))
    for kind, value in (
        ("as_string", str(mark)), ("as_strings", [str(mark)]), ("as_operator", "torch.os.system"), ("as_custom_obj", {"name": "x"}),  # noqa: E501
        ("as_graph", {"name": "g", "graph": {}}), ("as_device", {"type": "cuda", "index": 0}), ("as_device", {"type": code}),
        ("as_complex", {"real": 0, "imag": 1}), ("as_layout", 1), ("as_int", "1"), ("as_int", True), ("as_float", code),
        ("as_sym_int", {"as_expr": {"expr_str": code}}), ("as_tensor", {"name": "not there"}), ("as_unknown", 1),
        ("as_string_to_argument", {}), ("as_ints", [code]), ("as_tensors", [{"name": code}]),
    ):  # fmt: skip
        plant = {"arg": {kind: value}}
        yield (
            f"argument {kind} {ascii(value)[:30]}",
            written(with_document(r, lambda f, p=plant: nodes(f)[0]["inputs"][2].update(p))),
        )
    big = b'{"graph_module": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    yield "deep text", written(changed(r, "models/model.json", data=big))
    for name, digits in (("70 bits", str(2**70)), ("10000 digits", "9" * 10_000)):
        text = json.dumps(document(r)).replace('"major": 8', f'"major": {digits}')
        yield f"integer of {name}", written(changed(r, "models/model.json", data=text.encode()))
    twice = json.dumps(document(r)).replace('"guards_code":', '"verifiers": [], "guards_code":')
    yield "one key twice", written(changed(r, "models/model.json", data=twice.encode()))
    yield "no JSON", written(changed(r, "models/model.json", data=b"\xff\xfe{}"))
    yield "a list", written(changed(r, "models/model.json", data=b"[]"))
    yield "unknown field", written(with_document(r, lambda f: f.update(planted={"use_pickle": True})))
    yield "schema", written(with_document(r, lambda f: f["schema_version"].update(major=9)))
    yield "expression", written(with_document(r, lambda f: _size_of_images(f, code)))
    yield "expression of a symbol", written(with_document(r, lambda f: _size_of_images(f, "Symbol('().__class__')")))
    call = lambda f: f["graph_module"]["module_call_graph"][0]["signature"]  # noqa: E731
    leaf = {"type": None, "context": None, "children_spec": []}
    for kind in ("collections.OrderedDict", "enum.Enum", f"{CANARY}.made", "builtins.dict", "builtins.tuple"):
        spec = {"type": kind, "context": json.dumps([code]), "children_spec": [leaf]}
        if kind != "builtins.tuple":
            yield (
                f"outputs of {kind}",
                written(with_document(r, lambda f, s=spec: call(f).update(out_spec=json.dumps([1, s])))),
            )
        yield f"inputs of {kind}", written(with_document(r, lambda f, s=spec: call(f).update(in_spec=json.dumps([1, s]))))
    deep = "[1, " + '{"type": "builtins.list", "context": "null", "children_spec": [' * 20_000
    yield "deep outputs", written(with_document(r, lambda f: call(f).update(out_spec=deep)))
    spec = {"as_tensor": {"name": "x"}}
    yield (
        "changes a buffer",
        written(
            with_document(
                r, lambda f: f["graph_module"]["signature"]["output_specs"].__setitem__(0, {"buffer_mutation": spec})
            )
        ),
    )
    yield (
        "custom object as input",
        written(
            with_document(
                r, lambda f: f["graph_module"]["signature"]["input_specs"].__setitem__(0, {"custom_obj": {"arg": {}}})
            )
        ),
    )
    yield (
        "named tuples",
        written(
            with_document(r, lambda f: f["graph_module"].update(treespec_namedtuple_fields={CANARY: {"field_names": []}}))
        ),
    )


def _writing(found: Any, name: str) -> None:
    given = {"self": tensor(name), "src": tensor(name)}
    nodes(found).insert(0, node("torch.ops.aten.copy_.default", given, "written"))


def _through_a_view(found: Any) -> None:
    view = node("torch.ops.aten.flatten.using_ints", {"self": tensor("input")}, "seen")
    given = {"self": tensor("seen"), "src": tensor("seen")}
    nodes(found)[0:0] = [view, node("torch.ops.aten.copy_.default", given, "written")]


def _size_of_images(found: Any, text: str) -> None:
    sizes = found["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
    sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 4}}}


def archives(tmp: Path, mark: Path) -> dict[str, bytes]:
    """All hostile files by what is wrong with them."""
    r = honest(tmp / "honest.pt2")
    return {
        **four_ways(r, mark),
        **{f"archive: {name}": data for name, data in odd_archives(r, mark)},
        **{f"record: {name}": data for name, data in odd_records(r, mark)},
        **{f"graph: {name}": data for name, data in odd_graphs(r, mark)},
    }
