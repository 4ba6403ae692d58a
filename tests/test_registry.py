"""Tables of names: read from the source, never imported."""

from __future__ import annotations

import inspect

import pytest

from robench.catalog import TABLES
from robench.errors import ConfigError
from robench.registry import Entry, Table
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


NUMBERS = [
    pytest.param(t, n, key, id=f"{k}:{n}.{key}")
    for k, t in TABLES.items()
    if k not in ("builders", "scenarios", "data", "metrics")
    for n in t
    if t[n].origin == "robench"
    for key, default in t[n].parameters.items()
    if isinstance(default, int | float) and not isinstance(default, bool)
]


@pytest.mark.parametrize(("table", "name", "key"), NUMBERS)
def test_bad_values_are_refused_by_the_plan(table, name, key):
    """Texts, infinities and, of whole numbers and of what cannot be negative, -7: of every argument in the catalogue."""
    bad = ["x", (1,), True, float("inf"), float("nan"), -7]
    for value in bad:
        with pytest.raises(ConfigError, match=f"{key} of {name} must be"):
            table.resolve(Ref(name, ((key, value),)))
    assert table.resolve(Ref.of(name, **{key: table[name].parameters[key]}))


@pytest.mark.parametrize("name", ["NoSuch", "", "ProjectedGradientDescents", "inspect"])
def test_a_family_knows_its_members(name):
    with pytest.raises(ConfigError, match=r"a name of art\.attacks\.evasion"):
        ATTACKS.resolve(f"art:{name}")
    assert ATTACKS.resolve("art:ProjectedGradientDescent(max_iter=3)").kwargs == {"max_iter": 3}


PLUGINS = {
    "syntax": ("def attack(:", "SyntaxError"),
    "package raises": ("", "ValueError: no"),
    "no function": ("x = 1", "a function of its module"),
    "facts of a name": ("@facts(version=x)\ndef attack(): pass", "literals"),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_broken_plug_in_is_one_line_and_harms_no_other(kind, tmp_path, monkeypatch):
    text, told = PLUGINS[kind]
    package = tmp_path / f"broken_{kind.replace(' ', '_')}"
    package.mkdir()
    (package / "__init__.py").write_text("raise ValueError('no')" if kind == "package raises" else "")
    (package / "module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    entry = Entry("mine", f"{package.name}.module:attack", "mine==1")
    assert told in entry.broken and "\n" not in entry.broken
    table = Table("attacks", ATTACKS.own)
    table.__dict__["_entries"] = {"mine": entry, "pgd": ATTACKS["pgd"]}
    assert table.resolve("pgd").name == "pgd"
    with pytest.raises(ConfigError, match="mine"):
        table.resolve("mine")


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
