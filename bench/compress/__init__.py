"""Compressions: model in, smaller or coarser model out. Listing them imports no torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "float": "robench.compress._identity:identity",
    "prune": "robench.compress._prune:prune",
    "int8": "robench.compress._int8:int8",
    "onnx_fp32": "robench.compress.backends._onnx:onnx_fp32",
    "onnx_int8": "robench.compress.backends._onnx:onnx_int8",
    "torchao_int8_weight_only": "robench.compress.backends._torchao:torchao_int8_weight_only",
}
