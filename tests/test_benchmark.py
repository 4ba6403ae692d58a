"""The comparison with peers: the same images, the same points where both do the same, and honest columns."""

from __future__ import annotations

import pandas as pd
import pytest

from robench import benchmark
from robench.benchmark import Job, compare, opened, work
from robench.errors import ConfigError
from robench.sources import resolve_sources


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
