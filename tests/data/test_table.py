"""The table is read without torch, and every entry keeps the loader's contract."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from robench.data import PREFIXES, TABLE
from robench.registry import Entry

READ = """
import sys
from robench.data import PREFIXES, TABLE
from robench.registry import Table
table = Table("data", TABLE, PREFIXES)
found = {name: (table[name].facts, table[name].parameters) for name in [*TABLE, "folder:x", "npz:x.npz"]}
raise SystemExit(int("torch" in sys.modules or not all(f["summary"] and p["split"] == "test" for f, p in found.values())))
"""


def test_names_defaults_and_facts_need_no_torch() -> None:
    assert subprocess.run([sys.executable, "-c", READ], check=False).returncode == 0


@pytest.mark.parametrize("name", [*TABLE, *PREFIXES])
def test_loaders_take_split_by_keyword(name: str) -> None:
    loader = Entry(name, {**TABLE, **PREFIXES}[name]).load()
    kinds = {p.name: p.kind for p in inspect.signature(loader).parameters.values()}
    positional = [n for n, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == (["path"] if name in PREFIXES else [])
    assert kinds["split"] is inspect.Parameter.KEYWORD_ONLY


def test_values_are_reached_through_the_package() -> None:
    import robench.data

    assert robench.data.Dataset.__module__ == "robench.data.dataset"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = robench.data.nothing
