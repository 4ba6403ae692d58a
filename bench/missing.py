"""Results that were planned and are not there: they count against a model in every mean and worst case."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pandas as pd

from robench import catalog
from robench.spec import Ref, ThreatModel

Planned = Mapping[str, Mapping[str, Any]]
_KEYS = ("model", "dataset", "condition", "seed")


def with_missing(
    frames: dict[str, pd.DataFrame], planned: Planned, *, pending: Collection[str] = ()
) -> dict[str, pd.DataFrame]:
    """The frames with rows for every planned attack and corruption that failed.

    An attack's rows are ``failed``: without them a worst case over the attacks that happened to finish would pass for one
    over all. A corruption's have the score 0 and ``failed``: without them a mean over those that finished would.

    Args:
        frames: Scenario name → per-sample frame.
        planned: Digest → what the cell was to measure, as ``run.json`` keeps it.
        pending: Digests of cells that were not tried yet; the tidy table withholds the numbers that need them.
    """
    planned = {digest: about for digest, about in planned.items() if digest not in pending}
    makers = {"evasion": _failed_attack, "corruption": _failed_corruption}
    return {
        name: pd.concat([frame, *_added(frame, name, planned, makers[name])], ignore_index=True) if name in makers else frame
        for name, frame in frames.items()
    }


def _added(frame: pd.DataFrame, scenario: str, planned: Planned, make: Any) -> Iterator[pd.DataFrame]:
    done = set(frame["cell"])
    for digest, about in planned.items():
        if about["scenario"] == scenario and digest not in done:
            same = [frame[key] == about[key] for key in _KEYS if key in about]
            yield make(frame[pd.concat(same, axis=1).all(axis=1)], about).assign(cell=digest)


def _failed_attack(rows: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of an attack that gave none: of those of other attacks only what clean images say of each sample stays."""
    rows = rows.drop_duplicates("sample")
    threat = ThreatModel.parse(about["threat"])
    rows = rows.assign(threat=str(threat), norm=threat.norm, eps=threat.eps)
    told = {
        "attack": about["attack"],
        "access": _access(about["attack"]),
        "status": "failed",
        "error": "no result: the cell did not finish",
        "stage": "",
        "stage_access": "",
        "escalated": "",
        "fresh_copy_note": "",
        "seconds": 0.0,
        **dict.fromkeys(("pred_adv", "margin_adv", "distance", "fresh_copy_agrees"), math.nan),
    }
    passes = ("forwards", "backwards", "zero_gradients", "nonfinite_gradients", "nonfinite_outputs")
    quiet = dict.fromkeys(("draws", "unconfirmed", *passes), 0)
    flags = dict.fromkeys(("projected", "unstable", "broken", "broken_8bit"), False)
    before = rows["score_clean"]
    return rows.assign(**told, **quiet, **flags, score_adv=before, score_mean=before, score_worst=before)


def _access(attack: str) -> str:
    """What an attack sees of a model, as it declares; of one that is not installed any more the most."""
    name = Ref.parse(attack).name
    return str(catalog.ATTACKS[name].facts.get("access", "white")) if name in catalog.ATTACKS else "white"


def _failed_corruption(rows: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    told = {name: about[name] for name in ("corruption", "family") if name in about}
    return rows.drop_duplicates(["sample", "severity"]).assign(**told, score=0.0, failed=True)
