from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics import columns
from robench.metrics.validity import DOUBTED, FEW, HEDGED, RANDOMISED, UNEXAMINED, access_of, verdict, worst_of, worst_status
from robench.thresholds import ASTRAY


@pytest.fixture
def rows(synthetic):
    return synthetic.evasion("trained"), synthetic.sentinel("trained")


def test_a_clean_evaluation_is_sound(rows):
    found = verdict(*rows)
    assert found.sound and found.reasons == () and str(found) == "sound"


def test_two_reasons_of_a_masked_model_are_both_named(synthetic):
    found = verdict(synthetic.evasion("masked"), synthetic.sentinel("masked"))
    assert str(found).startswith("suspicious: zero gradients on 25.0 % of samples; an unbounded attack breaks only")


SENTINEL = [
    ({"nonfinite_gradient": True}, "non-finite gradients"),
    ({"zero_gradient": True}, "zero gradients on 100.0 %"),
    ({"probabilities": True}, "returns probabilities"),
    ({"random": True}, "output is random"),
    ({"batch_dependent": True}, "depends on the other images"),
    ({"unbounded_broken": False}, "an unbounded attack breaks only 0.0 %"),
    ({"unbounded_broken": None}, "an unbounded attack breaks only 0.0 %"),
    ({"status": "failed"}, "sentinel failed on 60 of 60"),
    ({"gradient_error": 0.6}, "disagree with finite differences on 100.0 %"),
    ({"slope_claimed": 0.0, "slope": 0.0}, None),
    ({"slope_claimed": 0.0, "slope": 1.0}, "agree with the gradient by a cosine of 0.00 only"),
    ({"slope_claimed": [1.0, -1.0] * 30, "slope": 1.0}, "agree with the gradient by a cosine of 0.00 only"),
    ({"hidden": 0.2}, "20.0 % of the squared gradient lie on pixels"),
    ({"evenness": 1e-4}, "the gradients of some classes are lost beside those of others on 100.0 % of samples"),
    ({"sample": [999, *range(1, 5), 998, *range(6, 60)]}, "no sentinel looked at 1 of 57 correct samples"),
    ({"gradient_dependent": True}, "the output changes when a gradient is asked for"),
    ({"broken_ce": 0.0}, "of two losses only margin breaks 27 of 57 samples"),
    ({"broken_ce": 1.0, "threat": "linf(1/255)"}, "of two losses only cross-entropy breaks 30 of 57 samples"),
    ({"rising": 0.06}, "the margin still falls at the end of a short ascent on 57 of 57 survivors"),
    ({"rising": 0.05}, None),
    ({"silent": 1.0}, "57 of 57 samples were broken on the way and not when judged"),
    ({"broken_2x": 0.0}, "a larger eps breaks less: 27, 0 and 57 of 57 samples at eps, 2 eps and 4 eps"),
    (dict.fromkeys(("broken_margin", "broken_ce", "broken_2x"), 1.0), "short ascents break 30 of 57 samples"),
    (dict.fromkeys(("broken_margin", "broken_ce", "broken_2x", "broken_4x", "rising"), None), None),
]


@pytest.mark.parametrize(("planted", "reason"), SENTINEL)
def test_each_planted_sentinel_sign_is_found(rows, planted, reason):
    found = verdict(rows[0], rows[1].assign(**planted))
    assert found.sound if reason is None else len(found.reasons) == 1 and reason in found.reasons[0]


EVASION = [
    ({"nonfinite_gradients": 1}, "non-finite gradients"),
    ({"zero_gradients": 3}, "zero gradients in 7.5 % of their passes"),
    ({"nonfinite_outputs": 1}, "non-finite outputs"),
    ({"unstable": True}, "judged differently in another batch"),
    ({"status": "failed"}, "attack rows failed (fgsm, noise, pgd(steps=40))"),
]


@pytest.mark.parametrize(("planted", "reason"), EVASION)
def test_each_planted_attack_sign_is_found(rows, planted, reason):
    found = verdict(rows[0].assign(**planted), rows[1])
    assert len(found.reasons) == 1 and reason in found.reasons[0]


def test_small_shares_stay_sound(rows):
    evasion, sentinel = rows
    evasion.loc[1, "zero_gradients"] = 5
    sentinel.loc[0, "zero_gradient"] = True
    assert verdict(evasion, sentinel).sound


def elsewhere(sentinel: pd.DataFrame) -> pd.DataFrame:
    """The same sentinel at another threat, whose ascents say nothing of what these attacks missed."""
    return sentinel.assign(threat="linf(1/255)")


def _planted(evasion: pd.DataFrame, attack: str, samples: int, access: str) -> pd.DataFrame:
    """An attack that breaks ``samples`` clean-correct samples which nothing else broke."""
    base = evasion[(evasion["attack"] == "noise") & (evasion["threat"] == "linf(8/255)")]
    base = base.assign(attack=attack, access=access)
    same = evasion[evasion["threat"] == "linf(8/255)"]
    safe = same.groupby("sample")["score_adv"].min()
    chosen = list(safe.index[safe > 0])[:samples]
    base.loc[:, "score_adv"] = base["score_clean"]
    base.loc[base["sample"].isin(chosen), "score_adv"] = 0.0
    return pd.concat([evasion, base], ignore_index=True)


@pytest.mark.parametrize(("attack", "access"), [("transfer_pgd(steps=10)", "transfer"), ("noise(draws=9)", "noise")])
def test_what_sees_less_must_not_break_other_samples(rows, attack, access):
    found = verdict(_planted(rows[0], attack, 2, access), rows[1])
    assert found.reasons == (f"{attack} breaks 2 of 57 correct samples that gradient attacks did not",)
    assert verdict(_planted(rows[0], attack, 1, access), rows[1]).sound


@pytest.mark.parametrize(("attack", "access"), [("square", "score"), ("rays", "decision"), ("art:SquareAttack", "white")])
def test_black_box_must_not_break_more(rows, attack, access):
    """An attack that declares gradients and asked for none counts as black box."""
    assert verdict(_planted(rows[0], attack, 2, access), rows[1]).sound
    many = rows[0].assign(score_adv=rows[0]["score_clean"])
    found = verdict(_planted(many, attack, 20, access), elsewhere(rows[1]))
    assert found.reasons == (f"{attack} breaks 20 of 57 correct samples more than the gradient attacks",)


def test_another_gradient_attack_is_no_rival(rows):
    many = _planted(rows[0].assign(score_adv=rows[0]["score_clean"]), "mine", 20, "white")
    many.loc[many["attack"] == "mine", "backwards"] = 40
    assert verdict(many, elsewhere(rows[1])).sound


def test_without_gradient_attack_or_rival_or_sentinel_nothing_is_sound(rows):
    evasion, sentinel = rows[0], elsewhere(rows[1])
    assert verdict(evasion[evasion["attack"] == "noise"], sentinel).reasons == ("no gradient attack was run",)
    assert verdict(evasion.assign(backwards=0), sentinel).reasons == ("no gradient attack was run",)
    only = verdict(evasion[evasion["attack"] == "fgsm"], sentinel)
    assert only.reasons == ("no attack without gradients was run (at least noise)",)
    assert "no sentinel rows" in verdict(evasion, None).reasons[0]
    assert "no sentinel rows" in verdict(evasion, sentinel.iloc[:0]).reasons[0]


def test_accuracy_must_not_rise_with_eps(rows):
    evasion, sentinel = rows[0], elsewhere(rows[1])
    far = evasion["threat"] == "linf(8/255)"
    evasion.loc[far, "score_adv"] = evasion.loc[far, "score_clean"]
    both = verdict(evasion, sentinel)
    assert [r.partition(" by ")[0] for r in both.reasons] == [
        "robust accuracy rises from linf(2/255) to linf(8/255)",
        "robust accuracy rises from linf(4/255) to linf(8/255)",
    ]
    near = evasion["threat"] == "linf(4/255)"
    assert verdict(evasion[near], sentinel, siblings=evasion[evasion["threat"] == "linf(2/255)"]).sound
    assert not verdict(evasion[far], sentinel, siblings=evasion[near]).sound


def test_samples_on_which_an_attack_failed_do_not_show_a_rise(rows):
    """Two samples at the larger eps are known to have survived; all others are unknown there."""
    evasion, sentinel = rows[0], elsewhere(rows[1])
    near, far = (evasion["threat"] == f"linf({eps}/255)" for eps in (4, 8))
    evasion.loc[far, "score_adv"] = evasion.loc[far, "score_clean"]
    crashed = evasion.assign(status=evasion["status"].mask(far, "failed"))
    reasons = verdict(crashed[far], sentinel, siblings=crashed[near]).reasons
    assert reasons and not any("rises" in reason for reason in reasons)
    broken = evasion.loc[near & evasion["score_adv"].eq(0) & evasion["score_clean"].gt(0), "sample"].unique()
    assert len(broken) > 4
    half = evasion.assign(status=evasion["status"].mask(far & ~evasion["sample"].isin(broken[:4]), "failed"))
    (told,) = (r for r in verdict(half[far], sentinel, siblings=half[near]).reasons if "rises" in r)
    mistakes = evasion.loc[evasion["score_clean"].eq(0), "sample"].unique()
    known = len({*broken[:4], *mistakes})
    assert told.endswith(f"by {400 / known:.1f} percentage points")


def test_a_larger_eps_that_breaks_no_more_is_suspicious_where_it_could(rows):
    evasion, sentinel = rows
    flat = sentinel.assign(broken_2x=sentinel["broken_margin"], broken_4x=sentinel["broken_margin"])
    assert verdict(evasion, flat).reasons == (
        "a larger eps breaks no more: 27, 27 and 27 of 57 samples at eps, 2 eps and 4 eps",
    )
    few = (sentinel["sample"] < 3).astype(float)
    assert verdict(evasion, flat.assign(broken_margin=few, broken_ce=few, broken_2x=few, broken_4x=few)).sound


def test_a_few_samples_that_only_a_short_ascent_breaks_are_no_evidence(rows):
    evasion, sentinel = rows
    near = evasion["threat"].eq("linf(8/255)") & evasion["score_adv"].gt(0)
    spared = evasion.loc[near].groupby("sample").size().loc[lambda s: s == 3].index
    for count in (2, 3):
        more = sentinel.assign(broken_margin=sentinel["broken_margin"].mask(sentinel["sample"].isin(spared[:count]), 1.0))
        found = verdict(evasion, more.assign(broken_ce=more["broken_margin"]))
        assert found.sound is (count == 2)


def test_a_protocol_counts_as_both_kinds_of_access(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    assert access_of(rows) == {"robench-standard": "all"}
    assert verdict(rows, sentinel).sound
    assert verdict(rows.assign(backwards=0), sentinel).reasons == ("no gradient attack was run",)
    assert "zero gradients in 50.0 %" in verdict(rows.assign(zero_gradients=20), sentinel).reasons[0]


@pytest.mark.parametrize("access", ["score", "decision", "transfer"])
def test_stages_without_gradients_must_not_find_what_gradients_missed(synthetic, access):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    sieved = rows.index[rows["stage"] == "sieve"]

    def relabelled(chosen: pd.Index) -> pd.DataFrame:
        other = rows.index.isin(chosen)
        return rows.assign(stage=rows["stage"].mask(other, "late"), stage_access=rows["stage_access"].mask(other, access))

    assert verdict(relabelled(sieved[:1]), sentinel).sound
    found = verdict(relabelled(sieved[:9]), sentinel)
    assert found.reasons == ("late broke 9 of 57 correct samples that gradient stages did not",)
    assert verdict(rows.assign(stage=rows["stage"].replace("sieve", "square-like")), sentinel).sound


@pytest.mark.parametrize("name", columns.EVASION)
def test_rows_without_one_of_their_columns_are_never_sound(synthetic, name):
    """What an absent column would have said is not known: without ``fresh_copy_agrees`` a model with memory was sound."""
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    found = verdict(rows.drop(columns=name), sentinel)
    assert verdict(rows, sentinel).sound and found.status == "suspicious"
    assert found.reasons == (f"rows without the columns {name}",)


def test_texts_in_a_column_of_numbers_are_told(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    assert verdict(rows.assign(fresh_copy_agrees="x"), sentinel).reasons == (
        "column fresh_copy_agrees holds 'x', which is no number",
    )


def test_an_escalation_is_a_note_and_no_reason(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    found = verdict(rows.assign(escalated="square broke survivors"), sentinel)
    assert found.sound and "escalated: square broke survivors" in found.notes
    lost = f"{ASTRAY}, gradients lead astray on 18 of 18 samples"
    assert verdict(rows.assign(escalated=f"square broke survivors; {lost}"), sentinel).reasons == (lost,)
    assert not any(note.startswith("escalated") for note in verdict(rows, sentinel).notes)


def test_notes_say_what_the_samples_looked_at_can_exclude(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    notes = verdict(rows, sentinel).notes
    assert notes[0].startswith("gradients and outputs were looked at on 57 correct samples") and len(notes) == 2
    assert "a fault on 8.1 % of samples would have been told" in notes[0]
    many = pd.concat([rows.assign(sample=rows["sample"] + 100 * k) for k in range(8)], ignore_index=True)
    assert "met on 48 random survivors: finding nothing bounds a fault to 6.1 %" in verdict(many, sentinel).notes[-1]


def test_a_threat_of_a_norm_that_the_sentinel_did_not_look_at_is_told(rows):
    evasion, sentinel = rows[0], rows[1].assign(threat="linf(8/255)")
    told = "gradients and short ascents were looked at under linf(8/255) only; in the geometry of l2(0.5) nothing was"
    here = evasion[evasion["threat"] == "linf(8/255)"]
    assert told not in verdict(here, sentinel).notes
    assert told in verdict(here.assign(threat="l2(0.5)", norm="l2"), sentinel).notes
    assert not any("in the geometry of" in note for note in verdict(here.assign(threat="linf(4/255)"), sentinel).notes)


def test_the_notes_know_how_many_the_protocol_looks_at():
    from robench.attacks._protocols import RANDOM

    assert HEDGED["robench-standard"] == RANDOM


def test_access_is_what_was_declared_and_used(rows):
    assert access_of(rows[0]) == {"fgsm": "white", "noise": "noise", "pgd(steps=40)": "white"}
    assert access_of(rows[0].assign(backwards=0))["fgsm"] == "score"


def test_a_number_is_invalid_where_attacks_failed_on_most_of_what_is_right_when_clean(synthetic):
    rows, sentinel = synthetic.evasion("trained"), synthetic.sentinel("trained")
    rows = rows[rows["threat"] == "linf(8/255)"]
    rows = rows.assign(score_adv=rows["score_clean"])
    right = sorted(set(rows.loc[rows["score_clean"] > 0, "sample"]))
    for share, status in ((0.4, "suspicious"), (0.6, "invalid")):
        lost = rows["sample"].isin(right[: int(share * len(right))]) & (rows["attack"] == "fgsm")
        found = verdict(rows.assign(status=rows["status"].mask(lost, "failed")), sentinel)
        assert found.status == status and not found.sound
        assert str(found).startswith(f"{status}: ") and str(found).startswith(DOUBTED)


def test_finds_of_a_rough_search_that_the_model_denies_are_told(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    few, many = (rows.assign(unconfirmed=(rows["sample"] < share * synthetic.N).astype(int)) for share in (0.1, 0.5))
    assert verdict(few, sentinel).sound
    assert any("a search in lower precision broke" in reason for reason in verdict(many, sentinel).reasons)


def first(rows, sentinel, count: int):
    """The first samples that are right when clean, and what the sentinel says of them."""
    right = sorted(set(rows.loc[rows["score_clean"] > 0, "sample"]))[:count]
    return rows[rows["sample"].isin(right)], sentinel[sentinel["sample"].isin(right)]


@pytest.mark.parametrize(("count", "status"), [(5, FEW), (21, FEW), (22, "sound"), (57, "sound")])
def test_sound_needs_enough_samples_to_have_met_a_fault(synthetic, count, status):
    rows, sentinel = first(synthetic.protocol("trained"), synthetic.sentinel("trained"), count)
    found = verdict(rows, sentinel)
    assert found.status == status
    assert str(found).startswith(DOUBTED) == (status != "sound")
    if status == FEW:
        assert str(found) == f"{FEW}: {found.reasons[0]}" and f"of {count} correct samples" in found.reasons[0]


def test_few_samples_do_not_excuse_what_is_suspicious(synthetic):
    rows, sentinel = first(synthetic.protocol("trained"), synthetic.sentinel("trained"), 5)
    assert verdict(rows, sentinel.assign(zero_gradient=True)).status == "suspicious"


def test_a_random_model_attacked_through_its_randomness_has_a_verdict_of_its_own(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained").assign(random=True)
    found = verdict(rows.assign(draws=32), sentinel)
    assert found.status == RANDOMISED and "judged by 32 draws" in str(found) and not found.sound
    unseen = verdict(rows.assign(draws=0), sentinel)
    assert unseen.status == "suspicious" and "no attack went through its randomness" in unseen.reasons[0]
    assert verdict(rows.assign(draws=32), sentinel.assign(nonfinite_gradient=True)).status == "suspicious"


def test_without_a_copy_to_ask_a_number_is_not_sound(synthetic):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    why = "no copy of the model answers (TypeError: one of a kind)"
    asked = verdict(rows.assign(fresh_copy_agrees=1.0, fresh_copy_note=""), sentinel)
    assert asked.sound and not any("memory" in note for note in asked.notes)
    unasked = rows.assign(fresh_copy_agrees=float("nan"), fresh_copy_note=why)
    found = verdict(unasked, sentinel)
    told = f"not examined for a memory of earlier images: {why}"
    assert (found.status, found.reasons) == (UNEXAMINED, (told,)) and told in found.notes
    assert str(found).startswith(DOUBTED) and verdict(unasked, sentinel.assign(zero_gradient=True)).status == "suspicious"
    half = verdict(rows.assign(fresh_copy_agrees=1.0, fresh_copy_note="no ascent led away from there"), sentinel)
    assert half.sound and any("no ascent led away" in note for note in half.notes)


def test_the_status_of_several_numbers_is_the_worst_one():
    assert worst_status([]) == "sound" and worst_status(["sound", RANDOMISED]) == RANDOMISED
    assert worst_status([RANDOMISED, FEW, "suspicious"]) == "suspicious" and worst_of(["sound", "invalid: x"]) == "invalid"


@pytest.mark.parametrize(("count", "asked"), [(1, False), (3, False), (4, True), (55, True), (56, False), (57, False)])
def test_a_larger_eps_is_asked_wherever_some_broke_and_some_are_left(synthetic, count, asked):
    rows, sentinel = synthetic.protocol("trained"), synthetic.sentinel("trained")
    right = sorted(set(rows.loc[rows["score_clean"] > 0, "sample"]))
    broken = sentinel["sample"].isin(right[:count]).astype(float)
    told = dict.fromkeys(("broken_margin", "broken_ce", "broken_2x", "broken_4x"), broken)
    reasons = [r for r in verdict(rows, sentinel.assign(**told)).reasons if r.startswith("a larger eps breaks no more")]
    assert bool(reasons) == asked
