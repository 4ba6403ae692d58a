"""The comparison with peers: the same images, the same points where both do the same, and honest columns."""

from __future__ import annotations

import json
from dataclasses import astuple

import pandas as pd
import pytest

from robench import benchmark
from robench.benchmark import Job, compare, opened, work
from robench.errors import ConfigError
from robench.ops.norms import distance
from robench.sources import resolve_sources
from robench.spec import ThreatModel, canonical, sha256


@pytest.fixture(scope="module")
def table():
    pytest.importorskip("foolbox")
    tools = ("robench-pgd", "foolbox-pgd")
    return compare([Job(t, "digits-standard", "digits", "linf(0.05)", 24, 1) for t in tools], reference="foolbox-pgd")


@pytest.mark.slow
def test_two_libraries_pgds_break_the_same_images_and_keep_the_ball(table):
    rows = table.set_index("tool")
    assert (table["largest"] <= 0.05 + 1e-6).all() and (table["largest"] > 0.04).all()
    assert abs(rows.loc["robench-pgd", "robust"] - rows.loc["foolbox-pgd", "robust"]) <= 1 / 24
    assert 0 < rows.loc["foolbox-pgd", "robust"] < 1


@pytest.mark.slow
def test_what_only_one_breaks_and_the_ratio_are_against_the_reference(table):
    rows = table.set_index("tool")
    assert rows.loc["foolbox-pgd", ["only_this", "only_reference"]].tolist() == [0, 0]
    assert rows.loc["foolbox-pgd", "ratio"] == 1
    expected = rows.loc["foolbox-pgd", "seconds"] / rows.loc["robench-pgd", "seconds"]
    assert rows.loc["robench-pgd", "ratio"] == pytest.approx(expected)


@pytest.mark.slow
def test_passes_are_counted_by_the_model_itself(table):
    rows = table.set_index("tool")
    assert rows.loc["foolbox-pgd", "backwards"] == benchmark.STEPS
    assert rows.loc["foolbox-pgd", "forwards"] >= benchmark.STEPS


def test_a_protocol_is_measured_like_a_peer():
    found = work(Job("robench-standard", "digits-mlp", "digits", "linf(0.2)", 12, 1))
    assert len(found["right"]) == 12 and not any(found["right"])
    assert opened(Job("robench-pgd", "digits-mlp", "digits", "linf(0.2)", 12, 1))[1].shape == (12, 1, 32, 32)


@pytest.mark.parametrize("threat", ["l1(2)", "l2(0.5)", "linf(0.05)"])
def test_images_outside_the_ball_are_no_successes(monkeypatch, capsys, threat):
    """A peer that leaves the ball breaks everything; within the ball the same direction breaks nothing."""
    job = Job("far", "digits-pgd-at", "digits", threat, 6, 1)
    model, x, y = opened(job)
    kept = model(x).argmax(1) == y

    monkeypatch.setitem(benchmark.TOOLS, "far", lambda model, x, *told: 1 - x)
    found, parsed = work(job), ThreatModel.parse(threat)
    assert (model(1 - x).argmax(1) != y).all()
    assert found["largest"] == float(distance(x, 1 - x, parsed.norm).max()) > parsed.eps
    assert found["outside"] == 6 and found["right"] == kept.tolist()
    assert f"6 of 6 images of far lay outside {parsed}" in capsys.readouterr().err


def test_what_is_reused_from_a_version_that_did_not_look_says_so(tmp_path):
    job = Job("pyautoattack", "digits-mlp", "digits", "l1(2)", 2, 1, store=str(tmp_path))
    place = tmp_path / "results" / f"{sha256(canonical(list(astuple(job)[:-1])))}.json"
    place.parent.mkdir()
    place.write_text(json.dumps({"right": [True, False], "by": ["", "x"], "seconds": 1.0, "largest": 1.0}))
    table = compare([job], reuse=True)
    assert table["outside"].isna().all() and table["reused"].all()


def test_a_grid_has_nets_trained_and_attacked_in_every_norm():
    models, threats = benchmark.grid("digits")
    assert sorted(models.values()) == ["l2", "linf", "none"]
    assert len(threats) == 9 and {t.partition("(")[0] for t in threats} == {"linf", "l2", "l1"}
    assert all(resolve_sources("digits", [model])[0].models for model in models)
    with pytest.raises(ConfigError, match="folder"):
        benchmark.grid("folder:photos")


def test_a_grid_is_pooled_over_radii():
    told = {"data": "d", "n": 10, "tool": "robench-standard", "model": "a"}
    rows = [
        {**told, "threat": "l2(1)", "only_this": 2, "only_reference": 0, "ratio": 4.0},
        {**told, "threat": "l2(2)", "only_this": 0, "only_reference": 1, "ratio": 1.0},
        {**told, "threat": "l1(2)", "only_this": 0, "only_reference": 0, "ratio": 3.0},
        {**told, "threat": "l1(2)", "only_this": 0, "only_reference": 0, "ratio": 1.0, "tool": "pyautoattack"},
    ]
    found = benchmark.pooled(pd.DataFrame(rows), {"a": "linf"}).set_index("attacked in")
    assert found.loc["l2", ["only_this", "only_reference", "worst_row"]].tolist() == [2, 1, 1]
    assert found.loc["l2", "ratio"] == pytest.approx(2) and found.loc["l2", "lowest"] == 1
    assert found.loc["l1", "rows"] == 1
