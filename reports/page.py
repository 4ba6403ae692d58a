"""One self-contained HTML page: leaderboard, red flags, pictures, full table, versions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from robench.metrics.pending import PENDING
from robench.metrics.table import FAILED, SKIPPED
from robench.metrics.validity import DOUBTED
from robench.registry import facts
from robench.reports.cells import interval, leaderboard_cells, tidy_cells, unit
from robench.reports.leaderboard import ATTACKED, UNRANKED, leaderboard, main_threats, ranked_by, ranking_column
from robench.reports.pictures import Picture, pictures
from robench.reports.sections import sections
from robench.reports.text import escalations, exclusions, label_doubts
from robench.reports.transfers import transfer_matrix

_SUITE = ("suite.name", "suite.version", "suite.data", "suite.limit")
"""What of the suite is said openly; its other keys are folded away."""

_APART = ("left_out", "data_notes")
"""Lists of the header that have a heading of their own."""

_UNTOLD = {"efficiency": "cost", "explanation": "explanations"}
"""Scenarios without a table of their own on the page."""
_NAMED = 8
"""Measurements without a result that an entry names; ``table.csv`` has all."""
_PLAIN = "(as it is)"
_POINTS = ("accuracy_in_bin", "risk_at_coverage")
"""Metrics that are the points of a picture; their numbers are in ``table.csv``."""
_LED = {"corrupted_accuracy": "right, as the mean over all corruptions", "accuracy": "right"}
"""Ranking metric → what of its images a leader keeps; of others it is robust accuracy."""


@facts(version=3)
def page(
    table: pd.DataFrame,
    *,
    header: Mapping[str, Any] | None = None,
    title: str = "robench report",
    drawn: Sequence[Picture] | None = None,
) -> str:
    """The page as text; it loads nothing from elsewhere.

    From top to bottom: who leads and who is not to be believed, the leaderboard, red flags, pictures, tables by subject,
    compressed and defended models, which model's images break which other, what was left out, all numbers, the run.

    Args:
        table: A tidy table.
        header: What to say about the run: versions, suite, seed, device; values may be mappings.
        title: Heading of the page.
        drawn: Its pictures, where they are drawn already.
    """
    threats = main_threats(header)
    board, ranked = leaderboard(table, threats=threats), ranked_by(table, threats=threats)
    facts_of_run = flat(header or {})
    environment = Environment(loader=PackageLoader("robench.reports"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        title=title,
        header={
            k: v
            for k, v in facts_of_run.items()
            if k not in ("left_out", "data_notes") and (not k.startswith("suite.") or k in _SUITE)
        },
        suite={k: v for k, v in facts_of_run.items() if k.startswith("suite.") and k not in _SUITE},
        ranked=" at ".join(part for part in ranked if part).replace("_", " "),
        leaders=leaders(board, ranked),
        suspects=suspects(table),
        doubted=DOUBTED,
        pending=waiting(table),
        label_doubts=label_doubts(table),
        data_notes=list((header or {}).get("data_notes", ())),
        skipped=unfinished(table, SKIPPED),
        failed=unfinished(table, FAILED),
        board=_rows(_arranged(board, ranked)),
        verdicts=[str(v) for v in board["validity"]],
        flags=flags(table, ranked[1]),
        escalations=escalations(table),
        exclusions=exclusions(table),
        pictures=[
            {"title": p.title, "data": base64.b64encode(p.png).decode()}
            for p in (pictures(table) if drawn is None else drawn)
        ],
        conditions=_conditions(table, threats, ranked),
        sections=[{"title": s.title, "note": s.note, **_rows(s.cells)} for s in sections(table)],
        left_out=list((header or {}).get("left_out", ())),
        transfers=_rows(transfer_matrix(table)),
        rows=_rows(tidy_cells(table[~table["metric"].isin(_POINTS)])),
        only_here=_only_here(table),
        limited=bool((table["status"] == "limited").any()),
        unknown=unknown(table),
    )


def _only_here(table: pd.DataFrame) -> list[str]:
    """What was measured of models as they are and stands in no table but the one of all numbers."""
    compressed = bool((table["scenario"] == "disagreement").any())  # then the section on compression shows it
    measured = set(table.loc[(table["status"] != PENDING) & table["value"].notna(), "scenario"])
    return [name for key, name in _UNTOLD.items() if key in measured and not (key == "efficiency" and compressed)]


def leaders(board: pd.DataFrame, ranked: tuple[str, str]) -> list[str]:
    """A sentence per data set on who is ranked first, or that nobody is."""
    column, kept = ranking_column(ranked), _LED.get(ranked[0], f"right under every attack at {ranked[1]}")
    found = []
    for dataset, part in board.groupby("dataset", sort=True):
        best = part[part["rank"] == "1"]
        if best.empty or column not in part:
            found.append(f"{dataset}: no model can be ranked.")
            continue
        row = best.iloc[0]
        value = interval(row[column], row[f"{column}_low"], row[f"{column}_high"])
        who = " and ".join(best["model"])
        count = int((part["rank"] != UNRANKED).sum())
        several = len(best) > 1
        lead = (
            f"{who} {'lead' if several else 'leads'} {count} ranked models"
            if count > 1
            else f"{who} is the only ranked model"
        )
        high = str(row.get("rank_high", ""))
        if not several and high not in ("", "1"):
            lead += f" (its rank may be up to {high}: the difference is within the confidence interval)"
        found.append(f"{dataset}: {lead}; {'each' if several else 'it'} keeps {value} % of {row['n']} images {kept}.")
    return found


def suspects(table: pd.DataFrame) -> list[str]:
    """Models, with their condition, that have a suspicious verdict, and the threats at which they have it."""
    bad = table[table["validity"].str.startswith(DOUBTED) & (table["attack"] != "curve")]
    found: dict[str, dict[str, None]] = {}
    for model, condition, threat in zip(bad["model"], bad["condition"], bad["threat"], strict=True):
        found.setdefault(_who(model, condition), {})[str(threat)] = None
    return [f"{who} at {', '.join(filter(None, threats))}".removesuffix(" at ") for who, threats in sorted(found.items())]


def waiting(table: pd.DataFrame) -> str:
    """How many cells of a run in progress have no result yet, by scenario; empty where the run is finished."""
    counts = table.loc[table["metric"] == PENDING, "scenario"].value_counts().sort_index()
    told = ", ".join(f"{count} {scenario}" for scenario, count in counts.items())
    return f"{int(counts.sum())} cells have no result yet ({told})" if len(counts) else ""


def unfinished(table: pd.DataFrame, status: str) -> list[str]:
    """Models, with their condition, of which something was skipped or failed, how much, and why."""
    rows = table[table["status"] == status]
    grouped = rows.groupby(["model", "condition", "validity"], sort=True)
    told = [f"{_who(m, c)}, {_measurements(part)}: {v.partition(': ')[2]}" for (m, c, v), part in grouped]
    return told + (_failed_attacks(table) if status == FAILED else [])


def _measurements(rows: pd.DataFrame) -> str:
    """The attacks, corruptions and other scenarios of lines without a result, the first few by name."""
    names = []
    for scenario, threat, attack in zip(rows["scenario"], rows["threat"], rows["attack"], strict=True):
        names.append(f"{attack} at {threat}" if attack and threat else f"{scenario} {threat or attack}".strip())
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return ", ".join(unique[:_NAMED]) + more


def _failed_attacks(table: pd.DataFrame) -> list[str]:
    """Attacks that ran and failed on some images, on how many, and why."""
    rows = table[(table["scenario"] == "evasion") & (table["metric"] == "robust_accuracy") & (table["excludes"] != "")]
    rows = rows[~rows["attack"].isin(("worst", "curve"))]
    parts = zip(rows["model"], rows["condition"], rows["attack"], rows["threat"], rows["excludes"], strict=True)
    return [f"{_who(m, c)}, {attack} at {threat}: {why}" for m, c, attack, threat, why in parts]


def unknown(table: pd.DataFrame) -> list[str]:
    """Models, with their condition, of which samples are unknown, how many and where."""
    robust = (table["metric"] == ATTACKED) & (table["attack"] == "worst")
    corrupted = (table["metric"] == "corrupted_accuracy") & (table["threat"] == "mean") & table["eps"].isna()
    rows = table[(robust | corrupted) & (table["n_unknown"].fillna(0) > 0)]
    found: dict[str, dict[str, None]] = {}
    parts = zip(rows["model"], rows["condition"], rows["threat"], rows["n_unknown"], rows["n"], strict=True)
    for model, condition, threat, count, n in parts:
        where = "on corruptions" if threat == "mean" else f"at {threat}"
        found.setdefault(_who(model, condition), {})[f"{count} of {n} {where}"] = None
    return [f"{who}: {', '.join(counts)}" for who, counts in sorted(found.items())]


def flags(table: pd.DataFrame, threat: str) -> list[dict[str, Any]]:
    """One flag per suspicious model and condition: the verdict at the ranking threat, and those at others to unfold."""
    found = []
    bad = table[table["validity"].str.startswith(DOUBTED) & (table["attack"] != "curve")]
    for (model, condition), rows in bad.groupby(["model", "condition"], sort=True):
        verdicts = dict(zip(rows["threat"], rows["validity"], strict=True))
        shown = threat if threat in verdicts else next(iter(verdicts))
        others = [f"{t}: {v.partition(': ')[2]}" for t, v in verdicts.items() if t != shown]
        status, _, reasons = verdicts[shown].partition(": ")
        told = {"status": status, "reasons": reasons.split("; "), "others": others}
        found.append({"who": _who(str(model), str(condition)), "threat": shown, **told})
    return found


def _who(model: str, condition: str) -> str:
    return f"{model} {condition}".strip()


def _arranged(board: pd.DataFrame, ranked: tuple[str, str]) -> pd.DataFrame:
    """The leaderboard's texts: verdict, n and the ranking number next to the model, empty columns left out."""
    cells = leaderboard_cells(board)
    first = ["rank", "model", "dataset", "validity", "n", f"{ranking_column(ranked)} {unit(ranking_column(ranked))}"]
    order = [*(c for c in first if c in cells), *(c for c in cells if c not in first)]
    cells["n"] = ["" if n == "0" else n for n in cells["n"]]
    kept = [c for c in order if (cells[c] != "").any() and not (c == "dataset" and cells[c].nunique() == 1)]
    return cells[kept]


def _conditions(table: pd.DataFrame, threats: list[str], ranked: tuple[str, str]) -> dict[str, Any]:
    """Changed models (compressed, defended) under the model they come from, compared within each model only."""
    changed = table[(table["condition"] != "") & table["scenario"].isin(["evasion", "corruption"])]
    # Trainings on samples, many of each, are joined in a table of their own.
    changed = changed[~changed["condition"].str.fullmatch(r"scarcity\([^|]*")]
    boards = []
    for (dataset, model), part in changed.groupby(["dataset", "model"], sort=True):
        same = table[(table["dataset"] == dataset) & (table["model"] == model)]
        same = same[same["condition"].isin({"", *part["condition"]})]
        names = same["condition"].mask(same["condition"] == "", model)
        by = ATTACKED if (same["metric"] == ATTACKED).any() else ranked[0]
        board = leaderboard(same.assign(model=names, condition=""), by=by, threats=threats)
        board = board.assign(_changed=board["model"] != model).sort_values(["_changed", "model"], kind="stable")
        shown = board["model"].mask(~board["_changed"], _PLAIN)
        boards.append(
            board.drop(columns=["rank", "rank_low", "rank_high", "_changed"]).assign(model=str(model), condition=shown)
        )
    if not boards:
        return {"columns": [], "values": [], "verdicts": []}
    whole = pd.concat(boards, ignore_index=True)
    cells = _arranged(whole, ranked)
    changed_lines = whole["condition"] != _PLAIN
    rates = [
        c for c in cells if c.startswith(("robust@", "clean", "corrupted")) and (cells.loc[changed_lines, c] != "").any()
    ]
    told = cells["validity"] if "validity" in cells else [""] * len(cells)
    cells["verdict"], _, cells["but"] = zip(*(v.partition("; ") for v in told), strict=True)
    named = [c for c in ("dataset", "model", "condition", "n") if c in cells]
    cells = cells[[*named, "verdict", *rates, *(["but"] if any(cells["but"]) else [])]]
    return {**_rows(cells), "verdicts": whole["validity"].tolist()}


def flat(header: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested header as ``outer.inner`` → text."""
    found: dict[str, str] = {}
    for key, value in header.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _rows(cells: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(cells), "values": cells.to_numpy().tolist()}
