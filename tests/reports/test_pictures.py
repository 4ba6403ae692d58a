"""Pictures: each is drawn for the data sets that have its numbers, and for no other."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.reports.pictures import PICTURES


@pytest.fixture(scope="module")
def table(synthetic) -> pd.DataFrame:
    return synthetic.table()


@pytest.mark.parametrize("name", PICTURES)
def test_a_data_set_without_the_numbers_has_no_picture(table, name):
    other = table.iloc[:1].assign(dataset="other", metric="none")
    assert PICTURES[name](pd.concat([table, other]), dataset="other") is None
    assert PICTURES[name](table.iloc[:0]) is None
