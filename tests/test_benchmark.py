"""The comparison with peers: the same images, the same points where both do the same, and honest columns."""

from __future__ import annotations

import pytest

from robench import benchmark
from robench.benchmark import Job, compare, opened, work


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
