"""An exported program from the text and the tensors of its archive, without torch's own deserialiser.

Only what is understood is used: tensors from raw bytes, and a graph of admitted operators (``_operators``) whose arguments
are numbers, tensors and a few words. Names of classes, pickles, guards, metadata and symbolic expressions of the file are
never evaluated, and no name of the file becomes a name in generated code, but those of the weights.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from robench.models._operators import EVAL, MAKING, TEXTS, VIEWING, WRITING, admitted, base_name


class ProgramError(ValueError):
    """The program holds something that is not read without trust; the text says what."""


class TrainModeError(ValueError):
    """The program was exported in train mode."""


@dataclass(frozen=True)
class Program:
    """A program as a module, with what it says of its images."""

    module: fx.GraphModule
    sizes: tuple[int | str, ...]
    """Sizes of the input: fixed numbers, or names of sizes that may vary."""
    example: tuple[int, ...]
    """Sizes of the images that it was exported with."""
    limits: Mapping[str, tuple[int, int | None]]
    """Least and largest value of the sizes that may vary."""


_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_STRIDED = 7
_SCHEMA = 8
"""Major version of torch's schema that this reader knows (torch 2.11 to 2.13)."""
_NAME = re.compile(r"[A-Za-z0-9_]{1,200}")
_WEIGHT_NAME = re.compile(r"(?!__)[A-Za-z0-9_]+(\.(?!__)[A-Za-z0-9_]+)*")
_LONGEST_NAME = 500
_SYMBOL = re.compile(r"Symbol\('([su]\d{1,9})'(?:, (?:positive|integer|nonnegative)=True)*\)|([su]\d{1,9})")
_RECORDS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/weights/model_weights_config\.json|models/model\.json"
    r"|data/constants/model_constants_config\.json|data/sample_inputs/model\.pt|archive_format|archive_version"
    r"|\.data/version|\.data/serialization_id|byteorder|\.format_version|\.storage_alignment|version|extra/[A-Za-z0-9_.-]+"
)
"""Every record that torch.export.save writes; ``sample_inputs`` (a pickle) and ``extra`` are never opened."""
_LARGEST_TEXT = 64 * 2**20
"""Bytes of the graph's JSON text: a thousand times what a ResNet-18 needs (60 kB without, 400 kB with stack traces)."""
_MAX_NODES = 200_000


def read_program(records: Mapping[str, memoryview]) -> Program:
    """The program of an archive's records.

    Raises:
        ProgramError: Unknown records or fields, operators that are not admitted, or pickled parts.
        TrainModeError: Batch norm or dropout in train mode.
        ValueError: Damaged: values that do not fit together.
    """
    _require_known(records)
    document = _parsed(records, "models/model.json")
    _keys(document, "graph_module opset_version range_constraints schema_version", "verifiers torch_version guards_code")
    if document["schema_version"].get("major") != _SCHEMA:
        raise ProgramError(f"a schema of another version of torch ({str(document['schema_version'])[:60]})")
    stored = _tensors(records, "data/weights/", "weights", "weight_")
    stored |= _tensors(records, "data/constants/", "constants", "tensor_")
    return _Builder(document, stored).build()


def _require_known(records: Mapping[str, memoryview]) -> None:
    for name in records:
        if name.startswith("data/aotinductor/") or name.lower().endswith((".so", ".dll", ".dylib", ".cubin")):
            raise ProgramError(f"compiled code ({name[:80]})")
        if not _RECORDS.fullmatch(name):
            kind = "a pickle" if name.lower().endswith(".pt") or "_obj_" in name else "an unknown record"
            raise ProgramError(f"{kind} ({name[:80]})")
    if "byteorder" in records and bytes(records["byteorder"]) != sys.byteorder.encode():
        raise ValueError("tensors in another byte order than this machine's")


def _parsed(records: Mapping[str, memoryview], name: str) -> dict[str, Any]:
    if name not in records:
        raise ValueError(f"the archive has no {name}")
    if len(records[name]) > _LARGEST_TEXT:
        raise ProgramError(f"{len(records[name])} bytes of text ({name})")
    try:
        found = json.loads(bytes(records[name]), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError as error:
        raise ProgramError(f"text that is nested too deep ({name})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProgramError("a JSON object with one key twice")
    return found


def _integer(text: str) -> int:
    """An integer of the file; torch's are 64 bits wide (20 characters with the sign)."""
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ProgramError(f"an integer of more than 64 bits ({text[:30]})")
    return int(text)


def _keys(value: Any, needed: str, optional: str = "") -> None:
    """Refuse what is no object with exactly the known fields."""
    if not isinstance(value, dict):
        raise ValueError(f"an object with {needed} is missing")
    missing, unknown = set(needed.split()) - set(value), set(value) - set(needed.split()) - set(optional.split())
    if missing:
        raise ValueError(f"a field is missing: {min(missing)}")
    if unknown:
        raise ProgramError(f"an unknown field ({min(unknown)[:60]!a})")


def _union(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("an argument has more than one kind")
    return next(iter(value.items()))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tensors(records: Mapping[str, memoryview], folder: str, kind: str, prefix: str) -> dict[str, Tensor]:
    """Stored tensors by name; those that share a record share their memory."""
    config = _parsed(records, f"{folder}model_{kind}_config.json")
    _keys(config, "config")
    shared: dict[tuple[str, torch.dtype], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, about in config["config"].items():
        _keys(about, "path_name is_param use_pickle tensor_meta")
        if about["use_pickle"] is not False or about["tensor_meta"] is None:
            raise ProgramError(f"a pickle ({name[:80]!a})")
        path = about["path_name"]
        if not isinstance(path, str) or not re.fullmatch(prefix + r"\d+", path) or folder + path not in records:
            raise ProgramError(f"a tensor stored in an unusual place ({str(path)[:60]!a})")
        if not _WEIGHT_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ProgramError(f"a tensor of an unusual name ({name[:60]!a})")
        dtype = _dtype(about["tensor_meta"])
        if (path, dtype) not in shared:
            shared[path, dtype] = _flat(records[folder + path], dtype)
        tensor = _strided(shared[path, dtype], about["tensor_meta"])
        trainable = about["tensor_meta"]["requires_grad"] is True
        found[name] = nn.Parameter(tensor, requires_grad=trainable) if about["is_param"] is True else tensor
    return found


def _dtype(meta: Any) -> torch.dtype:
    _keys(meta, "dtype sizes requires_grad device strides storage_offset layout")
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED:
        raise ProgramError(f"a tensor of an unusual type ({str(meta['dtype'])[:20]})")
    return _DTYPES[meta["dtype"]]


def _flat(content: memoryview, dtype: torch.dtype) -> Tensor:
    """A record as a flat tensor of its own memory."""
    if len(content) % dtype.itemsize:
        raise ValueError("a tensor's bytes are no whole number of values")
    if not len(content):
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool and set(bytes(content)) - {0, 1}:
        raise ValueError("a tensor of truth values holds other values")
    return torch.frombuffer(bytearray(content), dtype=dtype)


def _strided(flat: Tensor, meta: dict[str, Any]) -> Tensor:
    sizes, strides = _fixed(meta["sizes"]), _fixed(meta["strides"])
    (offset,) = _fixed([meta["storage_offset"]])
    if len(sizes) != len(strides) or len(sizes) > 8:
        raise ValueError("a tensor's sizes and strides differ in number")
    count, last = 1, offset
    for size, stride in zip(sizes, strides, strict=True):
        count, last = count * size, last + max(size - 1, 0) * stride
    if count > len(flat) or (count and last >= len(flat)):
        raise ValueError("a tensor is larger than its record")
    return flat.as_strided(sizes, strides, offset) if count else torch.empty(sizes, dtype=flat.dtype)


def _fixed(values: Any) -> list[int]:
    """Sizes that are numbers, not negative."""
    found = [_union(value) for value in values]
    if any(kind != "as_int" or not _is_integer(v) or v < 0 for kind, v in found):
        raise ValueError("a tensor's sizes are no numbers")
    return [v for _, v in found]


@dataclass
class _Builder:
    """Builds the module node by node; names of the file are keys of ``values`` and nothing else."""

    document: dict[str, Any]
    stored: dict[str, Tensor]
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, fx.Node] = field(default_factory=dict)
    own: set[fx.Node] = field(default_factory=set)
    """Nodes whose memory the program made itself."""
    unsaved: list[str] = field(default_factory=list)
    """Names of tensors that are no part of the state dict."""

    def build(self) -> Program:
        module = self.document["graph_module"]
        _keys(module, "graph signature module_call_graph", "metadata treespec_namedtuple_fields")
        graph, signature = module["graph"], module["signature"]
        others = "is_single_tensor_return custom_obj_values sym_float_values"
        _keys(graph, "inputs outputs nodes tensor_values sym_int_values sym_bool_values", others)
        _keys(signature, "input_specs output_specs")
        if graph.get("custom_obj_values") or module.get("treespec_namedtuple_fields"):
            raise ProgramError("objects of classes")
        if len(graph["nodes"]) > _MAX_NODES:
            raise ProgramError(f"a graph of {len(graph['nodes'])} operators")
        images = self._inputs(graph["inputs"], signature["input_specs"])
        _require_no_training(graph["nodes"])
        for node in graph["nodes"]:
            self._node(node)
        results = self._outputs(graph["outputs"], signature["output_specs"])
        self.graph.output(_in_structure(_structures(module["module_call_graph"]), results))
        built = fx.GraphModule(self.root, self.graph, class_name="ExportedProgram")
        for name in self.unsaved:
            parent, _, last = name.rpartition(".")
            built.get_submodule(parent)._non_persistent_buffers_set.add(last)
        sizes, example = _image_sizes(graph["tensor_values"].get(images))
        return Program(built, sizes, example, _limits(self.document["range_constraints"]))

    def _inputs(self, inputs: list[Any], specs: list[Any]) -> str:
        """Weights, and the name of the one input that takes images."""
        if len(inputs) != len(specs):
            raise ValueError("inputs and their description differ in number")
        images: list[str] = []
        weights: list[tuple[str, str, bool]] = []
        for given, spec in zip(inputs, specs, strict=True):
            name, (kind, about) = self._tensor_name(given), _union(spec)
            if kind == "user_input":
                images.append(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                weights.append((name, about[f"{kind}_name"], kind != "tensor_constant" and about.get("persistent", True)))
            else:
                raise ProgramError(f"an input that is no tensor ({kind[:40]!a})")
        if len(images) != 1:
            raise ValueError(f"the program takes {len(images)} inputs; a classifier takes images only")
        self._define(images[0], self.graph.placeholder("x"))
        for name, weight, kept in weights:
            self._weight(name, weight, bool(kept))
        return images[0]

    def _tensor_name(self, argument: Any) -> str:
        kind, about = _union(argument)
        if kind != "as_tensor":
            raise ProgramError(f"an input or output that is no tensor ({kind[:40]!a})")
        return _name(about)

    def _define(self, name: str, node: fx.Node, *, own: bool = False) -> None:
        if name in self.values:
            raise ValueError(f"{name!a} is defined twice")
        self.values[name] = node
        if own:
            self.own.add(node)

    def _weight(self, name: str, weight: Any, kept: bool) -> None:
        if not isinstance(weight, str) or weight not in self.stored:
            raise ValueError(f"the tensor {str(weight)[:60]!a} is missing")
        _register(self.root, weight, self.stored[weight])
        if not kept:
            self.unsaved.append(weight)
        self._define(name, self.graph.get_attr(weight))

    def _node(self, node: Any) -> None:
        _keys(node, "target inputs outputs metadata", "is_hop_single_tensor_return name")
        target = node["target"]
        function = admitted(target) if isinstance(target, str) else None
        if function is None:
            raise ProgramError(f"an operator that is not known to be harmless ({str(target)[:80]!a})")
        args, kwargs = self._arguments(function, node["inputs"])
        _require_eval(function, args, kwargs)
        made = self.graph.call_function(function, tuple(args), kwargs)
        self._results(made, node["outputs"], own=self._is_own(function, args))

    def _is_own(self, function: Callable[..., Any], args: list[Any]) -> bool:
        """Whether the result is memory of the program's own; refuses an operator that writes to any other."""
        name = base_name(function)
        first = bool(args) and isinstance(args[0], fx.Node) and args[0] in self.own
        if name in WRITING and not first:
            raise ProgramError(f"an operator that changes images or weights ({name})")
        return name in MAKING or (name in VIEWING | WRITING and first)

    def _arguments(self, function: Callable[..., Any], inputs: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, in the order of the operator's schema."""
        if not isinstance(function, torch._ops.OpOverload):
            return [self._value(given["arg"], "") for given in inputs], {}
        for given in inputs:
            _keys(given, "name arg", "kind")
        found = {given["name"]: self._value(given["arg"], str(given["name"])) for given in inputs}
        wanted = function._schema.arguments
        if len(found) != len(inputs) or set(found) - {argument.name for argument in wanted}:
            raise ValueError(f"{base_name(function)} has unknown or double arguments")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for position, argument in enumerate(wanted):
            if argument.name not in found:
                continue
            if argument.kwarg_only or position != len(args):
                kwargs[argument.name] = found[argument.name]
            else:
                args.append(found[argument.name])
        return args, kwargs

    def _value(self, argument: Any, name: str) -> Any:
        """One argument: a number, a word, a node, or a list of them."""
        kind, value = _union(argument)
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._reference(kind, value)
        if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._reference(kind.removesuffix("s"), item) for item in value]
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [_number(kind.removesuffix("s"), item) for item in value]
        if kind in ("as_int", "as_float", "as_bool"):
            return _number(kind, value)
        return _setting(kind, value, name)

    def _reference(self, kind: str, value: Any) -> Any:
        """A tensor or a size by its name, or the number that stands in its place."""
        if kind == "as_tensor":
            return self._node_of(_name(value))
        inner, content = _union(value)
        if inner == "as_name":
            return self._node_of(content)
        if inner == "as_tensor":
            return self._node_of(_name(content))
        return None if inner == "as_none" else _number(inner, content)

    def _node_of(self, name: Any) -> fx.Node:
        if not isinstance(name, str) or name not in self.values:
            raise ValueError(f"{str(name)[:60]!a} is used before it is made")
        return self.values[name]

    def _results(self, made: fx.Node, outputs: list[Any], *, own: bool) -> None:
        """Names the result; several results, or a list of them, are taken apart."""
        if len(outputs) == 1:
            kind, value = _union(outputs[0])
            if kind == "as_tensor":
                return self._define(_name(value), made, own=own)
            if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
                return self._define(_symbol_name(value), made)
            if kind == "as_none":
                return None
            if kind != "as_tensors":
                raise ProgramError(f"a result of an unusual kind ({kind[:40]!a})")
            outputs = [{"as_tensor": item} for item in value]
        for position, output in enumerate(outputs):
            kind, value = _union(output)
            if kind not in ("as_tensor", "as_none", "as_sym_int"):
                raise ProgramError(f"a result of an unusual kind ({kind[:40]!a})")
            if kind != "as_none":
                part = self.graph.call_function(operator.getitem, (made, position))
                self._define(
                    _name(value) if kind == "as_tensor" else _symbol_name(value), part, own=own and kind == "as_tensor"
                )
        return None

    def _outputs(self, outputs: list[Any], specs: list[Any]) -> list[fx.Node]:
        if len(outputs) != len(specs):
            raise ValueError("outputs and their description differ in number")
        for spec in specs:
            kind, _ = _union(spec)
            if kind != "user_output":
                raise ProgramError(f"a program that changes its own state ({kind[:40]!a})")
        return [self._node_of(self._tensor_name(output)) for output in outputs]


def _name(about: Any) -> str:
    """The name of a tensor: a key for look-ups, so it may be any short text."""
    _keys(about, "name")
    if not isinstance(about["name"], str) or len(about["name"]) > _LONGEST_NAME:
        raise ValueError("a tensor's name is no text")
    return about["name"]


def _symbol_name(value: Any) -> str:
    kind, name = _union(value)
    if kind != "as_name" or not isinstance(name, str):
        raise ValueError("a size without a name")
    return name


def _number(kind: str, value: Any) -> int | float | bool:
    if kind == "as_bool" and isinstance(value, bool):
        return value
    if kind == "as_int" and _is_integer(value):
        return int(value)
    if kind == "as_float" and (_is_integer(value) or isinstance(value, float)):
        return float(value)
    if kind == "as_float" and value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    raise ProgramError(f"an argument of an unusual kind ({kind[:40]!a})")


def _setting(kind: str, value: Any, name: str) -> Any:
    """A type, a layout, a device, or a word that the argument ``name`` may have."""
    if kind == "as_string" and isinstance(value, str) and name in TEXTS and TEXTS[name].fullmatch(value):
        return "a condition of the export does not hold" if name == "msg" else value
    if kind == "as_scalar_type" and value in _DTYPES:
        return _DTYPES[value]
    if kind == "as_memory_format" and value in _MEMORY_FORMATS:
        return _MEMORY_FORMATS[value]
    if kind == "as_layout" and value == _STRIDED:
        return torch.strided
    if kind == "as_device" and isinstance(value, dict) and value.get("type") == "cpu":
        return torch.device("cpu")
    raise ProgramError(f"an argument of an unusual kind ({kind[:40]!a} {str(value)[:60]!a})")


def _require_no_training(nodes: list[Any]) -> None:
    """Told before anything else: a graph in train mode also changes its buffers, which is the lesser reason."""
    for node in nodes:
        name = str(node.get("target")).removeprefix("torch.ops.aten.").partition(".")[0]
        switch, off = EVAL.get(name, ("", False))
        for given in node.get("inputs", ()):
            if off is False and given.get("name") == switch and given.get("arg") == {"as_bool": True}:
                raise TrainModeError(name)


def _require_eval(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
    """Batch norm or dropout in train mode would make the output random or move buffers."""
    name = base_name(function)
    if not isinstance(function, torch._ops.OpOverload) or name not in EVAL:
        return
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)} | kwargs
    switch, off = EVAL[name]
    value = named.get(switch, off)
    if isinstance(value, fx.Node) or value != off:
        raise TrainModeError(name)


def _register(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor at its dotted name, with modules on the way."""
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            if hasattr(module, part):
                raise ValueError(f"{name} is a name that modules use themselves")
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if hasattr(module, last):
        raise ValueError(f"{name} is a name that modules use themselves, or is there twice")
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)


def _structures(entries: Any) -> Any:
    """The structure of the outputs; the inputs have to be one tensor."""
    top = [entry["signature"] for entry in entries if entry["fqn"] == ""]
    if len(top) != 1 or top[0] is None:
        raise ValueError("the program's call is not described")
    _keys(top[0], "inputs outputs in_spec out_spec", "forward_arg_names")
    inputs = _structure(top[0]["in_spec"])
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    if not (_is_structure(inputs, "tuple", 2) and _is_structure(inputs["children_spec"][0], "tuple", 1)):
        raise ValueError("the program does not take one argument")
    if inputs["children_spec"][0]["children_spec"][0] != leaf or not _is_structure(inputs["children_spec"][1], "dict", 0):
        raise ValueError("the program does not take one tensor")
    return _structure(top[0]["out_spec"])


def _structure(text: Any) -> Any:
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) < 100_000 else None
    except RecursionError as error:
        raise ProgramError("a structure that is nested too deep") from error
    if not isinstance(found, list) or len(found) != 2 or found[0] != 1:
        raise ValueError("a structure of arguments that is not known")
    return found[1]


def _is_structure(spec: Any, kind: str, children: int) -> bool:
    _keys(spec, "type context children_spec")
    return spec["type"] == f"builtins.{kind}" and len(spec["children_spec"]) == children


def _in_structure(spec: Any, results: list[fx.Node]) -> Any:
    """The results in tuples, lists and dictionaries as the program returns them."""
    left = list(results)
    made = _filled(spec, left, depth=0)
    if left:
        raise ValueError("more results than the structure of the outputs has places")
    return made


def _filled(spec: Any, left: list[fx.Node], *, depth: int) -> Any:
    _keys(spec, "type context children_spec")
    kind, children = spec["type"], spec["children_spec"]
    if depth > 5 or not isinstance(children, list):
        raise ProgramError("outputs that are nested too deep")
    if kind is None:
        if not left or children:
            raise ValueError("fewer results than the structure of the outputs has places")
        return left.pop(0)
    if kind not in ("builtins.tuple", "builtins.list", "builtins.dict"):
        raise ProgramError(f"outputs of a class ({str(kind)[:60]!a})")
    parts = [_filled(child, left, depth=depth + 1) for child in children]
    if kind != "builtins.dict":
        return tuple(parts) if kind == "builtins.tuple" else parts
    keys = json.loads(spec["context"])
    if (
        not isinstance(keys, list)
        or len(keys) != len(parts)
        or not all(isinstance(k, str) and _NAME.fullmatch(k) for k in keys)
    ):
        raise ProgramError("outputs with unusual names")
    return dict(zip(keys, parts, strict=True))


def _image_sizes(meta: Any) -> tuple[tuple[int | str, ...], tuple[int, ...]]:
    """Sizes of the input, a name where they vary, and those of the example."""
    _dtype(meta)
    sizes: list[int | str] = []
    example: list[int] = []
    for size in meta["sizes"]:
        kind, value = _union(size)
        if kind == "as_int" and _is_integer(value):
            sizes.append(value)
            example.append(value)
            continue
        _keys(value, "expr_str", "hint")
        match = _SYMBOL.fullmatch(str(value["expr_str"]))
        hint = value.get("hint") or {}
        if match is None or not _is_integer(hint.get("as_int")):
            raise ProgramError(f"an expression ({str(value['expr_str'])[:60]!a})")
        sizes.append(match.group(1) or match.group(2))
        example.append(hint["as_int"])
    return tuple(sizes), tuple(example)


def _limits(constraints: Any) -> dict[str, tuple[int, int | None]]:
    """Range of every named size; what is no name of a size limits nothing here, and is not evaluated."""
    found = {}
    for name, about in constraints.items():
        _keys(about, "min_val max_val")
        low, high = about["min_val"], about["max_val"]
        if _SYMBOL.fullmatch(name):
            found[name] = (low if _is_integer(low) else 0, high if _is_integer(high) else None)
    return found
