from __future__ import annotations

import pytest

from robench.errors import ConfigError
from robench.metrics.table import tidy
from robench.metrics.validity import UNDECIDED
from robench.reports.audit import AuditResult, audit, parse_requirement
from robench.reports.text import label_doubts


@pytest.fixture(scope="module")
def table(synthetic):
    return synthetic.table()


def only(result: AuditResult, model: str):
    return next(f for f in result.findings if f.model == model)


def test_requirements_are_read():
    r = parse_requirement(" robust_accuracy[linf(8/255)] >= 40% ")
    assert (r.metric, r.selector, r.relation, r.bound) == ("robust_accuracy", "linf(8/255)", ">=", 0.4)
    assert parse_requirement("ece<=1/20").bound == 0.05


BAD = ["robust_accuracy", "robust_accuracy=0.4", "ece<=x", "ece<=1/0", "[linf]>=0.1"]


@pytest.mark.parametrize("text", BAD)
def test_malformed_requirements_are_errors(text):
    with pytest.raises(ConfigError, match=r"e\.g\. robust_accuracy"):
        parse_requirement(text)


def test_unknown_metrics_are_errors():
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        parse_requirement("acuracy>=0.1")


def test_a_lower_bound_is_held_against_the_lower_end(table):
    trained = table[table["model"] == "trained"]
    assert audit(trained, ["robust_accuracy[linf(8/255)]>=0.37"]).exit_code == 0
    failed = audit(trained, ["robust_accuracy[linf(8/255)]>=0.45"])
    assert failed.exit_code == 1 and only(failed, "trained").value == 0.5
    assert only(failed, "trained").reason == "0.3774 is not >= 0.45"


def test_an_upper_bound_is_held_against_the_upper_end_and_exact_values_as_they_are(table):
    trained = table[table["model"] == "trained"]
    assert audit(trained, ["ece<=0.2", "parameters<=1000"]).passed
    assert not audit(trained, ["ece<=0.16"]).passed
    assert not audit(trained, ["parameters<1000"]).passed


def test_eps_may_be_written_differently(table):
    assert audit(table[table["model"] == "trained"], [f"robust_accuracy[linf({8 / 255!r})]>=0.3"]).passed


def test_suspicious_and_missing_fail_with_their_reason(table):
    result = audit(table, ["robust_accuracy[linf(2/255)]>=0", "data_efficiency_auc>=0"])
    assert "zero gradients" in only(result, "masked").reason
    assert [f.reason for f in result.findings if f.model == "trained"] == ["", "missing: not measured"]


@pytest.mark.parametrize("verdict", [f"{status}: a reason" for status in UNDECIDED])
def test_what_nothing_speaks_against_and_too_little_for_is_undecided(table, verdict):
    trained = table[table["model"] == "trained"].assign(validity=verdict)
    kept = audit(trained, ["robust_accuracy[linf(8/255)]>=0.3"])
    assert (kept.exit_code, kept.outcome, kept.passed) == (3, "undecided", False)
    assert only(kept, "trained").reason == verdict
    missed = audit(trained, ["robust_accuracy[linf(8/255)]>=0.3", "robust_accuracy[linf(8/255)]>=0.9"])
    assert (missed.exit_code, missed.outcome) == (1, "failed")


def test_limited_unknown_and_empty_fail(synthetic, table):
    limited = audit(synthetic.table(limited=True), ["accuracy>=0"])
    assert {f.reason.partition(":")[0] for f in limited.findings} == {"limited"} and not limited.passed
    unknown = audit(table.assign(n_unknown=3, validity="sound"), ["robust_accuracy[linf(8/255)]>=0"])
    assert only(unknown, "trained").reason == "unknown: an attack failed on 3 samples"
    assert audit(table.iloc[:0], ["accuracy>=0"]).exit_code == 1


def test_without_selector_every_threat_must_hold_and_corruptions_mean_the_mean(table):
    trained = table[table["model"] == "trained"]
    assert not audit(trained, ["robust_accuracy>=0.5"]).passed
    assert audit(trained, ["robust_accuracy>=0.3"]).passed
    mean = only(audit(trained, ["corrupted_accuracy>=0.5"]), "trained")
    assert mean.passed and mean.value == pytest.approx(0.894, abs=1e-3)
    assert audit(trained, ["insertion_deletion_gap[saliency]>=0.1"]).passed


@pytest.mark.parametrize("scenario", ["clean", "evasion"])
def test_nothing_of_a_model_whose_labels_are_doubted_passes_but_costs(synthetic, scenario):
    """Without rows of clean images, those of attacks tell what the model said before them."""
    frames = {name: frame.copy() for name, frame in synthetic.frames().items()}
    clean = frames["clean"]
    of = clean["model"] == "trained"
    clean.loc[of, "pred"] = (clean.loc[of, "pred"] + 1) % 4
    if scenario == "evasion":
        of = frames["evasion"]["model"] == "trained"
        frames["evasion"].loc[of, "pred_clean"] = (frames["evasion"].loc[of, "label"] + 1) % 4
        del frames["clean"]
    table = tidy(frames)
    asked = ["robust_accuracy[linf(8/255)]>=0", "parameters<=1000"] + ["accuracy>=0"] * (scenario == "clean")
    found = [f for f in audit(table, asked).findings if f.model == "trained"]
    assert [f.passed for f in found] == [False, True] + [False] * (scenario == "clean")
    assert found[0].reason.startswith("labels or preparation are doubted: ") and "fits better" in found[0].reason
    assert audit(table[table["model"] == "trained"], asked).exit_code == 1
    (told,) = label_doubts(table[table["model"] == "trained"])
    assert told.startswith("trained: ") and "; " not in told


def test_findings_are_a_table(table):
    frame = audit(table, ["accuracy>=0.5"]).frame()
    assert list(frame["model"]) == ["masked", "plain", "trained"] and frame["passed"].all()


def test_without_a_selector_the_suites_own_threats_are_judged(table):
    """A security curve goes to eps at which nothing survives; nobody asks a release to hold there."""
    trained = table[table["model"] == "trained"]
    free = only(audit(trained, ["robust_accuracy>=0.3"]), "trained")
    own = only(audit(trained, ["robust_accuracy>=0.3"], threats=["linf(2/255)"]), "trained")
    both = only(audit(trained, ["robust_accuracy>=0.3"], threats=["linf(2/255)", "linf(4/255)"]), "trained")
    assert [f.judged_at for f in (free, own, both)] == ["linf(8/255)", "linf(2/255)", "linf(4/255)"]
    assert free.value == 0.5 < both.value < own.value
    named = only(audit(trained, ["robust_accuracy[linf(8/255)]>=0.3"], threats=["linf(2/255)"]), "trained")
    assert named.judged_at == "linf(8/255)"
    elsewhere = only(audit(trained, ["robust_accuracy>=0.3"], threats=["l2(9)"]), "trained")
    assert elsewhere.judged_at == "linf(8/255)", "a suite with curves only is judged at all of them"


def test_other_metrics_do_not_depend_on_the_suites_threats(table):
    asked = ["accuracy>=0.5", "corrupted_accuracy>=0.1", "security_curve_area>=0.1"]
    assert audit(table, asked).frame().equals(audit(table, asked, threats=["linf(2/255)"]).frame())


@pytest.mark.parametrize(
    ("said", "meant"), [("clean_accuracy", "accuracy"), ("robust", "robust_accuracy"), ("clean", "accuracy")]
)
def test_what_people_call_a_metric_is_suggested(said, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        parse_requirement(f"{said}>=0.1")
