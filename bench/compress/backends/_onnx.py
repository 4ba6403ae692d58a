"""ONNX Runtime: the float model as it is exported, and its static quantisation to integers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.compress.backends._require import quietly, require
from robench.compress.backends._twin import Twin
from robench.errors import ConfigError, ModelError, NoGradientError, must, suggestion
from robench.registry import facts

EXTRA = "onnx"
INPUT, OUTPUT = "images", "logits"
FILE = "model.onnx"
"""Name under which a model's only file is kept; weights lie inside it, not in a ``.onnx.data`` beside it."""

RANGES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""How the range of an activation follows from what was observed, and the name that ONNX Runtime has for it."""

_GRIDS = ("QuantizeLinear", "DequantizeLinear")
"""Operators whose inputs behind the first are scales and zero points."""

_CHUNK = 64
"""Calibration images at once, at most."""


@facts(
    version=1, simulated=False, gradient=False, needs="calibration", requires="onnxruntime",
    stored="robench.compress.backends._onnx:opened",
)  # fmt: skip
def onnx_int8(model: nn.Module, *, calibration: Tensor, ranges: str = "percentile") -> nn.Module:
    """The model as ONNX Runtime executes it in 8-bit integers, without a gradient; its twin has a straight-through one.

    Static quantisation (QDQ): weights symmetric, one scale per output channel; activations affine, one scale per tensor,
    from calibration images. Every operator that ONNX Runtime knows in integers is quantised, attention included; the
    logits of a last linear layer leave as floats, since on 256 levels they would tie.

    Args:
        model: Left as it is; moved to the CPU in a copy.
        calibration: Training images (N, C, H, W) in [0, 1], N at least 1.
        ranges: ``percentile`` (0.01 and 99.99), ``minmax`` or ``entropy``.

    Raises:
        NotInstalledError: onnx, onnxscript or onnxruntime is not there.
        ConfigError: Unknown ranges, or calibration that is no batch of images.
        ModelError: The model cannot be exported.

    Source: Jacob et al., CVPR 2018, section 3; Nagel et al., arXiv 2106.08295, section 3 (ranges).
    """
    if ranges not in RANGES:
        raise ConfigError(must("ranges", "one of " + ", ".join(RANGES), ranges, suggestion(ranges, RANGES)))
    if calibration.ndim != 4 or len(calibration) == 0:
        raise ConfigError(must("calibration", "images (N, C, H, W)", tuple(calibration.shape), "pass training images"))
    return OnnxModel(_quantised(_exported(model, calibration[:2]), calibration.cpu(), ranges))


@facts(
    version=1, simulated=False, gradient=False, needs="calibration", requires="onnxruntime",
    stored="robench.compress.backends._onnx:opened",
)  # fmt: skip
def onnx_fp32(model: nn.Module, *, calibration: Tensor) -> nn.Module:
    """The model as ONNX Runtime executes it in float32: the control of ``onnx_int8``, of the same runtime.

    Args:
        model: Left as it is; moved to the CPU in a copy.
        calibration: Images (N, C, H, W), of which only the shape matters.

    Raises:
        NotInstalledError: onnx, onnxscript or onnxruntime is not there.
        ModelError: The model cannot be exported.
    """
    return OnnxModel(_exported(model, calibration[:2]))


def opened(files: Mapping[str, bytes]) -> nn.Module:
    """The model of kept files."""
    return OnnxModel(files[FILE])


class OnnxModel(nn.Module):
    """A model that ONNX Runtime executes on the CPU: images (N, C, H, W) of any type and device → logits (N, K) of the same.

    It has no parameters, buffers or gradient; ``substitute`` says where a gradient can be had. Pickles carry the file, and
    every process opens its own session, with as many threads as torch has there.

    Args:
        file: A serialised ONNX model.
    """

    gradient = False
    """Says that no gradient is to be had from the module itself (see ``robench.bpda.differentiable``)."""
    substitute = "smooth"
    """What a search for gradients takes in place of the missing one (see ``robench.bpda``)."""

    def __init__(self, file: bytes) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {FILE: file}
        self._sessions: dict[int, Any] = {}
        self._twins: dict[str, Twin] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}, "_twins": {}}

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().to("cpu", torch.float32).contiguous().numpy()
        (logits,) = self._session().run([OUTPUT], {INPUT: images})
        return torch.from_numpy(logits).to(x.device, x.dtype)

    def smooth(self, x: Tensor) -> Tensor:
        """The twin's logits (N, K), which have a gradient.

        Raises:
            NoGradientError: The graph has an operator that the twin does not know.
        """
        key = str(x.device)
        if key not in self._twins:
            try:
                self._twins[key] = self.twin().to(x.device).eval()
            except ModelError as error:
                raise NoGradientError(str(error)) from error
        logits: Tensor = self._twins[key](x)
        return logits

    def twin(self) -> Twin:
        """The same graph in torch, with a straight-through gradient.

        Raises:
            ModelError: An operator that the twin does not know.
        """
        return Twin(self.files[FILE])

    def tensors(self) -> Iterator[Any]:
        """What the file stores as weights and biases: NumPy arrays, integers as integers, without scales and sizes."""
        onnx = require("onnx", extra=EXTRA)
        graph = onnx.load_model_from_string(self.files[FILE]).graph
        beside = {name for node in graph.node if node.op_type in _GRIDS for name in list(node.input)[1:]}
        arrays = ((one.name, onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer)
        return (array for name, array in arrays if name not in beside and array.ndim and array.dtype != "int64")

    def _session(self) -> Any:
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            runtime = require("onnxruntime", extra=EXTRA)
            options = runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
            told: dict[str, Any] = {"providers": ["CPUExecutionProvider"]}
            self._sessions[threads] = runtime.InferenceSession(self.files[FILE], options, **told)
        return self._sessions[threads]


def _exported(model: nn.Module, example: Tensor) -> bytes:
    """The model as an ONNX file for batches of any size, tidied by ONNX Runtime's basic optimisations.

    Raises:
        NotInstalledError: onnx, onnxscript or onnxruntime is not there.
        ModelError: torch cannot export it.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        require(library, extra=EXTRA)
    own = copy.deepcopy(model).cpu().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=2**16)},)
    told: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": shapes, "verbose": False}
    images = example.detach().to("cpu", torch.float32)
    with quietly():
        try:
            program: Any = torch.onnx.export(own, (images.expand(2, *images.shape[1:]),), dynamo=True, **told)
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            remedy = "leave this arm out for the model, or write it without control flow on the batch"
            raise ModelError(must("a model for ONNX Runtime", "exportable", str(error)[:200], remedy)) from error
        return _tidied(_bare(program.model_proto))


def _bare(proto: Any) -> Any:
    """The model without what says where on this machine it was exported."""
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    return proto


def _tidied(proto: Any) -> bytes:
    preprocess = require("onnxruntime.quantization.shape_inference", extra=EXTRA).quant_pre_process
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / FILE
        preprocess(proto, str(path))
        return path.read_bytes()


def _quantised(file: bytes, images: Tensor, ranges: str) -> bytes:
    quantization = require("onnxruntime.quantization", extra=EXTRA)
    onnx = require("onnx", extra=EXTRA)
    options = {"ActivationSymmetric": False, "WeightSymmetric": True, "CalibPercentile": 99.99}
    options["OpTypesToExcludeOutputQuantization"] = ["Gemm"]  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as place, quietly():
        path = Path(place) / FILE
        quantization.quantize_static(
            onnx.load_model_from_string(file), str(path), _Reader(images), quant_format=quantization.QuantFormat.QDQ,
            per_channel=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, RANGES[ranges]), extra_options=options,
        )  # fmt: skip
        return path.read_bytes()


class _Reader:
    """Calibration images as ONNX Runtime asks for them, a batch at a time; its histograms want batches of one size."""

    def __init__(self, images: Tensor) -> None:
        size = next(n for n in range(min(_CHUNK, len(images)), 0, -1) if len(images) % n == 0)
        self.batches = iter(images.float().split(size))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.contiguous().numpy()}
