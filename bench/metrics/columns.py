"""The columns of an attack's rows: what the scenario writes, the store requires, ``verify`` compares and verdicts read."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

EVASION = (
    *("sample", "label", "threat", "norm", "eps", "attack", "access", "stage", "stage_access", "escalated", "draws"),
    *("unconfirmed", "status", "error", "score_clean", "pred_clean", "margin_clean", "score_adv", "score_mean"),
    *("score_worst", "pred_adv", "margin_adv", "distance", "projected", "unstable", "broken", "broken_8bit"),
    *("fresh_copy_agrees", "fresh_copy_note", "forwards", "backwards", "zero_gradients", "nonfinite_gradients"),
    *("nonfinite_outputs", "seconds"),
)
"""Columns of ``evasion`` and ``evasion_train`` rows."""
ATTACKED = ("evasion", "evasion_train")
"""Scenarios whose rows have them."""
_TEXTS = ("threat", "norm", "attack", "access", "stage", "stage_access", "escalated", "status", "error", "fresh_copy_note")
_FREE = ("label", "pred_clean", "pred_adv")
"""Whatever the task says."""


def unfit(rows: pd.DataFrame) -> Iterator[str]:
    """What an attack's rows lack: columns, or numbers in columns of numbers."""
    lacking = [name for name in EVASION if name not in rows]
    if lacking:
        yield f"rows without the columns {', '.join(lacking)}"
    for name in EVASION:
        number = name not in (*_TEXTS, *_FREE) and name in rows and len(rows)
        if number and not pd.api.types.is_numeric_dtype(rows[name]):
            yield f"column {name} holds {rows[name].iloc[0]!r}, which is no number"
