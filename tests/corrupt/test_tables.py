"""The severity tables: shapes, order, and no torch on the way."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from robench.corrupt import TABLE
from robench.corrupt.tables import BENCHMARK, CIFAR, EXTRA, TABLES, level_of, table_for, table_of
from robench.errors import ConfigError
from robench.registry import Table


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_five_levels_that_get_harder(table: str) -> None:
    entries = Table("corruptions", TABLE)
    assert set(TABLES[table]) <= set(TABLE)
    for name, levels in TABLES[table].items():
        assert len(levels) == 5 and len({len(v) if isinstance(v, tuple) else 0 for v in levels}) == 1
        harder = entries[name].facts["harder"]
        if harder != "table" and not isinstance(levels[0], tuple):
            assert list(levels) == sorted(set(levels), reverse=harder == "down")


@pytest.mark.parametrize("table", ["cifar-v1", "tiny-v1", "imagenet-v1"])
def test_published_tables_have_all_nineteen(table: str) -> None:
    assert len(BENCHMARK) == 15 and len(EXTRA) == 4
    assert set(TABLES[table]) == {*BENCHMARK, *EXTRA, "jpeg", "rotation"}
    families = Counter(Table("corruptions", TABLE)[name].facts["family"] for name in BENCHMARK)
    assert families == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


def test_published_levels_as_in_the_code_of_the_authors() -> None:
    assert level_of("cifar-v1", "gaussian_noise", 3) == 0.08
    assert level_of(CIFAR, "jpeg_compression", 5) == 40
    assert level_of("imagenet-v1", "shot_noise", 5) == 3
    assert level_of("tiny-v1", "defocus_blur", 4) == (2.5, 0.01)
    assert level_of("imagenet-v1", "elastic_transform", 3) == pytest.approx(tuple(244 * p / 224 for p in (0.05, 0.01, 0.02)))
    assert len(np.arange(1, *level_of("cifar-v1", "zoom_blur", 1))) == len(np.arange(1, 1.06, 0.01))


def test_other_sizes_interpolate_and_say_so() -> None:
    assert [table_for(side) for side in (32, 64, 224)] == ["cifar-v1", "tiny-v1", "imagenet-v1"]
    assert table_for(48) == "interpolated(cifar-v1,tiny-v1,48)"
    assert table_for(28) == "nearest(cifar-v1,28)" and table_for(299) == "nearest(imagenet-v1,299)"
    share = math.log(48 / 32) / math.log(2)
    assert level_of(table_for(48), "gaussian_noise", 5) == pytest.approx(0.10 + share * 0.08)
    assert level_of(table_for(48), "motion_blur", 5) == pytest.approx((9 + share * 3, 2.5 + share * 0.5))
    assert level_of(table_for(48), "spatter", 4) == TABLES["tiny-v1"]["spatter"][3]
    assert level_of(table_for(40), "glass_blur", 4) == TABLES["cifar-v1"]["glass_blur"][3]
    assert table_of("nearest(cifar-v1,28)") == TABLES["cifar-v1"]


@pytest.mark.parametrize("name", ["interpolated(cifar-v1,imagenet-v1,48)", "nearest(cifar-v1,32)", "nearest(tiny-v1)"])
def test_a_made_up_interpolation_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a severity table must be a known one"):
        table_of(name)


@pytest.mark.parametrize("side", [33, 48, 96, 150, 223])
def test_between_two_tables_every_level_lies_between_theirs(side: int) -> None:
    for name, levels in table_of(table_for(side)).items():
        low, high = (TABLES[t][name] for t in table_for(side).partition("(")[2].split(",")[:2])
        for level, a, b in zip(levels, low, high, strict=True):
            parts = zip(*(v if isinstance(v, tuple) else (v,) for v in (level, a, b)), strict=True)
            assert all(min(p, q) - 1e-12 <= v <= max(p, q) + 1e-12 for v, p, q in parts)


def test_a_mapping_is_its_own_table_and_unknown_names_get_a_suggestion() -> None:
    assert table_of({"jpeg": (1, 2, 3, 4, 5)}) == {"jpeg": (1, 2, 3, 4, 5)}
    with pytest.raises(ConfigError, match=r"must be a known one, got 'digits'; did you mean 'digits-v2'\?"):
        table_of("digits")


def test_tables_import_no_torch() -> None:
    code = "import robench.corrupt.tables, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
