from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robench.errors import ConfigError
from robench.files import write_atomically
from robench.metrics.table import tidy
from robench.registry import Table
from robench.reports import TABLE
from robench.reports.cells import interval
from robench.reports.curves import image, security_curve, spread
from robench.reports.leaderboard import leaderboard, score
from robench.reports.page import flat, page
from robench.reports.scarcity import scarcity_curve
from robench.reports.text import render
from robench.reports.write import write_reports


@pytest.fixture(scope="module")
def table(synthetic):
    return synthetic.table()


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_report_can_be_loaded_and_says_what_it_is(name):
    entry = Table("reports", TABLE)[name]
    assert callable(entry.load()) and entry.facts["summary"]


def test_suspicious_models_stand_last_without_a_rank_even_when_they_are_best(table):
    best = (table["model"] == "masked") & (table["metric"] == "robust_accuracy")
    board = leaderboard(table.assign(value=table["value"].mask(best, 0.99)))
    assert list(zip(board["model"], board["rank"], strict=True)) == [("trained", "1"), ("plain", "2"), ("masked", "-")]
    assert board["validity"].iloc[-1].startswith("suspicious: zero gradients")


def test_the_leaderboard_shows_intervals_and_ranks_by_what_is_asked(table):
    board = leaderboard(table, by="ece", threat=None).set_index("model")
    assert board.loc["trained", "robust@linf(4/255)"] == 0.75
    assert board.loc["trained", "robust@linf(4/255)_low"] < 0.75 < board.loc["trained", "robust@linf(4/255)_high"]
    assert list(board["rank"]) == ["1", "1", "-"]
    assert list(leaderboard(table, threat="linf(2/255)")["rank"]) == ["1", "2", "-"]
    assert list(leaderboard(table, by="security_curve_area")["rank"]) == ["1", "2", "-"]


def test_unknown_names_are_errors_with_a_remedy(table):
    with pytest.raises(ConfigError, match="did you mean 'robust_accuracy'"):
        leaderboard(table, by="robust_acuracy")
    with pytest.raises(ConfigError, match="one that was measured"):
        leaderboard(table, threat="l2(9)")
    with pytest.raises(ConfigError, match="the format must be one of"):
        render(table, format="xls")


def test_limited_runs_and_other_samples_are_not_ranked(synthetic, table):
    assert set(leaderboard(synthetic.table(limited=True))["rank"]) == {"-"}
    fewer = (table["model"] == "plain") & (table["metric"] == "robust_accuracy")
    board = leaderboard(table.assign(n=table["n"].mask(fewer, 10))).set_index("model")
    assert board.loc["plain", "rank"] == "-" and "fewer samples" in board.loc["plain", "validity"]


def test_a_single_score_is_made_on_request_only_and_names_its_weights(table):
    assert not [c for c in leaderboard(table) if c.startswith("score")]
    board = leaderboard(table, weights={"clean": 1, "robust@linf(8/255)": 3}).set_index("model")
    column = "score (1*clean + 3*robust@linf(8/255))"
    assert board.loc["trained", column] == pytest.approx((0.95 + 3 * 0.5) / 4)
    assert pd.isna(board.loc["masked", column])
    with pytest.raises(ConfigError, match="a weight must be of a leaderboard column"):
        score(board, {"nothing": 1})


def test_tables_may_be_several(table):
    halves = [table[table["model"] == "plain"], table[table["model"] != "plain"]]
    pd.testing.assert_frame_equal(leaderboard(halves), leaderboard(table))


def test_text_formats_keep_full_precision_or_round_for_the_eye(table):
    again = pd.read_csv(io.StringIO(render(table, format="csv")))
    np.testing.assert_array_equal(again["value"], table["value"])
    assert len(json.loads(render(table, format="json"))) == len(table)
    assert render(table, format="md").startswith("| model")
    screen = render(leaderboard(table), width=300)
    assert "50.0 [37.7, 62.3]" in screen and "masked: suspicious: zero gradients on 25.0 %" in screen
    assert interval(0.5, float("nan"), float("nan")) == "50.0"


def test_the_security_curve_starts_clean_and_marks_suspicious_models(table):
    axes = security_curve(table).axes[0]
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles == ["--", "-", "-"]
    assert [t.get_text() for t in axes.get_legend().texts] == ["masked (suspicious)", "plain", "trained"]
    assert list(axes.lines[2].get_xdata()) == pytest.approx([0, 2, 4, 8])
    assert list(axes.lines[2].get_ydata()) == pytest.approx([0.95, 53 / 60, 0.75, 0.5])


def test_the_security_curve_says_where_a_status_holds_and_leaves_out_what_has_no_result(table):
    worst = (table["model"] == "plain") & (table["attack"] == "worst")
    far = worst & (table["threat"] == "linf(8/255)")
    mixed = table.assign(validity=table["validity"].mask(worst, "suspicious: x").mask(far, "invalid: y"))
    assert "plain (invalid at linf(8/255))" in [line.get_label() for line in security_curve(mixed).axes[0].lines]
    missing = {name: table[name].mask(far, np.nan) for name in ("value", "ci_low", "ci_high")}
    waiting = table.assign(status=table["status"].mask(far, "pending"), **missing)
    lines = {line.get_label(): line for line in security_curve(waiting).axes[0].lines}
    assert len(lines["plain"].get_xdata()) == len(lines["trained"].get_xdata()) - 1
    assert np.isfinite(lines["plain"].get_ydata()).all()
    assert security_curve(table.assign(status="pending")) is None and "nan" not in render(waiting)


def test_pictures_are_the_same_bytes_twice_and_none_without_data(table):
    for kind in ("png", "svg"):
        assert image(security_curve(table), kind) == image(security_curve(table), kind)
    assert security_curve(table[table["scenario"] == "clean"]) is None
    assert scarcity_curve(tidy({})) is None


def test_colours_follow_the_model_through_all_pictures(table):
    security, scarce = security_curve(table).axes[0], scarcity_curve(table).axes[0]
    assert scarce.lines[0].get_color() == security.lines[1].get_color()


def test_labels_are_moved_apart_and_stay_inside():
    placed = spread([0.5, 0.5, 1.0, 0.99], gap=0.1)
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert max(placed) <= 1.0 and placed[3] < placed[2]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_flags_in_red(table):
    text = page(table, header={"versions": {"robench": "0.1.0"}, "seed": 3})
    parser = _Page()
    parser.feed(text)
    assert parser.open == [] and len(parser.sources) == 4
    assert all(s.startswith("data:image/png;base64,") for s in parser.sources)
    assert Image.open(io.BytesIO(base64.b64decode(parser.sources[0].partition(",")[2]))).size[0] > 500
    assert re.search(r'<p class="flag">.*Unreliable results: masked', text)
    assert re.search(r'<div class="flag">.*masked, linf\(2/255\): suspicious</strong>\s*<ul><li>zero gradients', text)
    assert "<dt>versions.robench</dt><dd>0.1.0</dd>" in text
    assert "50.0 [37.7, 62.3]" in text


def test_names_are_escaped(table):
    text = page(table.assign(model=table["model"].replace("plain", "<script>x</script>")))
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_header_is_flattened():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": "1", "a.c.d": "2", "e": "3"}


@pytest.mark.parametrize("scenarios", [("clean", "evasion", "sentinel"), pytest.param((), marks=pytest.mark.slow)])
def test_all_files_are_written_and_nothing_is_left_over(synthetic, tmp_path, scenarios):
    """With these scenarios, or with all."""
    frames = {name: frame for name, frame in synthetic.frames().items() if not scenarios or name in scenarios}
    paths, table = write_reports(frames, tmp_path / "out", {"seed": 0}), tidy(frames)
    names = {p.name for p in paths}
    assert names == {p.name for p in (tmp_path / "out").iterdir()}
    assert {"table.csv", "table.parquet", "table.md", "leaderboard.csv", "leaderboard.md", "report.html"} <= names
    assert {"security_curve.png", "security_curve.svg"} <= names
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "table.parquet"), table)
    first = {p.name: p.read_bytes() for p in paths}
    again = write_reports(table, tmp_path / "out", {"seed": 0})
    assert {p.name: p.read_bytes() for p in again} == first


def test_an_empty_table_still_makes_a_page(tmp_path):
    assert "Leaderboard" in page(tidy({}))
    assert write_reports({}, tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "a"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
