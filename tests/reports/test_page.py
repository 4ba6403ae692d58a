"""What a reader in a hurry sees: who leads, who is not to be believed, and which lines may be compared."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from robench.reports.leaderboard import leaderboard, ranked_by
from robench.reports.page import flags, leaders, page, suspects

THREAT = "linf(8/255)"


@pytest.fixture(scope="module")
def table(synthetic) -> pd.DataFrame:
    return synthetic.table()


def _cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, heads first, tags removed."""
    grid = text.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", grid, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def _told(table: pd.DataFrame, **more: object) -> list[str]:
    return leaders(leaderboard(table, **more), ranked_by(table, **more))


def test_the_first_sentence_says_who_leads_with_interval_samples_and_threat(table):
    told = _told(table, threat=THREAT)
    kept = "it keeps 50.0 [37.7, 62.3] % of 60 images right under every attack at linf(8/255)."
    assert told == [f"digits: trained leads 2 ranked models; {kept}"]
    alone = _told(table[table["model"] == "plain"], threat=THREAT)
    assert alone[0].startswith("digits: plain is the only ranked model; it keeps ")


def test_nobody_leads_where_nobody_is_ranked(synthetic, table):
    assert _told(table[table["model"] == "masked"]) == ["digits: no model can be ranked."]
    assert _told(table.iloc[:0]) == []
    limited = synthetic.table(limited=True)
    assert "Limited run" in page(limited) and "no model can be ranked" in page(limited)


def test_without_attacks_what_was_measured_ranks_and_the_sentence_says_so(table):
    calm = table[table["scenario"].isin(["clean", "corruption"])]
    assert ranked_by(calm) == ("corrupted_accuracy", "mean") and set(leaderboard(calm)["n"]) == {60}
    (told,) = _told(calm)
    assert re.fullmatch(r"digits: .* images right, as the mean over all corruptions\.", told)
    assert ranked_by(calm, threats=[THREAT]) == ("robust_accuracy", ""), "what was to be attacked and was not ranks nobody"
    only = table[table["scenario"] == "clean"]
    assert ranked_by(only) == ("accuracy", "")
    assert _told(only) == [
        "digits: masked and plain and trained lead 3 ranked models; each keeps 95.0 [86.3, 98.6] % of 60 images right."
    ]


def test_suspects_and_flags_name_each_model_once_with_the_ranking_threat_in_view(table):
    assert suspects(table) == ["masked at linf(2/255), linf(4/255), linf(8/255)"]
    (flag,) = flags(table, THREAT)
    assert flag["who"] == "masked" and flag["threat"] == THREAT
    assert flag["reasons"][0].startswith("zero gradients on 25.0 %")
    assert [other.partition(":")[0] for other in flag["others"]] == ["linf(2/255)", "linf(4/255)"]
    assert flags(table[table["model"] == "plain"], THREAT) == [] and suspects(table[table["model"] == "plain"]) == []


def test_a_suspicious_condition_is_flagged_as_itself(table):
    changed = table.assign(condition=table["condition"].mask(table["model"] == "masked", "bit_depth(bits=3)"))
    assert suspects(changed) == ["masked bit_depth(bits=3) at linf(2/255), linf(4/255), linf(8/255)"]
    assert flags(changed, "")[0]["who"] == "masked bit_depth(bits=3)"


def test_verdict_samples_and_the_ranking_number_stand_beside_the_model(table):
    heads, first, *_ = _cells(page(table, header={"suite": {"threats": ["linf(4/255)"]}}), "Leaderboard")
    assert heads[:5] == ["rank", "model", "validity", "n", "robust@linf(4/255) %"]
    assert first[:4] == ["1", "trained", "sound", "60"] and re.fullmatch(r"75\.0 \[.*\]", first[4])


def test_changed_models_stand_under_their_model_and_say_which_attacks_they_did_not_meet(table):
    plain = table[(table["model"] == "plain") & (table["condition"] == "")]
    int8 = plain[plain["attack"] != "fgsm"].assign(condition="int8")
    text = page(pd.concat([plain, int8], ignore_index=True), header={"suite": {"threats": [THREAT]}})
    heads, whole, changed = _cells(text, "Compressed and defended models")
    assert heads[:4] == ["model", "condition", "n", "verdict"] and heads[-1] == "but"
    assert (whole[:2], whole[3], whole[-1]) == (["plain", "(as it is)"], "sound", "")
    assert (changed[:2], changed[3], changed[-1]) == (["plain", "int8"], "sound", "not measured against fgsm")
    assert "Compressed and defended" not in page(plain)


def test_the_suite_is_folded_and_its_limit_is_said_openly(table):
    text = page(table, header={"suite": {"name": "mine", "limit": 300, "attacks": ["pgd"], "threats": []}, "seed": 1})
    before, _, folded = text.partition("<h2>This run</h2>")[2].partition("<summary>the suite</summary>")
    assert "<dt>suite.limit</dt><dd>300</dd>" in before and "<dt>seed</dt><dd>1</dd>" in before
    assert "<dt>suite.attacks</dt>" in folded
