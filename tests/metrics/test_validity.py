from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics.validity import access_of, verdict


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
]


@pytest.mark.parametrize(("planted", "reason"), SENTINEL)
def test_each_planted_sentinel_sign_is_found(rows, planted, reason):
    found = verdict(rows[0], rows[1].assign(**planted))
    assert len(found.reasons) == 1 and reason in found.reasons[0]


EVASION = [
    ({"nonfinite_gradients": 1}, "non-finite gradients"),
    ({"zero_gradients": 3}, "zero gradients in 7.5 % of their passes"),
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


def _planted(evasion: pd.DataFrame, attack: str, samples: int) -> pd.DataFrame:
    """An attack that breaks ``samples`` clean-correct samples which nothing else broke."""
    base = evasion[(evasion["attack"] == "noise") & (evasion["threat"] == "linf(8/255)")].assign(attack=attack)
    same = evasion[evasion["threat"] == "linf(8/255)"]
    safe = same.groupby("sample")["score_adv"].min()
    chosen = list(safe.index[safe > 0])[:samples]
    base.loc[:, "score_adv"] = base["score_clean"]
    base.loc[base["sample"].isin(chosen), "score_adv"] = 0.0
    return pd.concat([evasion, base], ignore_index=True)


@pytest.mark.parametrize("attack", ["transfer", "transfer_pgd(steps=10)", "noise(draws=9)", "gaussian_noise"])
def test_what_sees_less_must_not_break_other_samples(rows, attack):
    found = verdict(_planted(rows[0], attack, 2), rows[1])
    assert found.reasons == (f"{attack} breaks 2 of 57 correct samples that gradient attacks did not",)
    assert verdict(_planted(rows[0], attack, 1), rows[1]).sound


@pytest.mark.parametrize("attack", ["square(queries=100)", "art:HopSkipJump", "art:ProjectedGradientDescent"])
def test_black_box_and_art_must_not_break_more(rows, attack):
    assert verdict(_planted(rows[0], attack, 2), rows[1]).sound
    many = rows[0].assign(score_adv=rows[0]["score_clean"])
    found = verdict(_planted(many, attack, 20), rows[1])
    assert found.reasons == (f"{attack} breaks 20 of 57 correct samples more than the gradient attacks",)


def test_without_gradient_attack_or_sentinel_nothing_is_sound(rows):
    evasion, sentinel = rows
    assert verdict(evasion[evasion["attack"] == "noise"], sentinel).reasons == ("no gradient attack was run",)
    assert "no sentinel rows" in verdict(evasion, None).reasons[0]
    assert "no sentinel rows" in verdict(evasion, sentinel.iloc[:0]).reasons[0]


def test_accuracy_must_not_rise_with_eps(rows):
    evasion, sentinel = rows
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


def test_access_is_told_by_name_and_can_be_given(rows):
    names = {"pgd(steps=3)": "white", "transfer_pgd": "transfer", "art:X": "art", "square": "score", "noise": "noise"}
    assert {n: access_of(n) for n in names} == names
    assert not verdict(_planted(rows[0], "mine", 2), rows[1], access={"mine": "transfer"}).sound
    assert verdict(_planted(rows[0], "mine", 2), rows[1]).sound
