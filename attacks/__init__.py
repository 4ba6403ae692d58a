"""Adversaries: pure functions over a victim. Listing them imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

TABLE = {
    "robench-standard": "robench.attacks._protocols:robench_standard",
    "autoattack-standard": "robench.attacks._protocols:autoattack_standard",
    "autoattack-plus": "robench.attacks._protocols:autoattack_plus",
    "autoattack-rand": "robench.attacks._rand:autoattack_rand",
    "robench-deep": "robench.attacks._protocols:robench_deep",
    "robench-l0": "robench.attacks._protocols:robench_l0",
    "curve": "robench.attacks._protocols:curve",
    "fab": "robench.attacks._fab:fab",
    "fab_t": "robench.attacks._fab:fab_t",
    "square": "robench.attacks._square:square",
    "noise": "robench.attacks._noise:noise",
    "fgsm": "robench.attacks._fgsm:fgsm",
    "pgd": "robench.attacks._pgd:pgd",
    "transfer": "robench.attacks._transfer:transfer",
    "apgd": "robench.attacks._apgd:apgd",
    "apgd_t": "robench.attacks._apgd:apgd_t",
    "sigma_zero": "robench.attacks._sigma_zero:sigma_zero",
    "pgd_l0": "robench.attacks._pgd_l0:pgd_l0",
    "sparse_rs": "robench.attacks._sparse_rs:sparse_rs",
    "nes": "robench.attacks._spsa:nes",
    "spsa": "robench.attacks._spsa:spsa",
    "hop_skip_jump": "robench.attacks._hopskipjump:hop_skip_jump",
    "ddn": "robench.attacks._ddn:ddn",
    "fmn": "robench.attacks._fmn:fmn",
    "deepfool": "robench.attacks._deepfool:deepfool",
    "cw": "robench.attacks._cw:cw",
    "ead": "robench.attacks._ead:ead",
}
"""Name → ``module:function``; one line adds an attack, and the contract tests examine it."""

PREFIXES = {"art": "robench.attacks._art:art"}
"""Families: ``art:NAME(params)`` runs an evasion attack of the Adversarial Robustness Toolbox."""

__all__ = ["fgsm", "noise", "pgd", "transfer"]


def __getattr__(name: str) -> Any:
    if name in TABLE:
        module, _, function = TABLE[name].partition(":")
        return getattr(importlib.import_module(module), function)
    raise AttributeError(f"module 'robench.attacks' has no attribute {name!r}")
