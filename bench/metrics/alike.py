"""Under which names attacks on different models are the same test."""

from __future__ import annotations

import pandas as pd

from robench.spec import Ref

ENSEMBLES = ("compressed-union", "robench-standard", "robench-deep", "autoattack-standard", "autoattack-plus")
"""Protocols with gradients and without, each at least as strong as single attacks: models that met one can be compared."""
ENSEMBLE = "an ensemble of attacks such as robench-standard"


def alike(attack: str) -> str:
    """An attack's name as other models meet it: that of what ``through`` lends, ``ENSEMBLE``, or empty for a transfer."""
    ref = Ref.parse(attack)
    if ref.name in ENSEMBLES:
        return ENSEMBLE
    if ref.name == "through":
        return str(ref.kwargs["attack"])
    return "" if "source" in ref.kwargs else attack


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of single attacks on several models with the names that compare them, transfers left out.

    Where one of the models met an ensemble, nothing else counts: what an ensemble tries is no weaker than the rest.

    Args:
        rows: Rows of one threat with a column ``attack``, none of them ``worst``.
    """
    named = rows.assign(attack=[alike(attack) for attack in rows["attack"]])
    strong = named["attack"] == ENSEMBLE
    return named[strong] if strong.any() else named[named["attack"] != ""]
