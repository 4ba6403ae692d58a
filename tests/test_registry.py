"""Tables of names: read from the source, never imported."""

from __future__ import annotations

import inspect

import pytest

from robench.catalog import TABLES
from robench.errors import ConfigError
from robench.registry import Table
from robench.spec import Ref

ENTRIES = [pytest.param(t, n, id=f"{k}:{n}") for k, t in TABLES.items() for n in t if t[n].origin == "robench"]
ATTACKS = TABLES["attacks"]


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_what_is_read_equals_what_is_imported(table, name):
    entry = table[name]
    function = entry.load()
    assert callable(function)
    declared = getattr(function, "facts", {"version": 1})
    assert {k: v for k, v in entry.facts.items() if k != "summary"} == declared
    assert entry.facts["summary"]
    keyword = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert entry.parameters == {p.name: p.default for p in keyword if p.default is not p.empty}


def test_resolve_fills_in_defaults_and_keeps_what_was_said():
    resolved = ATTACKS.resolve("pgd(steps=3)")
    assert resolved.kwargs == {**ATTACKS["pgd"].parameters, "steps": 3}
    assert ATTACKS.resolve(resolved) == resolved
    assert ATTACKS.resolve(Ref.of("pgd", steps=3)) == resolved


@pytest.mark.parametrize(("text", "said"), [("pgdd", "did you mean 'pgd'"), ("pgd(step=3)", "did you mean 'steps'")])
def test_unknown_names_get_a_suggestion(text, said):
    with pytest.raises(ConfigError, match=said):
        ATTACKS.resolve(text)


@pytest.mark.parametrize("target", ["robench.nowhere:f", "robench.spec:nothing"])
def test_a_wrong_target_is_a_clear_error(target):
    with pytest.raises(ConfigError, match="must be"):
        _ = Table("toys", {"toy": target})["toy"].parameters


def test_a_prefix_leads_to_its_family():
    table = Table("toys", {}, {"any": "robench.spec:sha256"})
    assert table["any:thing"].target == "robench.spec:sha256"
    assert list(table) == [] and len(table) == 0
