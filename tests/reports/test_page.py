"""What a reader in a hurry sees: who leads, who is not to be believed, and which lines may be compared."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.cells import tidy_cells, unit
from robench.reports.corruptions import corruptions
from robench.reports.leaderboard import leaderboard, ranked_by
from robench.reports.page import flags, leaders, page, suspects, unfinished, unknown
from robench.reports.text import exclusions

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


@pytest.fixture(scope="module")
def crashed(synthetic) -> pd.DataFrame:
    """PGD fails on 52 of 60 images of one model at the largest eps; of that model no corruption and no sentinel finished."""
    rows = synthetic.evasion("plain")
    lost = (rows["threat"] == THREAT) & rows["attack"].str.startswith("pgd") & (rows["sample"] >= 8)
    rows = rows.assign(status=rows["status"].mask(lost, "failed"), error=rows["error"].mask(lost, "RuntimeError: boom"))
    survived = lost | (rows["threat"].eq(THREAT) & ~rows["attack"].str.startswith("pgd"))
    rows["score_adv"] = rows["score_adv"].mask(survived, rows["score_clean"])
    missing = [
        {**synthetic.cell("plain", scenario), "threat": "", "attack": "", "corruption": corruption, "status": "failed",
         "error": "RuntimeError: dark"}
        for scenario, corruption in (("corruption", "gaussian_noise"), ("corruption", "contrast"), ("sentinel", ""))
    ]  # fmt: skip
    clean = pd.concat([synthetic.clean("plain"), synthetic.clean("trained")], ignore_index=True)
    evasion = pd.concat([rows, synthetic.evasion("trained")], ignore_index=True)
    frames = {"clean": clean, "evasion": evasion, "corruption": synthetic.corruption("trained")}
    return tidy({**frames, "sentinel": synthetic.sentinel("trained"), "unfinished": pd.DataFrame(missing)})


def test_failures_name_the_attack_or_corruption_its_images_and_the_error(crashed):
    assert unfinished(crashed, "failed") == [
        "plain, corruption contrast, corruption gaussian_noise, sentinel: RuntimeError: dark",
        f"plain, pgd(steps=40) at {THREAT}: failed on 52 of 60 samples: RuntimeError: boom",
    ]


def test_unknown_images_are_told_by_model_and_threat(crashed, table):
    (told,) = unknown(crashed)
    assert re.fullmatch(r"plain: (4\d|5\d) of 60 at linf\(8/255\)", told) and unknown(table) == []
    assert told in page(crashed, drawn=[])


def test_a_model_without_any_finished_corruption_is_named_below_the_table_that_lacks_it(crashed):
    section = corruptions(crashed)
    assert list(section.cells["model"]) == ["trained"]
    assert section.note.endswith("Not shown, since no corruption finished on them: plain.")
    assert "Not shown" not in corruptions(crashed[crashed["model"] == "trained"]).note


def test_only_models_of_which_no_check_found_anything_have_exclusions(table):
    told = exclusions(table)
    assert {line.partition(" ")[0] for line in told} == {"plain", "trained"}
    assert all("would have been told" in line for line in told)
    assert table.loc[(table["model"] == "masked") & (table["attack"] == "worst"), "excludes"].ne("").any()


def test_doubts_about_labels_are_no_exclusions(synthetic):
    wrong = synthetic.clean("plain")
    wrong = wrong.assign(pred=(wrong["label"] + 1) % 4, score=0.0)
    rows = synthetic.evasion("plain")
    found = tidy({"clean": wrong, "evasion": rows, "sentinel": synthetic.sentinel("plain")})
    worst = found[found["attack"] == "worst"]
    assert worst["excludes"].str.startswith("labels: ").all()
    assert not any("labels: " in line for line in exclusions(found.assign(validity="sound"))) and exclusions(
        found.assign(validity="sound")
    )


def test_the_page_says_what_has_no_table_of_its_own(table):
    text = page(table, drawn=[])
    assert "; cost and explanations: only here</summary>" in text or "; explanations: only here</summary>" in text
    assert ": only here" not in page(table[~table["scenario"].isin(["efficiency", "explanation"])], drawn=[])


def test_a_difference_of_rates_is_in_percentage_points(table):
    heads, *_ = _cells(page(table, drawn=[]), "Leaderboard")
    assert "train_test_gap points" in heads and "clean %" in heads and not any("gap %" in head for head in heads)
    cells = tidy_cells(table)
    assert cells.loc[cells["metric"] == "train_test_gap", "value"].str.endswith(" points").all()
    assert cells.loc[cells["metric"] == "accuracy", "value"].str.endswith(" %").all()
    units = {name: unit(name) for name in ("robust_accuracy_drop", "ece_change", "shift_gap", "gain_in_accuracy", "ece")}
    assert list(units.values()) == ["points"] * 4 + ["%"]
