"""Which results may share a ranked column: the same samples, the same attacks, and one line for a model of several runs."""

from __future__ import annotations

import math
from itertools import permutations

import pandas as pd
import pytest

from robench.errors import ConfigError
from robench.metrics.table import COLUMNS, tidy
from robench.reports.leaderboard import SEVERAL, leaderboard, main_threats, named_apart, ranked_by
from robench.reports.text import render

THREAT = "linf(0.1)"
ATTACKS = ("fgsm", "pgd(steps=40)")


def row(model: str, value: float, **more: object) -> dict[str, object]:
    """One row of a tidy table."""
    empty = dict.fromkeys(COLUMNS, "")
    numbers = {"eps": math.nan, "ci_low": value - 0.05, "ci_high": value + 0.05, "n": 300, "n_clean_correct": 280}
    costs = {"n_unknown": 0, "seconds": 1.0, "forwards": 1, "backwards": 1}
    return {**empty, **numbers, **costs, "model": model, "dataset": "digits", "value": value, "status": "ok", **more}


def attacked(model: str, worst: float, attacks=ATTACKS, *, threat: str = THREAT, verdict: str = "sound", **more: object):
    """Rows of one model at one threat; the cells carry the run's name, so that runs can be told apart."""
    eps, run = float(threat.partition("(")[2].rstrip(")")), more.pop("run", "a")
    cells = {a: f"{run}:{a}:{threat}" for a in attacks}
    same = {"scenario": "evasion", "metric": "robust_accuracy", "threat": threat, "eps": eps, **more}
    rows = [row(model, worst + 0.1, attack=a, cell=c, **same) for a, c in cells.items()]
    return [*rows, row(model, worst, attack="worst", cell="+".join(cells.values()), validity=verdict, **same)]


def clean(model: str, value: float, **more: object):
    return [row(model, value, scenario="clean", metric="accuracy", **more)]


def table(*parts) -> pd.DataFrame:
    return pd.DataFrame([r for part in parts for r in part], columns=list(COLUMNS)).astype({"n": "Int64"})


def lines(board: pd.DataFrame) -> dict[str, tuple[str, str]]:
    return {m: (r, v) for m, r, v in zip(board["model"], board["rank"], board["validity"], strict=True)}


def test_identical_results_of_several_runs_count_once():
    one = table(attacked("a", 0.5), attacked("b", 0.4), clean("a", 0.9))
    again = table(attacked("a", 0.5, run="r", seconds=7.0), clean("a", 0.9, cell="other"))
    pd.testing.assert_frame_equal(leaderboard([one, again]), leaderboard(one))
    pd.testing.assert_frame_equal(leaderboard([again, one]), leaderboard(one))


def test_where_runs_differ_all_of_the_least_favourable_run_is_shown_and_said_whatever_their_order():
    first = table(attacked("a", 0.5), attacked("b", 0.4), clean("a", 0.9))
    second = table(attacked("a", 0.3, run="r"), clean("a", 0.95))
    boards = [leaderboard(order) for order in permutations([first, second])]
    pd.testing.assert_frame_equal(boards[0], boards[1])
    found = boards[0].set_index("model")
    assert found.loc["a", f"robust@{THREAT}"] == 0.3 and found.loc["a", f"robust@{THREAT}_low"] == 0.25
    assert found.loc["a", "clean"] == 0.95, "no line mixes runs"
    assert lines(boards[0]) == {"b": ("1", "sound"), "a": ("2", f"sound; {SEVERAL}")}


def test_a_column_that_the_shown_run_did_not_measure_is_empty():
    first = table(attacked("a", 0.5), clean("a", 0.9))
    second = table(attacked("a", 0.3, run="r", n=200))
    for order in permutations([first, second]):
        board = leaderboard(order).set_index("model")
        assert board.loc["a", f"robust@{THREAT}"] == 0.3 and board.loc["a", "n"] == 200
        assert "clean" not in board or math.isnan(board.loc["a", "clean"])


def test_models_of_one_name_that_differ_are_kept_apart_and_equal_ones_are_one():
    first, second = table(attacked("a", 0.5), attacked("b", 0.4)), table(attacked("a", 0.3, run="r"), attacked("b", 0.4))
    digests = {"v1": {"a": "x", "b": "z"}, "v2": {"a": "y", "b": "z"}}
    board = leaderboard(named_apart({"v1": first, "v2": second}, digests)).set_index("model")
    assert set(board.index) == {"a [v1]", "a [v2]", "b"}
    assert board.loc["a [v1]", f"robust@{THREAT}"] == 0.5 and board.loc["a [v2]", f"robust@{THREAT}"] == 0.3
    assert board["rank"].to_dict() == {"a [v1]": "1", "b": "2", "a [v2]": "3"}
    same = leaderboard(named_apart({"v1": first, "v2": first}, {"v1": {"a": "x"}, "v2": {"a": "x"}}))
    assert list(same["model"]) == ["a", "b"] and list(same["validity"]) == ["sound", "sound"]


def test_a_transfer_from_a_model_that_was_named_apart_is_not_missed():
    own = "transfer(source='a')"
    parts = {
        "v1": table(attacked("a", 0.5, ("fgsm",)), attacked("b", 0.4, ("fgsm", own))),
        "v2": table(attacked("a", 0.3, ("fgsm",), run="r")),
    }
    board = leaderboard(named_apart(parts, {"v1": {"a": "x"}, "v2": {"a": "y"}}))
    assert list(board["rank"]) == ["1", "2", "3"]


def test_a_metric_without_a_better_direction_ranks_nobody():
    with pytest.raises(ConfigError, match="ranking metric"):
        leaderboard(table(attacked("a", 0.5)), by="temperature")


def test_other_metrics_of_the_table_rank_and_are_shown():
    rows = [row(m, v, scenario="clean", metric="brier") for m, v in (("a", 0.2), ("b", 0.1))]
    board = leaderboard(table(rows), by="brier")
    assert list(board["model"]) == ["b", "a"] and list(board["rank"]) == ["1", "2"] and list(board["brier"]) == [0.1, 0.2]


def test_a_metric_where_lower_is_better_keeps_its_highest_value():
    ece = {"scenario": "clean", "metric": "ece"}
    runs = [table(attacked("a", 0.5), [row("a", value, cell=cell, **ece)]) for value, cell in ((0.02, "x"), (0.07, "y"))]
    for order in permutations(runs):
        assert leaderboard(order, by="ece")["ece"].tolist() == [0.07]


def test_suspicious_in_one_run_is_suspicious_even_where_the_other_run_is_lower():
    first, second = table(attacked("a", 0.3)), table(attacked("a", 0.6, run="r", verdict="suspicious: zero gradients"))
    for order in permutations([first, second, table(attacked("b", 0.1))]):
        found = lines(leaderboard(order))
        assert found["a"] == ("-", f"suspicious: zero gradients; {SEVERAL}") and found["b"] == ("1", "sound")


def test_limited_in_one_run_is_limited():
    first, second = table(attacked("a", 0.3)), table(attacked("a", 0.6, run="r", status="limited", n=10))
    for order in permutations([first, second]):
        board = leaderboard(order)
        assert board["rank"].tolist() == ["-"] and board["validity"][0].startswith("limited")


def test_the_lower_value_is_shown_even_when_it_comes_from_fewer_samples():
    first, second = table(attacked("a", 0.5), attacked("b", 0.4)), table(attacked("a", 0.3, run="r", n=200))
    for order in permutations([first, second]):
        found = lines(leaderboard(order))
        assert found["b"] == ("1", "sound")
        assert found["a"][0] == "-" and found["a"][1].endswith("measured on fewer samples")


def test_models_that_were_attacked_less_are_not_ranked_and_say_by_what():
    weak = table(attacked("weak", 0.9, ("fgsm",)), attacked("a", 0.5), attacked("b", 0.4))
    found = lines(leaderboard(weak))
    assert found["weak"] == ("-", "sound; not measured against pgd(steps=40)")
    assert found["a"] == ("1", "sound") and found["b"] == ("2", "sound")


def test_many_missing_attacks_are_told_in_short():
    found = lines(leaderboard(table(attacked("weak", 0.9, ("fgsm",)), attacked("a", 0.5, ("fgsm", "p", "q", "r", "s")))))
    assert found["weak"][1] == "sound; not measured against p, q and 2 more"


def test_nothing_is_ranked_where_every_model_lacks_an_attack():
    board = leaderboard(table(attacked("a", 0.5, ("fgsm",)), attacked("b", 0.4, ("noise",))))
    assert board["rank"].tolist() == ["-", "-"]


def test_a_transfer_from_the_model_itself_is_not_missed():
    both = [f"transfer(source='{m}')" for m in "ab"]
    rows = table(attacked("a", 0.5, (both[1],)), attacked("b", 0.4, (both[0],)), attacked("c", 0.3, tuple(both)))
    assert [r for r, _ in lines(leaderboard(rows)).values()] == ["1", "2", "3"]
    lacking = lines(leaderboard(table(attacked("a", 0.5, (both[0],)), attacked("c", 0.3, tuple(both)))))
    assert lacking["a"] == ("-", "sound; not measured against transfer(source='b')")


def test_attacks_on_models_that_are_not_ranked_anyway_take_no_rank_from_others():
    more = (*ATTACKS, "square")
    rows = table(
        attacked("few", 0.9, more, n=50),
        attacked("trap", 0.9, more, verdict="suspicious: zero gradients"),
        attacked("a", 0.5),
    )
    assert lines(leaderboard(rows))["a"] == ("1", "sound")


def test_data_sets_are_compared_each_within_itself():
    rows = table(attacked("a", 0.5, ("fgsm",)), attacked("a", 0.5, dataset="letters", n=50))
    assert leaderboard(rows)["rank"].tolist() == ["1", "1"]


def test_the_attacks_of_another_run_do_not_count_for_the_run_that_is_shown():
    strong, weak = table(attacked("a", 0.5), attacked("b", 0.45)), table(attacked("a", 0.4, ("fgsm",), run="r"))
    for order in permutations([strong, weak]):
        found = lines(leaderboard(order))
        assert found["a"] == ("-", f"sound; {SEVERAL}; not measured against pgd(steps=40)") and found["b"] == ("1", "sound")


def test_of_equal_numbers_the_one_over_more_attacks_stands_for_the_model():
    strong, weak = table(attacked("a", 0.4), attacked("b", 0.3)), table(attacked("a", 0.4, ("fgsm",), run="r"))
    for order in permutations([strong, weak]):
        assert lines(leaderboard(order)) == {"a": ("1", "sound"), "b": ("2", "sound")}


def test_attack_sets_matter_at_the_ranking_threat_only_and_not_for_other_metrics():
    other = "l2(1)"
    rows = table(
        attacked("a", 0.5), attacked("a", 0.5, threat=other), clean("a", 0.8),
        attacked("b", 0.4), attacked("b", 0.4, ("fgsm",), threat=other), clean("b", 0.9),
    )  # fmt: skip
    assert lines(leaderboard(rows, threat=THREAT))["b"] == ("2", "sound")
    assert lines(leaderboard(rows, threat=other))["b"][0] == "-"
    assert [r for r, _ in lines(leaderboard(rows, by="accuracy")).values()] == ["1", "2"]
    assert lines(leaderboard(rows, by="accuracy"))["b"] == ("1", "sound")


def test_a_model_whose_single_attacks_are_unknown_is_not_ranked_beside_others():
    alone = attacked("b", 0.9)[-1:]
    assert lines(leaderboard(table(attacked("a", 0.5), alone)))["b"] == (
        "-",
        "sound; not measured against fgsm, pgd(steps=40)",
    )


def curve(model: str, grid: tuple[float, ...], area: float):
    parts = [attacked(model, 0.5, threat=f"linf({eps})") for eps in grid]
    cells = "+".join(r["cell"] for part in parts for r in part)
    whole = row(model, area, scenario="evasion", metric="security_curve_area", attack="curve", threat="linf", cell=cells)
    return [*(r for part in parts for r in part), {**whole, "validity": "sound"}]


def test_areas_under_curves_over_other_eps_share_no_column_and_rank_beside_main_threats():
    rows = table(curve("a", (0.1, 0.2), 0.3), curve("b", (0.1, 0.2), 0.4), curve("c", (0.1,), 0.9))
    found = lines(leaderboard(rows, by="security_curve_area", threats=[THREAT]))
    assert {m: r for m, (r, _) in found.items()} == {"b": "1", "a": "2", "c": "-"}
    assert found["c"][1] == "sound; not measured against fgsm at linf(0.2), pgd(steps=40) at linf(0.2)"


def corrupted(model: str, mean: float, names: tuple[str, ...], first: float):
    same = {"scenario": "corruption", "metric": "corrupted_accuracy"}
    single = [row(model, first, threat=name, eps=1.0, **same) for name in names]
    return [*single, row(model, first, threat="mean", eps=1.0, **same), row(model, mean, threat="mean", **same)]


def test_corrupted_accuracy_ranks_by_the_mean_over_all_severities_of_the_same_corruptions():
    rows = table(corrupted("a", 0.7, ("fog", "blur"), 0.8), corrupted("b", 0.6, ("fog", "blur"), 0.9))
    rows = pd.concat([rows, table(corrupted("c", 0.99, ("fog",), 0.99))], ignore_index=True)
    found = lines(leaderboard(rows, by="corrupted_accuracy"))
    assert {m: r for m, (r, _) in found.items()} == {"a": "1", "b": "2", "c": "-"}
    assert found["c"][1] == "not measured against blur 1"


def test_an_attacked_model_without_the_ranking_number_says_so():
    rows = table(attacked("a", 0.5), attacked("b", 0.4), attacked("other", 0.9, threat="l2(1)"), clean("plain", 0.9))
    found = lines(leaderboard(rows))
    assert found["other"] == ("-", f"sound; not measured at {THREAT}")
    assert found["plain"] == ("-", "")


def test_the_number_of_samples_is_in_every_format():
    board = leaderboard(table(attacked("a", 0.5)))
    assert board["n"].tolist() == [300]
    for form in ("table", "csv", "md", "json"):
        assert "300" in render(board, format=form)


@pytest.mark.parametrize("by", ["robust_accuracy", "accuracy", "security_curve_area"])
def test_what_ranks_is_told(by):
    rows = table(curve("a", (0.1, 0.2), 0.3))
    expected = {"robust_accuracy": "linf(0.2)", "accuracy": "", "security_curve_area": "linf"}
    assert ranked_by(rows, by=by, threats=["l2(9)", "linf(0.2)"]) == (by, expected[by])


def test_a_model_without_the_ranking_number_shows_the_images_behind_its_others():
    """They are no measure for the ranked models, of which those on fewer images than others are not ranked."""
    first = table(attacked("a", 0.5, n=100), clean("a", 0.9, n=100))
    second = table(attacked("b", 0.4, threat="linf(0.2)", n=300), clean("b", 0.9, n=300))
    for order in ([first, second], [second, first]):
        board = leaderboard(order, threats=[THREAT, "linf(0.2)"]).set_index("model")
        assert dict(board["n"]) == {"a": 100, "b": 300} and dict(board["rank"]) == {"a": "1", "b": "-"}
    nothing = leaderboard([first, table([row("c", math.nan, scenario="clean", metric="failed", status="failed", n=None)])])
    assert nothing.set_index("model").loc["c", "n"] == 0


def test_threats_of_one_suite_keep_its_order_and_of_several_do_not_depend_on_the_order_of_runs():
    one, other = {"suite": {"threats": ["l2(1)", "linf(0.1)"]}}, {"suite": {"threats": ["linf(0.2)", "l2(1)"]}}
    assert main_threats(one) == main_threats(one, one) == ["l2(1)", "linf(0.1)"]
    assert main_threats(one, other) == main_threats(other, one) == ["l2(1)", "linf(0.2)", "linf(0.1)"]
    assert main_threats(None) == main_threats({}) == main_threats() == []


def test_a_limited_run_does_not_hide_that_a_number_is_doubted(synthetic):
    board = leaderboard(tidy(synthetic.frames(), limited=True)).set_index("model")
    masked = board.loc["masked", "validity"]
    assert masked.startswith("suspicious: zero gradients") and masked.endswith("limited: not all samples were asked for")
    assert board.loc["trained", "validity"] == "limited: not all samples were asked for"
    assert set(board["rank"]) == {"-"}
