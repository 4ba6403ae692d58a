"""The severity tables: shapes, order, and no torch on the way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from robench.corrupt import TABLE
from robench.corrupt.tables import CIFAR, TABLES, level_of, table_of
from robench.errors import ConfigError
from robench.registry import Table


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_five_levels_that_get_harder(table: str) -> None:
    entries = Table("corruptions", TABLE)
    assert set(TABLES[table]) <= set(TABLE) and len(TABLES[table]) == 8
    for name, levels in TABLES[table].items():
        order = sorted(set(levels), reverse=entries[name].facts["harder"] == "down")
        assert list(levels) == order and len(levels) == 5


def test_cifar_levels_are_the_published_ones() -> None:
    assert level_of("cifar-v1", "gaussian_noise", 3) == 0.08
    assert level_of(CIFAR, "jpeg", 5) == 40
    assert level_of("imagenet-v1", "shot_noise", 5) == 3


def test_a_mapping_is_its_own_table_and_unknown_names_get_a_suggestion() -> None:
    assert table_of({"jpeg": (1, 2, 3, 4, 5)}) == {"jpeg": (1, 2, 3, 4, 5)}
    with pytest.raises(ConfigError, match=r"must be a known one, got 'digits'; did you mean 'digits-v1'\?"):
        table_of("digits")


def test_tables_import_no_torch() -> None:
    code = "import robench.corrupt.tables, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
