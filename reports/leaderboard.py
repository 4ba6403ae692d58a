"""One row per model and data set, ranked by one column; suspicious and limited results are shown but never ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robench.errors import ConfigError, must, suggestion
from robench.metrics import TABLE as METRICS
from robench.registry import Table, facts
from robench.spec import ThreatModel

UNRANKED = "-"
_PLAIN = {
    "clean": ("accuracy", ""),
    "corrupted": ("corrupted_accuracy", "mean"),
    "ece": ("ece", ""),
    "train_test_gap": ("train_test_gap", ""),
    "data_efficiency": ("data_efficiency_auc", "fraction"),
}
"""Column → metric and threat of the tidy table."""


@facts(version=1)
def leaderboard(
    tables: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    by: str = "robust_accuracy",
    threat: str | None = None,
    threats: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Models side by side, best first, with intervals; rank ``-`` for what must not be ranked.

    Args:
        tables: One tidy table or several, which are joined.
        by: Metric that ranks.
        threat: Threat whose robust accuracy ranks (``linf(8/255)``); by default the first of ``threats``, else the
            one most models were measured at, linf before other norms.
        threats: Threats that get a column; by default all, a security curve's included.
        weights: Column → weight of a single score; none is computed unless asked for, and its column names the weights.

    Returns:
        ``rank, model, dataset, clean, clean_low, clean_high, robust@<threat>, ..., n, validity``, rates in [0, 1].
        Models measured on fewer samples than the largest n of their data set are not ranked.

    Raises:
        ConfigError: Unknown metric, or a threat that was not measured.
    """
    table = tables if isinstance(tables, pd.DataFrame) else pd.concat(list(tables), ignore_index=True)
    base = table[table["condition"] == ""]
    if threats:
        base = base[(base["scenario"] != "evasion") | base["threat"].isin(list(threats))]
    ranked = _key(base, by, threat or next((t for t in threats or () if t in set(base["threat"])), None))
    wide = pd.DataFrame([_line(rows, ranked) for _, rows in base.groupby(["dataset", "model"], sort=True)])
    if wide.empty:
        return pd.DataFrame(columns=["rank", "model", "dataset", "n", "validity"])
    if weights:
        label = "score (" + " + ".join(f"{w:g}*{c}" for c, w in sorted(weights.items())) + ")"
        wide[label] = score(wide, weights)
    return _ranked(wide, higher=bool(Table("metrics", METRICS)[by].facts["higher_is_better"]))


def main_threats(header: Mapping[str, Any] | None) -> list[str]:
    """The threats that a run's suite names as its own, without those of security curves; empty where none are known."""
    return [str(ThreatModel.parse(t)) for t in (header or {}).get("suite", {}).get("threats", [])]


def score(board: pd.DataFrame, weights: Mapping[str, float]) -> pd.Series:
    """Weighted sum of columns divided by the sum of weights; missing where a column is missing or the model suspicious.

    Raises:
        ConfigError: A column that the leaderboard does not have.
    """
    for column in weights:
        if column not in board:
            raise ConfigError(must("a weight", "of a leaderboard column", column, suggestion(column, board.columns)))
    total = sum(board[c].astype(float) * w for c, w in weights.items()) / sum(weights.values())
    return total.where(~board["validity"].str.startswith("suspicious"))


def _key(base: pd.DataFrame, by: str, threat: str | None) -> tuple[str, str]:
    """Metric and threat that rank."""
    if by not in METRICS:
        raise ConfigError(must("the ranking metric", "a known one", by, suggestion(by, METRICS)))
    plain = {metric: where for metric, where in _PLAIN.values()}
    if by in plain:
        return by, plain[by]
    rows = base[(base["metric"] == by) & (base["attack"].isin(["worst", "curve"]))]
    if threat is not None:
        if threat not in set(rows["threat"]):
            raise ConfigError(must("the threat", "one that was measured", threat, suggestion(threat, set(rows["threat"]))))
        return by, threat
    counts = rows[rows["eps"] != math.inf].groupby("threat").agg(models=("model", "nunique"), norm=("threat", "first"))
    counts["linf"] = counts["norm"].str.startswith("linf")
    best = counts.sort_values(["models", "linf"], ascending=False, kind="stable")
    return by, "" if best.empty else str(best.index[0])


def _line(rows: pd.DataFrame, ranked: tuple[str, str]) -> dict[str, object]:
    """One model's columns; ``_value`` and ``_n`` serve the ranking."""
    first = rows.iloc[0]
    line: dict[str, object] = {"model": first["model"], "dataset": first["dataset"]}
    _put(line, "clean", rows, *_PLAIN["clean"])
    worst = rows[(rows["metric"] == "robust_accuracy") & (rows["attack"] == "worst")]
    for threat in worst["threat"]:
        _put(line, f"robust@{threat}", worst, "robust_accuracy", threat)
    for column, key in _PLAIN.items():
        if column != "clean":
            _put(line, column, rows, *key)
    metric, threat = ranked
    chosen = rows[(rows["metric"] == metric) & (rows["threat"] == threat) & ~rows["attack"].isin(_attacks(rows))]
    line["n"] = int(chosen["n"].iloc[0]) if len(chosen) else 0
    line["_value"] = float(chosen["value"].iloc[0]) if len(chosen) else math.nan
    line["validity"] = _validity(rows, threat, chosen)
    return line


def _attacks(rows: pd.DataFrame) -> set[str]:
    """Names of single attacks, whose rows never stand for the worst case."""
    return set(rows.loc[rows["scenario"] == "evasion", "attack"]) - {"worst", "curve"}


def _put(line: dict[str, object], column: str, rows: pd.DataFrame, metric: str, threat: str) -> None:
    found = rows[(rows["metric"] == metric) & (rows["threat"] == threat)]
    if metric == "corrupted_accuracy":
        found = found[found["eps"].isna()]
    if len(found):
        line[column] = float(found["value"].iloc[0])
        line[f"{column}_low"], line[f"{column}_high"] = float(found["ci_low"].iloc[0]), float(found["ci_high"].iloc[0])


def _validity(rows: pd.DataFrame, threat: str, chosen: pd.DataFrame) -> str:
    """Limited first, then the ranking threat's verdict, else any suspicious verdict of the model."""
    if (chosen["status"] == "limited").any() or (rows["status"] == "limited").any():
        return "limited: not all samples were asked for"
    verdicts = rows.loc[rows["validity"] != "", ["threat", "validity"]]
    own = verdicts.loc[verdicts["threat"] == threat, "validity"]
    bad = (own if len(own) else verdicts["validity"]).loc[lambda v: v.str.startswith("suspicious")]
    return str(bad.iloc[0]) if len(bad) else "sound" if len(verdicts) else ""


def _ranked(wide: pd.DataFrame, *, higher: bool) -> pd.DataFrame:
    fit = ~wide["validity"].str.startswith(("suspicious", "limited")) & wide["_value"].notna()
    largest = wide.groupby("dataset")["n"].transform("max")
    fewer = fit & (wide["n"] < largest)
    wide.loc[fewer, "validity"] = wide.loc[fewer, "validity"] + "; measured on fewer samples"
    fit &= ~fewer
    places = wide[fit].groupby("dataset")["_value"].rank(method="min", ascending=not higher)
    wide["_place"] = places.reindex(wide.index)
    wide.insert(0, "rank", [UNRANKED if math.isnan(p) else str(int(p)) for p in wide["_place"]])
    wide["_sort"] = -wide["_value"] if higher else wide["_value"]
    wide = wide.sort_values(["dataset", "_place", "_sort", "model"], kind="stable", na_position="last")
    tail = [c for c in ("n", "validity") if c in wide]
    columns = [c for c in wide if c not in tail and not c.startswith("_")]
    return wide[[*columns, *tail]].reset_index(drop=True)
