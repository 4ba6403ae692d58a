"""Which model's adversarial images break which other model: the surrogate → target matrix of a run."""

from __future__ import annotations

import pandas as pd

from robench.metrics import stats
from robench.registry import facts
from robench.spec import Estimate, Ref

COLUMNS = ("dataset", "threat", "surrogate", "target", "condition", "value", "ci_low", "ci_high", "n")
"""Columns of ``matrix``, in order."""


@facts(version=2, unit="rate", higher_is_better=False, bounds=(0, 1), needs="evasion", group="robustness")
def transfer_success(frame: pd.DataFrame) -> Estimate:
    """Share of the samples that the target recognises which a surrogate's images break.

    A sample on which the attack failed says nothing about transfer and is left out.

    Args:
        frame: Rows of one transfer attack under one threat with columns status, score_clean, score_adv.

    Returns:
        Value in [0, 1] with the modified Wilson interval over the clean-correct samples.

    Source: Papernot et al., 2016 (transferability), section 3; Brown, Cai & DasGupta, 2001 (interval).
    """
    told = frame[(frame["status"] == "ok") & (frame["score_clean"] > 0) & frame["score_adv"].notna()]
    return stats.rate((told["score_adv"] <= 0).astype(float))


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """The surrogate → target matrix of a tidy table in long form, with ``COLUMNS``.

    Args:
        table: A tidy table; its rows of the metric ``transfer_success`` are read.

    Returns:
        One row per data set, threat, surrogate (with the attack's other options where it has any), target and its
        condition, in this order; ``value`` is the share of the target's clean-correct samples that broke, of ``n``.
        Empty when nothing was transferred.
    """
    rows = table[table["metric"] == "transfer_success"]
    rows = rows.assign(surrogate=[_surrogate(a) for a in rows["attack"]], target=rows["model"])
    return rows[list(COLUMNS)].sort_values(list(COLUMNS[:5]), kind="stable").reset_index(drop=True)


def _surrogate(attack: str) -> str:
    """``source`` of the attack, with its other options behind it."""
    kwargs = dict(Ref.parse(attack).kwargs)
    source = str(kwargs.pop("source"))
    return f"{source} ({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})" if kwargs else source
