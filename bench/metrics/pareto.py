"""Which models are best for their cost: no other is as good and as cheap in everything, and better in something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robench.errors import DataError, must
from robench.metrics.alike import ENSEMBLE, STRONGER, alike, is_transfer, unmet
from robench.metrics.validity import DOUBTED

COSTS = ("stored_bytes", "latency_p50_ms")
"""Metrics that are to be low; of a model whose time was only imitated there is none."""
QUALITIES = ("accuracy", "robust_accuracy", "corrupted_accuracy")
COLUMNS = (
    "dataset", "cost", "quality", "threat", "model", "condition", "cost_value", "value", "ci_low", "ci_high", "n", "front",
    "left_out",
)  # fmt: skip
_KEYS = ["dataset", "model", "condition"]


def front(points: Any, *, maximise: Sequence[bool]) -> NDArray[np.bool_]:
    """Which points no other dominates, bool (N,).

    One point dominates another if it is at least as good in every coordinate and better in one; so equal points do not
    dominate each other. A point with a missing coordinate is never in front, and dominates none.

    Args:
        points: Coordinates (N, M).
        maximise: For each coordinate whether high is good.

    Raises:
        DataError: points is not (N, M) for the M directions.

    Source: Kung, Luccio & Preparata, JACM 1975, section 1 (maxima of a set of vectors).
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(maximise):
        raise DataError(must("points", f"of shape (N, {len(maximise)})", values.shape, "give one number per direction"))
    signed = np.where(np.asarray(maximise), values, -values)
    known: NDArray[np.bool_] = np.asarray(~np.isnan(signed).any(axis=1))
    found = known.copy()
    for i in np.flatnonzero(known):
        others = signed[known]
        beaten = (others >= signed[i]).all(axis=1) & (others > signed[i]).any(axis=1)
        found[i] = not beaten.any()
    return found


def pareto(table: pd.DataFrame) -> pd.DataFrame:
    """Cost against quality of all models and conditions, for each data set, cost, quality and threat; ``COLUMNS``.

    Only what was measured alike is compared: on equally many samples (the largest number), at one threat under every attack
    that another line met there (transfers aside) or an ensemble that stands for it (see ``robench.metrics.alike``), on every
    corruption that another line met. ``left_out`` says why a line is not compared; such a line is never in ``front``. At a
    threat where no ensemble of attacks was run there is no front.

    Args:
        table: A tidy table.
    """
    parts = []
    for quality in QUALITIES:
        rows = _quality(table, quality)
        for (dataset, threat), part in rows.groupby(["dataset", "threat"], sort=True):
            for cost in COSTS:
                parts.append(_compared(table, part, cost).assign(dataset=dataset, threat=threat, cost=cost, quality=quality))
    parts = [p for p in parts if p["cost_value"].notna().any()]
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    return whole[list(COLUMNS)].reset_index(drop=True)


def _quality(table: pd.DataFrame, quality: str) -> pd.DataFrame:
    rows = table[table["metric"] == quality]
    if quality == "robust_accuracy":
        return rows[rows["attack"] == "worst"]
    if quality == "corrupted_accuracy":
        return rows[(rows["threat"] == "mean") & rows["eps"].isna()]
    return rows


def _compared(table: pd.DataFrame, rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    costs = table[table["metric"] == cost].drop_duplicates(_KEYS).set_index(_KEYS)["value"]
    keys = pd.MultiIndex.from_frame(rows[_KEYS])
    found = rows[[*_KEYS, "value", "ci_low", "ci_high", "n"]].assign(cost_value=costs.reindex(keys).to_numpy(np.float64))
    found["left_out"] = _reasons(rows, found, met=_met(table, rows))
    compared = found["left_out"] == ""
    points = found.loc[compared, ["cost_value", "value"]]
    found["front"] = False
    if rows["metric"].iloc[0] == "robust_accuracy" and not _searched(found.index[compared], table, rows):
        return found.sort_values(["cost_value", "model", "condition"], kind="stable")
    found.loc[compared, "front"] = front(points.to_numpy(np.float64).reshape(-1, 2), maximise=(False, True))
    return found.sort_values(["cost_value", "model", "condition"], kind="stable")


def _searched(compared: pd.Index, table: pd.DataFrame, rows: pd.DataFrame) -> bool:
    """Whether the compared models met an ensemble of attacks; after single ones their order says too little for a front."""
    every = frozenset().union(*_met(table, rows).loc[compared])
    return any(alike(attack) == ENSEMBLE or attack.partition("(")[0] in STRONGER for attack in every)


def _met(table: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """For each line, the set of attacks or corruptions that it met besides transfers."""
    quality, threat = rows["metric"].iloc[0], rows["threat"].iloc[0]
    parts = table[table["metric"] == quality]
    if quality == "robust_accuracy":
        parts = parts[(parts["threat"] == threat) & (parts["attack"] != "worst")]
        plain = np.array([not is_transfer(attack) for attack in parts["attack"]], dtype=bool)
        parts = parts[plain].assign(met=lambda rows: rows["attack"])
    else:
        parts = parts[parts["eps"].notna() & (parts["threat"] != "mean")].assign(met=parts["threat"])
    sets = parts.groupby(_KEYS)["met"].agg(frozenset)
    keys = pd.MultiIndex.from_frame(rows[_KEYS])
    return pd.Series([sets.get(key, frozenset()) for key in keys], index=rows.index, dtype=object)


def _reasons(rows: pd.DataFrame, found: pd.DataFrame, *, met: pd.Series) -> pd.Series:
    """Why each line cannot be compared; empty where it can."""
    every = frozenset().union(*met)
    lacks = [", ".join(unmet(own, every, "")) for own in met]
    reasons = pd.Series([f"it did not meet {lack}" if lack else "" for lack in lacks], index=found.index, dtype=object)
    most = found["n"].max()
    reasons[found["cost_value"].isna()] = "its cost was not measured"
    reasons[found["value"].isna()] = "its quality is not a number"
    reasons[found["n"] < most] = f"measured on fewer than {most} samples"
    reasons[rows["validity"].str.startswith(DOUBTED)] = "its verdict is not sound"
    return reasons
