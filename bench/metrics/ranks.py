"""Rows ``rank`` of the tidy table: which ranks the models of a run can have, from paired tests on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robench.metrics import clean, robust
from robench.metrics.alike import unmet
from robench.metrics.comparisons import rank_intervals
from robench.metrics.pending import PENDING
from robench.metrics.validity import DOUBTED

RANK = "rank"
"""Metric of these rows: value is the rank, the interval holds all ranks of the compared models at once with 95 %."""

RANKED = {"evasion": "robust_accuracy", "clean": "accuracy", "corruption": "corrupted_accuracy"}
"""Scenario → the metric that its ranks are about: the worst case at each threat, and means over everything."""

_WHERE = {"evasion": ("worst", None), "clean": ("", ""), "corruption": (None, "mean")}
"""Scenario → ``attack`` and ``threat`` of the row that is ranked (None: each of them by itself)."""


def lines(rows: Sequence[Mapping[str, Any]], frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """A row ``rank`` for each model of each data set, for every number in ``RANKED``.

    Compared are unconditioned models on the same samples and, at a threat, against the same attacks (a transfer from the
    model itself is not missed, nor what an ensemble stands for). Left out are limited results and models with a verdict
    that is not sound. ``cell`` names the cells of all that were compared, so that ranks of other companies cannot be taken
    for these.

    Args:
        rows: Lines of the tidy table: metric, value, n, validity, cell and keys.
        frames: Per-sample frames by scenario.
    """
    base = pd.DataFrame([r for r in rows if r["condition"] == ""])
    if base.empty:
        return
    base = base.reindex(columns=list(dict.fromkeys([*base, "attack", "threat", "eps", "validity"])))
    base = base.astype(dict.fromkeys(("attack", "threat", "validity"), object))
    base = base.fillna(dict.fromkeys(("attack", "threat", "validity"), ""))
    for scenario, metric in RANKED.items():
        attack, threat = _WHERE[scenario]
        found = base[(base["scenario"] == scenario) & (base["metric"] == metric)]
        found = found if attack is None else found[found["attack"] == attack]
        found = found[found["eps"].isna()] if scenario == "corruption" else found
        found = found if threat is None else found[found["threat"] == threat]
        for _, same in found.groupby(["dataset", "threat", "attack"], sort=True):
            yield from _compared(_fit(same, base), frames[scenario])


def _fit(found: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Those that may be ranked: not limited, sound, measured on as many samples and against as much as the others."""
    sound = [_sound(row, base) for _, row in found.iterrows()]
    kept = found[~found["status"].isin(("limited", PENDING)) & np.array(sound, dtype=bool)]
    kept = kept[kept["n"] == kept["n"].max()]
    tests = {i: _tests(row, base) for i, row in kept.iterrows()}
    union = frozenset().union(*tests.values())
    whole = [not unmet(tests[i], union, str(kept.loc[i, "model"])) for i in kept.index]
    return kept[np.array(whole, dtype=bool)]


def _same_model(row: pd.Series, base: pd.DataFrame) -> pd.DataFrame:
    return base[(base["model"] == row["model"]) & (base["dataset"] == row["dataset"])]


def _sound(row: pd.Series, base: pd.DataFrame) -> bool:
    """The number's own verdict decides, or where it has none all verdicts of the model."""
    verdicts = [row["validity"]] if row["validity"] else _same_model(row, base)["validity"]
    return not any(str(v).startswith(DOUBTED) for v in verdicts)


def _tests(row: pd.Series, base: pd.DataFrame) -> frozenset[str]:
    """Attacks at the number's threat, or corruptions with their severity; nothing for clean images."""
    if row["scenario"] == "clean":
        return frozenset()
    rows = _same_model(row, base)
    rows = rows[(rows["scenario"] == row["scenario"]) & rows["eps"].notna()]
    if row["scenario"] == "evasion":
        return frozenset(rows.loc[(rows["threat"] == row["threat"]) & (rows["attack"] != "worst"), "attack"])
    rows = rows[rows["threat"] != row["threat"]]
    return frozenset(f"{t} {e:g}" for t, e in zip(rows["threat"], rows["eps"], strict=True))


def _compared(kept: pd.DataFrame, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Ranks of the kept models; none for a single one, or where samples differ after all."""
    scores = pd.DataFrame({row["model"]: _scores(row, frame) for _, row in kept.iterrows()})
    if len(kept) < 2 or scores.isna().to_numpy().any():
        return
    cells = "+".join(sorted({c for joined in kept["cell"] for c in str(joined).split("+")}))
    keys = ("model", "dataset", "condition", "scenario", "threat", "eps", "attack")
    intervals = rank_intervals(scores.to_numpy().T)
    for (_, row), e in zip(kept.iterrows(), intervals, strict=True):
        told = {"metric": RANK, "value": e.value, "ci_low": e.low, "ci_high": e.high, "n": e.n, "cell": cells}
        yield {**{key: row[key] for key in keys}, **told, "status": "ok"}


def _scores(row: pd.Series, frame: pd.DataFrame) -> pd.Series:
    """The model's score per sample, of its smallest seed."""
    own = frame[(frame["model"] == row["model"]) & (frame["dataset"] == row["dataset"]) & (frame["condition"] == "")]
    own = own[own["seed"] == own["seed"].min()] if "seed" in own else own
    if row["scenario"] == "evasion":
        return robust.worst_case(own[own["threat"] == row["threat"]])["robust"]
    if row["scenario"] == "clean":
        return clean.split(own, "test").groupby("sample")["score"].min()
    return own.groupby("sample")["score"].mean()
