"""Compressions: model in, smaller or coarser model out. Listing them imports no torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "float": "robench.compress._identity:identity",
    "prune": "robench.compress._prune:prune",
    "prune_2_4": "robench.compress._semi_structured:prune_2_4",
    "prune_channels": "robench.compress._structured:prune_channels",
    "fp16": "robench.compress._half:fp16",
    "bf16": "robench.compress._half:bf16",
    "int8_weights": "robench.compress._weights:int8_weights",
    "int4_weights": "robench.compress._weights:int4_weights",
    "int8": "robench.compress._int8:int8",
    "onnx_fp32": "robench.compress.backends._onnx:onnx_fp32",
    "onnx_int8": "robench.compress.backends._onnx:onnx_int8",
    "torchao_int8_weight_only": "robench.compress.backends._torchao:torchao_int8_weight_only",
    "finetune": "robench.defenses.tuning:finetune",
    "prune_gradually": "robench.defenses.tuning:prune_gradually",
    "distill": "robench.defenses.tuning:distill",
}
"""Name → ``module:function``, ``f(model, *, ...) -> module``. Facts: ``simulated``; ``needs``, which is ``calibration``
(training images) or ``training`` (``robench.defenses.tuning``: it trains in place and returns a report, and is stored);
``trainable``, whether a training may follow."""
