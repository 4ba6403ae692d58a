"""Requirements on the tidy table, judged on the pessimistic end of each interval."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from robench.errors import ConfigError, must, suggestion
from robench.metrics.known import facts_of
from robench.metrics.pending import PENDING
from robench.metrics.validity import DOUBTED, UNDECIDED
from robench.registry import facts
from robench.reports.text import label_doubts
from robench.spec import ThreatModel, number

_TEXT = re.compile(r"\s*(\w+)\s*(?:\[([^\]]*)\])?\s*(>=|<=|>|<)\s*(\S+)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
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
    judged_at: str = ""
    """Threat, corruption or explainer of the judged number; of several without a selector, the least favourable."""
    undecided: bool = False
    """Whether it did not pass because nothing can be said: a randomised model's estimate, or too few samples."""


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
        """0 when passed, 1 when something failed, 3 when nothing failed but results are pending or undecided."""
        failed = [f for f in self.findings if not (f.passed or f.undecided or f.reason.startswith(PENDING))]
        return 0 if self.passed else 1 if failed or not self.findings else 3

    @property
    def outcome(self) -> str:
        """``passed``, ``failed`` or ``undecided``."""
        return {0: "passed", 1: "failed", 3: "undecided"}[self.exit_code]

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
    facts_of(metric, what="a requirement's metric")
    try:
        bound = number(typed.removesuffix("%")) / (100 if typed.endswith("%") else 1)
    except ValueError as error:
        raise ConfigError(must("a requirement's bound", "a number, ratio or percent", typed[:80], _EXAMPLE)) from error
    return Requirement(metric, (selector or "").strip(), relation, bound, text.strip())


def require_measured(table: pd.DataFrame, requirements: Sequence[Requirement], *, planned: Iterable[str] = ()) -> None:
    """Refuse a requirement on something that the run neither measured nor planned, which is most likely misspelt.

    Args:
        table: The tidy table of the whole run.
        requirements: What is asked for.
        planned: Threats of the run's cells, finished or not.

    Raises:
        ConfigError: Names the metrics, or the threats (corruptions, explainers), that there are.
    """
    rows = table[table["condition"] == ""]
    lost = set(rows.loc[rows["status"].isin(_LOST), "scenario"])
    for wanted in requirements:
        of_metric = _select(rows, wanted, whole=True)
        if of_metric.empty and facts_of(wanted.metric)["needs"] not in lost:
            measured = sorted(set(rows.loc[~rows["status"].isin(_LOST), "metric"]))
            remedy = suggestion(wanted.metric, measured)
            raise ConfigError(must(f"the metric of {wanted.text}", "one that this run measured", wanted.metric, remedy))
        expected = any(_same(wanted.selector, threat, "") for threat in planned)
        if wanted.selector and _select(rows, wanted).empty and not expected and not of_metric.empty:
            named = sorted({str(v) for c in ("threat", "attack") for v in of_metric[c] if v not in ("", "worst")})
            told = f"one of {', '.join(named)}" if named else "absent: this metric has none"
            remedy = f"{wanted.metric} was measured there only"
            raise ConfigError(must(f"the selector of {wanted.text}", told, wanted.selector, remedy))


_LOST = ("failed", "skipped", PENDING)
"""Status of rows without a value."""


@facts(version=4)
def audit(
    table: pd.DataFrame, requirements: Sequence[str | Requirement], *, condition: str = "", threats: Sequence[str] = ()
) -> AuditResult:
    """Whether every model keeps every requirement.

    A lower bound is held against the lower end of the interval, an upper bound against the upper end. Missing, limited,
    suspicious and unknown results fail, and so does all but costs of a model whose labels or preparation are doubted (its
    clean accuracy is not above chance, or another order of classes fits better). A bound that a randomised model's estimate
    keeps, or one measured on too few samples, is undecided, and one that they do not keep fails.

    Args:
        table: A tidy table.
        requirements: Texts as for ``parse_requirement``.
        condition: Condition of the models to look at; the plain models by default.
        threats: Threats that a requirement on attacks without a selector speaks of, of which the least favourable counts:
            a suite's own, as the leaderboard shows them, without those of its security curves; by default all.
    """
    parsed = [parse_requirement(r) if isinstance(r, str) else r for r in requirements]
    rows = table[table["condition"] == condition]
    findings = [
        _judge(part, requirement, str(model), str(dataset), threats, _doubt(table, model, dataset))
        for (model, dataset), part in rows.groupby(["model", "dataset"], sort=True)
        for requirement in parsed
    ]
    return AuditResult(tuple(findings))


def _doubt(table: pd.DataFrame, model: object, dataset: object) -> str:
    """What speaks against the labels or the preparation of a model as it is; empty where nothing does."""
    told = label_doubts(table[(table["model"] == model) & (table["dataset"] == dataset) & (table["condition"] == "")])
    return f"labels or preparation are doubted: {told[0].removeprefix(f'{model}: ')}" if told else ""


def _judge(
    rows: pd.DataFrame, wanted: Requirement, model: str, dataset: str, threats: Sequence[str], doubt: str
) -> Finding:
    found = _select(rows, wanted)
    if not wanted.selector:
        found = _at_own(found, threats)
    if found.empty:
        waiting = f"{PENDING}: no result yet; run the same command again" if rows["status"].eq(PENDING).any() else ""
        reason = waiting or "missing: not measured"
        return Finding(model, dataset, wanted.text, False, math.nan, math.nan, reason, undecided=bool(waiting))
    doubt = "" if facts_of(wanted.metric)["needs"] in _WITHOUT_LABELS else doubt
    findings = [_one(row, wanted, model, dataset, doubt) for row in found.to_dict("records")]
    sign = 1 if wanted.relation.startswith(">") else -1
    return min(findings, key=lambda f: (f.passed, f.undecided, math.isfinite(f.judged), sign * f.judged))


def _at_own(found: pd.DataFrame, threats: Sequence[str]) -> pd.DataFrame:
    """The rows of one metric without those of attacks at other threats than the suite's own, where it has own ones."""
    own = found["threat"].isin(threats)
    return found[own | (found["scenario"] != "evasion")] if own.any() else found


_WITHOUT_LABELS = ("efficiency",)
"""Frames whose metrics mean the same when labels or preparation are wrong."""


def _one(row: dict[str, object], wanted: Requirement, model: str, dataset: str, labels: str) -> Finding:
    value = float(row["value"])  # type: ignore[arg-type]
    end = float(row["ci_low" if wanted.relation.startswith(">") else "ci_high"])  # type: ignore[arg-type]
    judged = value if math.isnan(end) else end
    broken = (
        "" if _COMPARE[wanted.relation](judged, wanted.bound) else f"{judged:.4g} is not {wanted.relation} {wanted.bound:g}"
    )
    doubt = str(row["validity"]) if str(row["validity"]).startswith(UNDECIDED) else ""
    reason = _obstacle(row) or labels or broken or doubt
    where = ", ".join(str(row[c]) for c in ("threat", "attack") if row[c] and row[c] != "worst")
    undecided = (bool(doubt) and reason == doubt) or row["status"] == PENDING
    return Finding(model, dataset, wanted.text, not reason, value, judged, reason, where, undecided)


def _obstacle(row: dict[str, object]) -> str:
    """Why a result cannot pass whatever its value is."""
    if row["status"] == PENDING:
        return str(row["validity"])
    if row["status"] == "limited":
        return "limited: not all samples were measured"
    if str(row["validity"]).startswith(tuple(status for status in DOUBTED if status not in UNDECIDED)):
        return str(row["validity"])
    unknown = row["n_unknown"]
    if row["status"] == "unknown" or (not pd.isna(unknown) and int(unknown) > 0):  # type: ignore[call-overload]
        return f"unknown: an attack failed on {unknown} samples"
    return ""


def _select(rows: pd.DataFrame, wanted: Requirement, *, whole: bool = False) -> pd.DataFrame:
    """Rows the requirement speaks of; without selector the mean over corruptions, clean images, else all there is.

    With ``whole``, all rows of its metric that a selector can name.
    """
    found = rows[rows["metric"] == wanted.metric]
    found = found[(found["scenario"] != "evasion") | found["attack"].isin(["worst", "curve"])]
    if whole:
        return found
    if wanted.metric == "corrupted_accuracy" and not wanted.selector:
        return found[(found["threat"] == "mean") & found["eps"].isna()]
    if not wanted.selector:
        # Of a measure of clean images, corrupted and adversarial ones are another number, to be named.
        plain = facts_of(wanted.metric)["needs"] == "clean"
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
