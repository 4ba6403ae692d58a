"""One row per model and data set, ranked by one column; what may not be compared is shown but never ranked.

A model that was measured in several runs keeps one line: that of the run in which the ranking number is least favourable,
and all columns of the line come from that run. ``validity`` says where runs differ. One line, not one per run, because a
reader who looks for a model must not find two ranks and take the better one. Models of one name that are not the same model
are kept apart (``named_apart``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robench.errors import ConfigError, must, suggestion
from robench.metrics.alike import unmet
from robench.metrics.known import facts_of
from robench.metrics.pending import PENDING
from robench.metrics.ranks import RANK, RANKED
from robench.metrics.validity import DOUBTED
from robench.registry import facts
from robench.spec import ThreatModel

UNRANKED = "-"
ATTACKED = "robust_accuracy"
SEVERAL = "measured in several runs with other results, the least favourable run shown"
RUN = "run"
"""Column of joined tables that tells runs apart; it is added where it is missing."""
OWN_NAME = "own_name"
"""Column with the name that a model has in its own run."""
_PLAIN = {
    "clean": ("accuracy", ""),
    "corrupted": ("corrupted_accuracy", "mean"),
    "ece": ("ece", ""),
    "train_test_gap": ("train_test_gap", ""),
    "data_efficiency": ("data_efficiency_auc", "fraction"),
}
"""Column → metric and threat of the tidy table."""
_OVER = ("worst", "curve")
"""``attack`` of rows that stand for several attacks."""
_RESULT = ["value", "ci_low", "ci_high", "n", "n_clean_correct", "n_unknown", "status", "validity"]
"""Columns that make two rows the same result; seconds and cells may differ."""
_NAMED = 2
"""How many missing attacks a verdict names."""


def named_apart(tables: Mapping[str, pd.DataFrame], models: Mapping[str, Mapping[str, str]]) -> list[pd.DataFrame]:
    """Tables of several runs in which a name stands for one model: models that differ get their run behind their name.

    Args:
        tables: Run -> its tidy table.
        models: Run -> model's name -> its digest; a model without a digest counts as the same.

    Returns:
        The tables with the columns ``RUN`` and ``OWN_NAME``.
    """
    digests: dict[str, set[str]] = {}
    for found in models.values():
        for model, digest in found.items():
            digests.setdefault(model, set()).add(digest)
    differing = {model for model, seen in digests.items() if len(seen) > 1}
    return [
        table.assign(
            **{RUN: run, OWN_NAME: table["model"]},
            model=[f"{m} [{run}]" if m in differing else m for m in table["model"]],
        )
        for run, table in tables.items()
    ]


def joined(tables: pd.DataFrame | Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table with the columns ``RUN`` and ``OWN_NAME``; a table without them is a run of its own."""
    parts = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    marked = [part if RUN in part else part.assign(**{RUN: str(i), OWN_NAME: part["model"]}) for i, part in enumerate(parts)]
    return pd.concat(marked, ignore_index=True)


@facts(version=6)
def leaderboard(
    tables: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    by: str | None = None,
    threat: str | None = None,
    threats: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Models side by side, best first, with intervals; rank ``-`` for what must not be ranked.

    The order of the tables does not matter. Not ranked are results that are limited or not sound, models without the ranking
    number, models measured on fewer samples than the largest n of their data set, and models that lack an attack which
    a model otherwise fit to be ranked met at the ranking threat (a transfer from the model itself is not missed, nor what
    an ensemble stands for, see ``robench.metrics.alike``; for ``corrupted_accuracy``: that lack a corruption).
    ``validity`` says which.

    ``rank_low`` and ``rank_high`` hold all ranks of a data set at once with 95 %, from paired tests on the same samples;
    they are empty where the ranked models were not all compared in one run, and where the ranking number has no ranks.

    Args:
        tables: One tidy table or several, which are joined.
        by: Metric that ranks; of several explainers the least favourable counts. By default robust accuracy; where no
            threat is named and nothing was attacked, corrupted accuracy, then accuracy.
        threat: Threat whose robust accuracy ranks (``linf(8/255)``); by default the first of ``threats``, else the
            one most models were measured at, linf before other norms.
        threats: Threats that get a column; by default all, a security curve's included.
        weights: Column → weight of a single score; none is computed unless asked for, and its column names the weights.

    Returns:
        ``rank, rank_low, rank_high, model, dataset, clean, clean_low, clean_high, robust@<threat>, ..., n, validity``,
        rates in [0, 1].

    Raises:
        ConfigError: Unknown metric, or a threat that was not measured.
    """
    table = joined(tables)
    ranked = ranked_by(table, by=by, threat=threat, threats=threats)
    base = _ordered(table[table["condition"] == ""])
    if base.empty:
        return pd.DataFrame(columns=["rank", "rank_low", "rank_high", "model", "dataset", "n", "validity"])
    shown = base[(base["scenario"] != "evasion") | base["threat"].isin(list(threats))] if threats else base
    groups = base.groupby(["dataset", "model"], sort=True)
    wide = pd.DataFrame([_line(rows, ranked, shown.loc[rows.index.intersection(shown.index)]) for _, rows in groups])
    if weights:
        label = "score (" + " + ".join(f"{w:g}*{c}" for c, w in sorted(weights.items())) + ")"
        wide[label] = score(wide, weights)
    return _with_intervals(_ranked(wide, higher=_higher(ranked[0])), _rank_rows(base, ranked))


def main_threats(*headers: Mapping[str, Any] | None) -> list[str]:
    """The threats that the runs' suites name as their own, without those of security curves; empty where none are known.

    They keep their suite's order. Where suites differ they are ordered by how many suites name them, linf first, large
    eps first, so that the order of the runs does not decide which threat ranks.
    """
    named = [_suite_threats(header or {}) for header in headers]
    flat = [t for threats in named for t in threats]
    if all(threats == named[0] for threats in named):
        return list(dict.fromkeys(flat))

    def place(text: str) -> tuple[int, bool, float, str]:
        parsed = ThreatModel.parse(text)
        return (-flat.count(text), parsed.norm != "linf", -parsed.eps, text)

    return sorted(set(flat), key=place)


def _suite_threats(header: Mapping[str, Any]) -> list[str]:
    """A suite's own threats; none where nothing attacks at them, as with ``--scenario clean``."""
    suite = header.get("suite", {})
    return list(dict.fromkeys(str(ThreatModel.parse(t)) for t in suite.get("threats", []) if suite.get("attacks", True)))


def ranked_by(
    table: pd.DataFrame, *, by: str | None = None, threat: str | None = None, threats: Sequence[str] | None = None
) -> tuple[str, str]:
    """Metric and threat that rank; the threat is empty where the metric has none or nothing was measured.

    Raises:
        ConfigError: Unknown metric, or a threat that was not measured.
    """
    if by is None:
        by = ATTACKED if threat or threats else _default(table)
    about = facts_of(by, what="the ranking metric")
    if about["higher_is_better"] is None:
        raise ConfigError(must("the ranking metric", "one of which more or less is better", by, "choose another metric"))
    plain = {metric: where for metric, where in _PLAIN.values()}
    if by in plain:
        return by, plain[by]
    rows = table[(table["condition"] == "") & (table["metric"] == by)]
    rows = rows[(rows["scenario"] != "evasion") | rows["attack"].isin(_OVER)]
    measured = set(rows["threat"])
    if threat is not None and threat not in measured:
        raise ConfigError(must("the threat", "one that was measured", threat, suggestion(threat, measured)))
    first = threat or next((t for t in threats or () if t in measured), None)
    if first is not None:
        return by, first
    counts = rows[rows["eps"] != math.inf].groupby("threat").agg(models=("model", "nunique"), norm=("threat", "first"))
    counts["linf"] = counts["norm"].str.startswith("linf")
    best = counts.sort_values(["models", "linf"], ascending=False, kind="stable")
    return by, "" if best.empty else str(best.index[0])


def ranking_column(ranked: tuple[str, str]) -> str:
    """The leaderboard's column that shows the number by which it ranks, where it has one."""
    metric, threat = ranked
    plain = {name: column for column, (name, _) in _PLAIN.items()}
    return f"robust@{threat}" if metric == ATTACKED else plain.get(metric, metric)


def _default(table: pd.DataFrame) -> str:
    """Robust accuracy unless nothing was to be attacked; then what else was measured of the models as they are."""
    if table["scenario"].eq("evasion").any():
        return ATTACKED
    known = set(table.loc[table["condition"] == "", "metric"])
    return next((metric for metric in ("corrupted_accuracy", "accuracy") if metric in known), ATTACKED)


def score(board: pd.DataFrame, weights: Mapping[str, float]) -> pd.Series:
    """Weighted sum of columns divided by the sum of weights; missing where a column is missing or the model suspicious.

    Raises:
        ConfigError: A column that the leaderboard does not have.
    """
    for column in weights:
        if column not in board:
            raise ConfigError(must("a weight", "of a leaderboard column", column, suggestion(column, board.columns)))
    total = sum(board[c].astype(float) * w for c, w in weights.items()) / sum(weights.values())
    return total.where(~board["validity"].str.startswith(DOUBTED))


def _higher(metric: str) -> bool:
    return bool(facts_of(metric)["higher_is_better"])


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in an order that does not depend on which table came first, with a fresh index."""
    keys = rows.assign(_norm=rows["threat"].str.replace(r"\(.*", "", regex=True))
    order = keys.sort_values(["scenario", "_norm", "eps", "threat", "attack", "metric", "cell"], kind="stable")
    return rows.loc[order.index].reset_index(drop=True)


def _line(rows: pd.DataFrame, ranked: tuple[str, str], shown: pd.DataFrame) -> dict[str, Any]:
    """One model's columns, all from one run; ``_value``, ``_n``, ``_cells``, ``_tests`` and ``_name`` serve the ranking."""
    metric, threat = ranked
    line: dict[str, Any] = {"model": rows["model"].iloc[0], "dataset": rows["dataset"].iloc[0]}
    line["_name"] = rows[OWN_NAME].iloc[0]
    found = _results(rows, metric, threat)
    chosen = _least(found, higher=_higher(metric))
    run = rows[RUN].value_counts().sort_index(kind="stable").idxmax() if chosen is None else chosen[RUN]
    worst = shown.loc[(shown["metric"] == "robust_accuracy") & (shown["attack"] == "worst"), "threat"]
    robust = {f"robust@{t}": ("robust_accuracy", t) for t in dict.fromkeys(worst)}
    columns = {"clean": _PLAIN["clean"], **robust, **{c: key for c, key in _PLAIN.items() if c != "clean"}}
    if threat == "" and metric not in {name for name, _ in columns.values()}:
        columns[metric] = ranked
    several = _differ(found)
    for column, key in columns.items():
        several |= _put(line, column, _results(shown, *key), run, higher=_higher(key[0]))
    line["_n"] = 0 if chosen is None else int(chosen["n"])
    line["n"] = line["_n"] or _images(shown[shown[RUN] == run], columns.values())
    line["_value"] = math.nan if chosen is None else float(chosen["value"])
    line["_cells"] = frozenset() if chosen is None else frozenset(str(chosen["cell"]).split("+"))
    line["_tests"] = frozenset() if chosen is None else _tests(rows, ranked, chosen)
    verdict = _validity(rows if found["validity"].ne("").any() else shown, threat, found)
    if not verdict and chosen is None and rows["status"].eq(PENDING).any():
        verdict = f"{PENDING}: no result yet; run the same command again"
    missing = f"not measured at {threat}" if verdict and threat and chosen is None else ""
    line["validity"] = _said(verdict, missing, SEVERAL if several else "")
    return line


def _images(rows: pd.DataFrame, columns: Iterable[tuple[str, str]]) -> int:
    """Images behind the first of a line's columns that has a number, where the ranking number is missing; 0 without any."""
    found = (_results(rows, metric, threat)["n"].dropna() for metric, threat in columns)
    return next((int(n.iloc[0]) for n in found if len(n)), 0)


def _results(rows: pd.DataFrame, metric: str, threat: str) -> pd.DataFrame:
    """Rows of one number of one model, one per run (and explainer); single attacks never stand for the worst case."""
    found = rows[(rows["metric"] == metric) & (rows["threat"] == threat)]
    found = found[(found["scenario"] != "evasion") | found["attack"].isin(_OVER)]
    return found[found["eps"].isna()] if metric == "corrupted_accuracy" else found


def _differ(found: pd.DataFrame) -> bool:
    """Whether one number (of one explainer) has more than one result."""
    return bool(found.drop_duplicates(["attack", *_RESULT])["attack"].duplicated().any())


def _least(found: pd.DataFrame, *, higher: bool) -> pd.Series | None:
    """The least favourable result: worst value, then fewest samples; of equals the one that rests on most cells."""
    if found.empty:
        return None
    keys = pd.DataFrame({
        "value": found["value"] if higher else -found["value"],
        "n": found["n"].astype(float),
        "cells": -found["cell"].str.count(r"\+"),
        "low": found["ci_low"],
        "cell": found["cell"],
        "run": found[RUN],
    })  # fmt: skip
    return found.loc[keys.sort_values(list(keys), kind="stable", na_position="last").index[0]]


def _put(line: dict[str, Any], column: str, found: pd.DataFrame, run: str, *, higher: bool) -> bool:
    """Write a run's number with its interval; returns whether runs disagree on it."""
    row = _least(found[found[RUN] == run], higher=higher)
    if row is not None:
        line |= {column: float(row["value"]), f"{column}_low": float(row["ci_low"]), f"{column}_high": float(row["ci_high"])}
    return _differ(found)


def _tests(rows: pd.DataFrame, ranked: tuple[str, str], chosen: pd.Series) -> frozenset[str]:
    """What the chosen number was measured against: attacks (with threats, for a curve) or corruptions; else nothing.

    The cells tell which attacks belong to the run that the number comes from.
    """
    metric, threat = ranked
    scenario = facts_of(metric)["needs"]
    if scenario not in ("evasion", "corruption"):
        return frozenset()
    parts = rows[(rows["scenario"] == scenario) & ~rows["attack"].isin(_OVER) & rows["eps"].notna()]
    cells = set(str(chosen["cell"]).split("+"))
    parts = parts[np.array([set(str(c).split("+")) <= cells for c in parts["cell"]], dtype=bool)]
    if scenario == "corruption":
        parts = parts[parts["threat"] != threat]
        return frozenset(f"{t} {e:g}" for t, e in zip(parts["threat"], parts["eps"], strict=True))
    if chosen["attack"] == "curve":
        parts = parts[(parts["threat"].str.startswith(f"{threat}(")) & (parts["eps"] != math.inf)]
        return frozenset(f"{a} at {t}" for a, t in zip(parts["attack"], parts["threat"], strict=True))
    return frozenset(parts.loc[parts["threat"] == threat, "attack"])


def _validity(rows: pd.DataFrame, threat: str, found: pd.DataFrame) -> str:
    """The ranking threat's verdict, else any suspicious verdict of the model; that it is limited stands behind a doubt.

    Verdicts on curves over trainings are not the model's: of those the curves speak.
    """
    if (found["status"] == PENDING).any():
        return str(found.loc[found["status"] == PENDING, "validity"].iloc[0])
    judged = (
        (rows["validity"] != "") & (rows["scenario"] != "scarcity") & ~rows["status"].isin(("failed", "skipped", PENDING))
    )
    verdicts = rows.loc[judged, ["threat", "validity"]]
    own = verdicts.loc[verdicts["threat"] == threat, "validity"]
    bad = (own if len(own) else verdicts["validity"]).loc[lambda v: v.str.startswith(DOUBTED)]
    doubt = max(bad, key=lambda v: (len(v), v)) if len(bad) else ""
    if (found["status"] == "limited").any() or (rows["status"] == "limited").any():
        return _said(doubt, "limited: not all samples were asked for")
    return doubt or ("sound" if len(verdicts) else "")


def _said(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _ranked(wide: pd.DataFrame, *, higher: bool) -> pd.DataFrame:
    fit = ~wide["validity"].str.startswith((*DOUBTED, "limited")) & wide["_value"].notna()
    fewer = fit & (wide["_n"] < wide.groupby("dataset")["_n"].transform("max"))
    reasons = {i: "measured on fewer samples" for i in wide.index[fewer]} | _incomparable(wide[fit & ~fewer])
    for i, reason in reasons.items():
        wide.loc[i, "validity"] = _said(wide.loc[i, "validity"], reason)
    fit &= ~wide.index.isin(list(reasons))
    places = wide[fit].groupby("dataset")["_value"].rank(method="min", ascending=not higher)
    wide["_place"] = places.reindex(wide.index)
    wide.insert(0, "rank", [UNRANKED if math.isnan(p) else str(int(p)) for p in wide["_place"]])
    wide["_sort"] = -wide["_value"] if higher else wide["_value"]
    wide = wide.sort_values(["dataset", "_place", "_sort", "model"], kind="stable", na_position="last")
    tail = [c for c in ("n", "validity") if c in wide]
    columns = [c for c in wide if c not in tail and (not c.startswith("_") or c == "_cells")]
    return wide[[*columns, *tail]].reset_index(drop=True)


def _rank_rows(base: pd.DataFrame, ranked: tuple[str, str]) -> pd.DataFrame:
    """The tidy table's ranks by the ranking metric and threat."""
    scenario = facts_of(ranked[0])["needs"]
    rows = base[(base["metric"] == RANK) & (base["scenario"] == scenario) & (base["threat"] == ranked[1])]
    return rows if ranked[0] in RANKED.values() else rows.iloc[:0]


def _with_intervals(board: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Rank intervals of the data sets whose ranked models are exactly those that a run compared."""
    board.insert(1, "rank_low", "")
    board.insert(2, "rank_high", "")
    for dataset, part in board[board["rank"] != UNRANKED].groupby("dataset"):
        cells = "+".join(sorted(frozenset().union(*part["_cells"])))
        rows = ranks[(ranks["dataset"] == dataset) & (ranks["cell"] == cells)]
        for i, model in part["model"].items():
            own = rows[rows["model"] == model]
            if len(own):
                board.loc[i, ["rank_low", "rank_high"]] = f"{own['ci_low'].min():.0f}", f"{own['ci_high'].max():.0f}"
    return board.drop(columns="_cells")


def _incomparable(wide: pd.DataFrame) -> dict[Any, str]:
    """Index → what the model was not measured against although another model of its data set was."""
    found = {}
    for _, part in wide.groupby("dataset"):
        union = frozenset().union(*part["_tests"])
        for i, row in part.iterrows():
            missing = unmet(row["_tests"], union, row["_name"])
            if missing:
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                found[i] = f"not measured against {', '.join(missing[:_NAMED])}{more}"
    return found
