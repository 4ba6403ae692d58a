"""Cells written down: the digest and the columns follow from the description."""

from __future__ import annotations

import json

import pytest

from robench.api import plan_run
from robench.lineage import cell_of, lead, lineage, own_columns, planned


@pytest.mark.parametrize("suite", ["smoke", "full"])
def test_every_cell_of_a_suite_comes_back_from_its_description(suite):
    plan, _ = plan_run(suite, limit=50)
    for cell in plan.cells:
        again = cell_of(json.loads(json.dumps(lineage(cell))))
        assert again.digest == cell.digest and lead(again) == lead(cell) and planned(again) == planned(cell)


def test_columns_follow_from_the_scenario():
    plan, _ = plan_run("smoke", limit=20)
    cell = next(c for c in plan.cells if c.scenario.name == "evasion")
    assert own_columns(cell)["attack"] == cell.scenario.kwargs["attack"]
    assert own_columns(cell)["threat"].startswith(("linf(", "l2(", "l1("))
