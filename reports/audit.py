"""Requirements on the tidy table, judged on the pessimistic end of each interval."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robench.errors import ConfigError, must, suggestion
from robench.metrics import TABLE as METRICS
from robench.metrics.validity import DOUBTED
from robench.registry import Table, facts
from robench.spec import ThreatModel, number

_TEXT = re.compile(r"\s*(\w+)\s*(?:\[([^\]]*)\])?\s*(>=|<=|>|<)\s*(\S+)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FACTS = Table("metrics", METRICS)
_EXAMPLE = "e.g. robust_accuracy[linf(8/255)]>=0.4"


@dataclass(frozen=True)
class Requirement:
    """``metric[selector]>=bound``."""

    metric: str
    selector: str
    """Threat, corruption or explainer; empty for metrics that have none, and for means."""
    relation: str
    bound: float
    text: str


@dataclass(frozen=True)
class Finding:
    """One requirement on one model."""

    model: str
    dataset: str
    requirement: str
    passed: bool
    value: float
    judged: float
    """The end of the interval that was compared (the value itself where it is exact)."""
    reason: str


@dataclass(frozen=True)
class AuditResult:
    """All findings; passed only when there are some and all of them passed."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every requirement holds for every model."""
        return bool(self.findings) and all(f.passed for f in self.findings)

    @property
    def exit_code(self) -> int:
        """0 when passed, else 1."""
        return 0 if self.passed else 1

    def frame(self) -> pd.DataFrame:
        """Findings as a table."""
        return pd.DataFrame([vars(f) for f in self.findings], columns=list(Finding.__dataclass_fields__))


def parse_requirement(text: str) -> Requirement:
    """Read ``metric[selector]>=number``; the number may be a ratio or percent.

    Raises:
        ConfigError: The text has another form, or names an unknown metric.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ConfigError(must("a requirement", "metric[selector]>=number", text, _EXAMPLE))
    metric, selector, relation, typed = match.groups()
    if metric not in METRICS:
        raise ConfigError(must("a requirement's metric", "a known one", metric, suggestion(metric, METRICS)))
    try:
        bound = number(typed.removesuffix("%")) / (100 if typed.endswith("%") else 1)
    except ValueError as error:
        raise ConfigError(must("a requirement's bound", "a number, ratio or percent", typed[:80], _EXAMPLE)) from error
    return Requirement(metric, (selector or "").strip(), relation, bound, text.strip())


@facts(version=1)
def audit(table: pd.DataFrame, requirements: Sequence[str | Requirement], *, condition: str = "") -> AuditResult:
    """Whether every model keeps every requirement.

    A lower bound is held against the lower end of the interval, an upper bound against the upper end. Missing, limited,
    suspicious and unknown results fail.

    Args:
        table: A tidy table.
        requirements: Texts as for ``parse_requirement``.
        condition: Condition of the models to look at; the plain models by default.
    """
    parsed = [parse_requirement(r) if isinstance(r, str) else r for r in requirements]
    rows = table[table["condition"] == condition]
    findings = [
        _judge(part, requirement, str(model), str(dataset))
        for (model, dataset), part in rows.groupby(["model", "dataset"], sort=True)
        for requirement in parsed
    ]
    return AuditResult(tuple(findings))


def _judge(rows: pd.DataFrame, wanted: Requirement, model: str, dataset: str) -> Finding:
    found = _select(rows, wanted)
    if found.empty:
        return Finding(model, dataset, wanted.text, False, math.nan, math.nan, "missing: not measured")
    findings = [_one(row, wanted, model, dataset) for row in found.to_dict("records")]
    return min(findings, key=lambda f: f.passed)


def _one(row: dict[str, object], wanted: Requirement, model: str, dataset: str) -> Finding:
    value = float(row["value"])  # type: ignore[arg-type]
    end = float(row["ci_low" if wanted.relation.startswith(">") else "ci_high"])  # type: ignore[arg-type]
    judged = value if math.isnan(end) else end
    reason = _obstacle(row) or (
        "" if _COMPARE[wanted.relation](judged, wanted.bound) else f"{judged:.4g} is not {wanted.relation} {wanted.bound:g}"
    )
    return Finding(model, dataset, wanted.text, not reason, value, judged, reason)


def _obstacle(row: dict[str, object]) -> str:
    """Why a result cannot pass whatever its value is."""
    if row["status"] == "limited":
        return "limited: not all samples were measured"
    if str(row["validity"]).startswith(DOUBTED):
        return str(row["validity"])
    unknown = row["n_unknown"]
    if row["status"] == "unknown" or (not pd.isna(unknown) and int(unknown) > 0):  # type: ignore[call-overload]
        return f"unknown: an attack failed on {unknown} samples"
    return ""


def _select(rows: pd.DataFrame, wanted: Requirement) -> pd.DataFrame:
    """Rows the requirement speaks of; without selector the mean over corruptions, clean images, else all there is."""
    found = rows[rows["metric"] == wanted.metric]
    found = found[(found["scenario"] != "evasion") | found["attack"].isin(["worst", "curve"])]
    if wanted.metric == "corrupted_accuracy" and not wanted.selector:
        return found[(found["threat"] == "mean") & found["eps"].isna()]
    if not wanted.selector:
        # Of a measure of clean images, corrupted and adversarial ones are another number, to be named.
        plain = _FACTS[wanted.metric].facts["needs"] == "clean"
        return found[found["scenario"] != "calibration"] if plain else found
    chosen = [_same(wanted.selector, str(t), str(a)) for t, a in zip(found["threat"], found["attack"], strict=True)]
    return found[pd.Series(chosen, index=found.index, dtype=bool)]


def _same(selector: str, threat: str, attack: str) -> bool:
    """Equal as text, or the same norm and eps written differently (``8/255`` and ``0.03137``…)."""
    if selector.replace(" ", "") in (threat.replace(" ", ""), attack.replace(" ", "")):
        return True
    try:
        a, b = ThreatModel.parse(selector), ThreatModel.parse(threat)
    except ConfigError:
        return False
    return a.norm == b.norm and (a.eps == b.eps or math.isclose(a.eps, b.eps, rel_tol=1e-9))
