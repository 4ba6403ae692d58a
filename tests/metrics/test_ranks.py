"""Rank rows of the tidy table, and where the leaderboard shows them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robench.metrics import comparisons
from robench.metrics.robust import worst_case
from robench.metrics.table import tidy
from robench.reports.cells import leaderboard_cells, tidy_cells
from robench.reports.leaderboard import leaderboard

THREAT = "linf(8/255)"


@pytest.fixture(scope="module")
def frames(synthetic):
    return synthetic.frames()


@pytest.fixture(scope="module")
def attacked(frames):
    """Attacks at one threat alone."""
    rows = frames["evasion"]
    return {"evasion": rows[rows["threat"] == THREAT], "sentinel": frames["sentinel"]}


@pytest.fixture(scope="module")
def table(frames):
    return tidy(frames)


def ranks(table: pd.DataFrame, scenario: str = "evasion", threat: str = THREAT) -> pd.DataFrame:
    rows = table[(table["metric"] == "rank") & (table["scenario"] == scenario) & (table["threat"] == threat)]
    return rows.set_index("model")


def test_sound_models_get_simultaneous_ranks_of_their_worst_case_and_suspicious_ones_none(frames, table):
    found, rows = ranks(table), frames["evasion"]
    assert list(found.index) == ["plain", "trained"] and set(found["attack"]) == {"worst"}
    mine = rows[(rows["threat"] == THREAT)]
    scores = [worst_case(mine[mine["model"] == m])["robust"].to_numpy() for m in found.index]
    expected = comparisons.rank_intervals(np.array(scores))
    assert [tuple(r) for r in found[["value", "ci_low", "ci_high", "n"]].to_numpy(float)] == [
        (e.value, e.low, e.high, e.n) for e in expected
    ]
    assert list(found["value"]) == [2, 1] and list(found["ci_low"]) == [2, 1]


def test_equal_models_share_all_ranks(frames, table):
    clean = ranks(table, "clean", "")
    assert list(clean.index) == ["plain", "trained"]
    assert (clean["value"] == 1).all() and (clean["ci_low"] == 1).all() and (clean["ci_high"] == 2).all()
    assert list(ranks(table, "corruption", "mean").index) == ["plain", "trained"]


def test_what_may_not_be_compared_is_left_out(attacked):
    rows = attacked["evasion"]
    fewer = attacked | {"evasion": rows[~((rows["model"] == "plain") & (rows["sample"] > 50))]}
    assert ranks(tidy(fewer)).empty
    weaker = attacked | {"evasion": rows[~((rows["model"] == "plain") & (rows["attack"] == "fgsm"))]}
    assert ranks(tidy(weaker)).empty
    assert ranks(tidy(attacked, limited=True)).empty
    shifted = rows["sample"].where(rows["model"] != "plain", rows["sample"] + 1)
    assert ranks(tidy(attacked | {"evasion": rows.assign(sample=shifted)})).empty


def test_a_transfer_from_a_model_itself_is_not_missed(attacked):
    rows = attacked["evasion"]
    extra = rows[(rows["model"] == "plain") & (rows["attack"] == "fgsm")].assign(attack="transfer(source='trained')")
    assert len(ranks(tidy(attacked | {"evasion": pd.concat([rows, extra], ignore_index=True)}))) == 2


def test_the_leaderboard_shows_intervals_of_exactly_the_ranked_models(table):
    board = leaderboard(table, threat=THREAT).set_index("model")
    assert board.loc["trained", ["rank", "rank_low", "rank_high"]].tolist() == ["1", "1", "1"]
    assert board.loc["masked", ["rank", "rank_low", "rank_high"]].tolist() == ["-", "", ""]
    assert list(leaderboard_cells(board.reset_index())["rank"]) == ["1", "2", "-"]
    by_clean = leaderboard(table, by="accuracy")
    assert sorted(leaderboard_cells(by_clean)["rank"]) == ["-", "1 (1-2)", "1 (1-2)"]
    assert (leaderboard(table, by="ece")["rank_low"] == "").all()


def test_another_company_has_no_rank_interval(table):
    other = table[table["model"] == "plain"].assign(model="newcomer", cell="feed")
    board = leaderboard([table, other[other["metric"] != "rank"]], threat=THREAT)
    assert (board["rank"] != "-").sum() == 3 and (board["rank_low"] == "").all()
    assert (leaderboard([table, table], threat=THREAT)["rank_low"] != "").sum() == 2


def test_ranks_are_whole_numbers_on_the_screen(table):
    cells = tidy_cells(table[table["metric"] == "rank"])
    assert "1 (1-2)" in set(cells["value"]) and not cells["value"].str.contains("%").any()
