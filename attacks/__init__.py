"""Adversaries: pure functions over a victim. Listing them imports no torch.

``from robench.attacks import apgd, square, ddn`` gives them as a user calls them, on a plain module
(``robench.attacks._direct.direct``); robench itself takes them from the table.
"""

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
    "compressed-union": "robench.attacks._compressed:compressed_union",
    "curve": "robench.attacks._protocols:curve",
    "fab": "robench.attacks._fab:fab",
    "fab_t": "robench.attacks._fab:fab_t",
    "square": "robench.attacks._square:square",
    "noise": "robench.attacks._noise:noise",
    "fgsm": "robench.attacks._fgsm:fgsm",
    "pgd": "robench.attacks._pgd:pgd",
    "through": "robench.attacks._through:through",
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

BESIDE = {
    "spatial_grid": "robench.attacks._spatial:spatial_grid",
    "spatial_random": "robench.attacks._spatial:spatial_random",
    "patch_images": "robench.attacks._patch:patch_images",
    "patch_universal": "robench.attacks._patch:patch_universal",
}
"""Attacks that no Lp distance measures: functions on plain modules, with arguments and results of their own."""

__all__ = ["fgsm", "noise", "pgd", "transfer"]


def __getattr__(name: str) -> Any:
    found = {**TABLE, **PREFIXES, **BESIDE}.get(name)
    if found is None:
        raise AttributeError(f"module 'robench.attacks' has no attribute {name!r}")
    module, _, function = found.partition(":")
    attack = getattr(importlib.import_module(module), function)
    direct = importlib.import_module("robench.attacks._direct")
    if name in BESIDE:
        return direct.beside(attack)
    return attack if attack.facts.get("protocol") else direct.direct(attack)
