"""``verify`` names every changed field, though all hashes were written anew, or the field is declared informative."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from robench.api import _header, plan_run, run
from robench.cli import _report, _unlike_tables, main
from robench.errors import StoreError
from robench.metrics.columns import EVASION
from robench.progress import Line
from robench.recheck import INFORMATIVE, SEARCH, Task, recheck
from robench.spec import Context
from robench.store import Store, _sealed
from robench.suite import parse_suite, read_suite
from robench.verification import _of_run, _planned_again, verify_run

SUITE = """
name: tampered
limit: 16
models: [digits-mlp]
threats: [linf(0.03)]
attacks: [pgd(steps=3)]
"""
Change = Callable[[dict[str, Any]], Any]


def here(function, argument, **told):
    """In this process: the models are of the zoo."""
    return function(argument)


def looked_at(folder: Path, **more) -> tuple[str, ...]:
    return verify_run(folder, device="cpu", apart=here, **more).differences


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification") / "run"
    run(parse_suite(SUITE), out=folder, workers=1, device="cpu", save_adversarials=True)
    _report(folder, "json", Line())
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def entry_of(folder: Path, scenario: str, split: str = "test"):
    for entry in Store(folder).finished().values():
        if entry.cell.scenario.name == scenario and entry.cell.scenario.kwargs.get("split", split) == split:
            return entry
    raise LookupError(scenario)


def rows_changed(folder: Path, scenario: str, change: Callable[[pd.DataFrame], Any]) -> None:
    """Other rows, stored as a run would store them, with a name and hashes that fit."""
    store, entry = Store(folder), entry_of(folder, scenario)
    rows = store.rows(entry)
    change(rows)
    kept = {k: entry.header[k] for k in ("seconds", "device", "threads", "versions", "settings") if k in entry.header}
    entry.rows.unlink()
    entry.rows.with_suffix(".json").unlink()
    store.put(entry.cell, rows, kept)


def header_changed(path: Path, change: Change) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_bytes(_sealed(told))


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool) or str(value) in ("True", "False"):
        return not bool(value)
    if isinstance(value, str):
        return value + "x"
    return value + 1


def one_value(column: str, value: Any = None, *, where: str = "") -> Callable[[pd.DataFrame], Any]:
    """A change of one value of a column, in the first row or in the first of those where a column is true or false."""

    def change(rows: pd.DataFrame) -> None:
        chosen = rows.index[0]
        if where:
            chosen = (
                rows.index[~rows[where[1:]].astype(bool)][0] if where[0] == "~" else rows.index[rows[where].astype(bool)][0]
            )
        now = rows.loc[chosen, column]
        rows[column] = rows[column].astype(object) if isinstance(value, str) else rows[column]
        rows.loc[chosen, column] = other(now) if value is None else value

    return change


ATTACK_ROWS = {
    "score_adv": [one_value("score_adv", 1.0, where="broken"), one_value("score_adv", 0.0, where="~broken")],
    "broken": [one_value("broken", where="broken"), one_value("broken", where="~broken")],
    "broken_8bit": [one_value("broken_8bit", where="broken"), one_value("broken_8bit", where="~broken")],
    "pred_adv": [one_value("pred_adv", where="broken"), one_value("pred_adv", where="~broken")],
    "margin_adv": [one_value("margin_adv", -0.5, where="broken"), one_value("margin_adv", -0.5, where="~broken")],
    "distance": [one_value("distance", 0.001, where="broken"), one_value("distance", 0.05, where="~broken")],
    "unstable": [one_value("unstable", where="broken"), one_value("unstable", where="~broken")],
    "status": [one_value("status", "failed")],
    "error": [one_value("error", "it crashed")],
    "nonfinite_outputs": [one_value("nonfinite_outputs", 3, where="~broken")],
    "zero_gradients": [one_value("zero_gradients", 10**6)],
    "draws": [one_value("draws", 50)],
    "stage": [one_value("stage", "apgd", where="~broken")],
    "stage_access": [one_value("stage_access", "white")],
    **{
        name: [one_value(name)]
        for name in (
            *("sample", "label", "score_clean", "pred_clean", "margin_clean", "score_mean", "score_worst"),
            *("norm", "eps", "access", "threat", "attack"),
        )
    },
}
"""Column of an attack's rows → changes of one value that ``verify`` names without running the attack again."""
CLEAN_ROWS = ("sample", "label", "split", "pred", "score", "confidence", "p_label", "brier", "nll", "margin")
HEADER: dict[str, Change] = {
    **{name: lambda h, name=name: h.update({name: other(h[name])}) for name in
       ("digest", "content", "cell", "model", "dataset", "scenario", "condition", "seed")},
    "schema": lambda h: h.update(schema=2),
    "settings": lambda h: h["settings"].update(width=32),
    "lineage": lambda h: h["lineage"].update(version="9"),
}  # fmt: skip
EVIDENCE: dict[str, Change] = {
    **{name: lambda h, name=name: h.update({name: other(h[name])}) for name in
       ("attack", "threat", "model", "dataset", "condition", "seed", "draws", "digest", "file", "content",
        "model_fingerprint")},
    "schema": lambda h: h.update(schema=2),
    "lineage": lambda h: h["lineage"].update(seed=3),
    **{f"samples.{name}": lambda h, name=name: h["samples"][0].update({name: other(h["samples"][0][name])}) for name in
       ("sample", "label", "stage", "sha256")},
    "samples.sha256_8bit": lambda h: next(s for s in h["samples"] if s["sha256_8bit"]).update(sha256_8bit="0" * 64),
}  # fmt: skip


def first_attack(header: dict[str, Any]) -> dict[str, Any]:
    return next(about for about in header["cells"].values() if about["scenario"] == "evasion")


RUN: dict[str, Change] = {
    "limited": lambda h: h.update(limited=True),
    "limit": lambda h: h.update(limit=16),
    "seed": lambda h: h.update(seed=1),
    "data_notes": lambda h: h.update(data_notes=["something"]),
    "left_out": lambda h: h.update(left_out=["something"]),
    "edits.notes": lambda h: h["edits"].update(notes=["something"]),
    "identities": lambda h: h["identities"]["models"].update(mine={"weights": "x"}),
    "settings": lambda h: h["settings"].update(width=32),
    "suite.threats": lambda h: h["suite"].update(threats=["linf(0.2)"]),
    "suite.attacks": lambda h: h["suite"]["attacks"].append("fgsm"),
    "suite.models": lambda h: h["suite"].update(models=["digits-standard"]),
    "suite.limit": lambda h: h["suite"].update(limit=12),
    "suite.efficiency": lambda h: h["suite"].update(efficiency=True),
    "suite.explainers": lambda h: h["suite"].update(explainers=["saliency"]),
    "cells": lambda h: h["cells"].pop(next(iter(h["cells"]))),
    **{f"cells.{name}": lambda h, name=name: first_attack(h).update({name: other(first_attack(h)[name])}) for name in
       ("model", "dataset", "condition", "seed", "threat", "attack")},
}  # fmt: skip
TABLES = {
    "table.csv": ("value", "ci_low", "ci_high", "n", "model", "threat", "attack", "metric", "validity", "n_unknown"),
    "leaderboard.csv": ("rank", "model", "clean", "n", "validity", "robust@linf(0.03)"),
}


def cases() -> list[Any]:
    found = [("evasion", name, change) for name, changes in ATTACK_ROWS.items() for change in changes]
    found += [("clean", name, one_value(name)) for name in CLEAN_ROWS]
    rows = [(name, lambda f, s=s, c=c: rows_changed(f, s, c)) for s, name, c in found]
    heads = [
        (n, lambda f, c=c: header_changed(entry_of(f, "clean").rows.with_suffix(".json"), c)) for n, c in HEADER.items()
    ]
    kept = [(n, lambda f, c=c: header_changed(next((f / "evidence").glob("*.json")), c)) for n, c in EVIDENCE.items()]
    runs = [(n, lambda f, c=c: header_changed(f / "run.json", c)) for n, c in RUN.items()]
    told = [("rows", rows), ("header", heads), ("evidence", kept), ("run.json", runs)]
    return [
        pytest.param(name, change, id=f"{kind}-{name}-{i}") for kind, group in told for i, (name, change) in enumerate(group)
    ]


def test_there_are_enough_single_field_changes():
    assert len(cases()) + sum(map(len, TABLES.values())) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), cases())
def test_a_changed_field_is_named(copy, name, change):
    change(copy)
    lines = looked_at(copy)
    word = {"cells": "missing among its cells", "samples.sample": "sample", "samples.sha256": "float32 image",
            "samples.sha256_8bit": "8-bit image", "model_fingerprint": "weights", "file": "cannot be read",
            "content": "content|other bytes"}.get(name, name.split(".")[-1])  # fmt: skip
    assert any(part in line for line in lines for part in (*word.split("|"), *_suite_words(name))), lines


def _suite_words(name: str) -> tuple[str, ...]:
    """A suite's field is named by the planned cells that do not follow from it."""
    return ("run.json:",) if name.startswith(("suite.", "seed", "settings", "identities", "limit")) else ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("forwards", "backwards", "zero_gradients", "unconfirmed", "escalated", "nonfinite_gradients", "fresh_copy_agrees"),
        "fresh_copy_note",
    ],
)
def test_what_a_search_says_of_itself_is_named_when_it_is_run_again(copy, name):
    """``zero_gradients`` and the like may be set so that no other column contradicts them."""
    value = {"escalated": "why not", "zero_gradients": 1, "unconfirmed": 1, "fresh_copy_agrees": 0.0}.get(name)
    rows_changed(copy, "evasion", one_value(name, value))
    assert looked_at(copy) == ()
    assert any(name in line for line in looked_at(copy, rerun=True))


@pytest.mark.slow
def test_every_column_of_a_sentinel_is_named(whole, tmp_path):
    columns = [c for c in Store(whole).rows(entry_of(whole, "sentinel")).columns if c not in INFORMATIVE["rows"]]
    for column in columns:
        folder = Path(shutil.copytree(whole, tmp_path / column))
        rows_changed(folder, "sentinel", lambda rows, column=column: rows.__setitem__(column, rows[column].map(_moved)))
        assert any(column in line for line in looked_at(folder)), column


def _moved(value: Any) -> Any:
    return 7.5 if value != value or value is None else other(value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), [(name, column) for name, columns in TABLES.items() for column in columns])
def test_a_changed_table_is_named(copy, name, column):
    table = pd.read_csv(copy / name, dtype=str, keep_default_na=False)
    table.loc[0, column] += "1"
    table.to_csv(copy / name, index=False)
    (line, *_) = _unlike_tables(copy)
    assert line.startswith(f"{name}: {column} of ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table.md", "leaderboard.md", "table.parquet"])
def test_the_other_tables_are_compared_too(copy, name):
    if name.endswith(".md"):
        (copy / name).write_text((copy / name).read_text().replace("digits-mlp", "my-model", 1))
    else:
        pd.read_parquet(copy / name).assign(value=1.0).to_parquet(copy / name, index=False)
    assert any(line.startswith(f"{name}: ") for line in _unlike_tables(copy))


def test_informative_fields_are_declared_and_all_others_are_tested(whole):
    """Every field of every file is in one of the two lists; a new one must be put into one of them."""
    store = Store(whole)
    rows = set(store.rows(entry_of(whole, "evasion")).columns)
    assert rows <= {*ATTACK_ROWS, *SEARCH, *INFORMATIVE["rows"]}
    assert set(store.rows(entry_of(whole, "clean")).columns) <= {*CLEAN_ROWS, *INFORMATIVE["rows"]}
    own = {"header_sha256"}
    assert set(entry_of(whole, "clean").header) <= {*HEADER, *INFORMATIVE["cells"], *own}
    kept = json.loads(next(store.evidence.glob("*.json")).read_text())
    fields = {*kept, *(f"samples.{name}" for name in kept["samples"][0])} - {"samples"}
    assert fields <= {*EVIDENCE, *INFORMATIVE["evidence"], *own}
    told = json.loads((whole / "run.json").read_text())
    fields = {*told, *(f"edits.{name}" for name in told["edits"])} - {"edits", "suite"}
    assert fields <= {*RUN, *INFORMATIVE["run.json"], *own}


def test_a_run_that_was_not_touched_is_verified(whole):
    found = verify_run(whole, device="cpu", apart=here)
    assert found.differences == () and found.cells == 4 and found.images > 0
    assert _unlike_tables(whole) == []


GARBAGE = ("absent", None, 7, "x", [], {}, [1], {"a": 1})


def spoilt(told: dict[str, Any], key: str, value: Any) -> None:
    told.pop(key) if value == "absent" else told.update({key: value})


@pytest.mark.parametrize("value", GARBAGE, ids=repr)
@pytest.mark.parametrize("key", ["seed", "settings", "edits", "sources", "identities", "limit"])
def test_a_run_json_that_was_spoilt_and_sealed_is_listed(whole, key, value):
    """Whatever stands in it, ``verify`` says so: no exception ends it, and the field is never passed over."""
    told = Store(whole).read_run()
    before = dict(told)
    spoilt(told, key, value)
    if told == before or (key, value) in (("settings", {}), ("sources", {}), ("limit", "absent")):
        return  # they mean what stood there: the default settings, a model of the zoo, no limit
    store, plan = Store(whole), _planned_again(told, Store(whole).finished(), (), False)
    lines = [*plan[2], *_of_run(store, told, store.finished())]
    assert any(line.startswith("run.json: ") for line in lines), lines


@pytest.mark.parametrize("change", [{"attacks": "absent"}, {"threats": 3}, {"name": ["quick"]}, {"limit": "x"}], ids=repr)
def test_a_spoilt_suite_is_listed(whole, change):
    told = Store(whole).read_run()
    suite = {**read_suite("quick").model_dump(), "models": ["digits-mlp"]}
    for key, value in change.items():
        spoilt(suite, key, value)
    told["suite"] = suite
    store = Store(whole)
    assert isinstance([*_of_run(store, told, {})], list)
    assert any(line.startswith("run.json: ") for line in _planned_again(told, {}, (), False)[2])


def test_an_edited_limit_is_no_difference_and_never_ranks(tmp_path):
    """In Python a packaged suite is limited by an edit of it, without ``limit=``."""
    suite = read_suite("quick").override(limit=5)
    header = _header(plan_run(suite, models=["digits-mlp"])[0], suite, ["digits-mlp"], seed=0, images=False)
    assert header["limited"] is True and header["limit"] == 5
    store = Store(tmp_path)
    store.write_run(header)
    told = store.read_run()
    assert [*_of_run(store, told, {})] == [] and _planned_again(told, {}, (), False)[2] == []
    store.write_run({**told, "limited": False, "limit": None})
    (line,) = _of_run(store, store.read_run(), {})
    assert line.startswith("run.json: limited is False")


@pytest.mark.parametrize("name", EVASION)
def test_a_column_that_was_cut_out_is_named(copy, name):
    """Also those that only a search knows, and those that some checks would have passed over."""
    rows_changed(copy, "evasion", lambda rows: rows.pop(name))
    task = Task((entry_of(copy, "evasion").digest,), Context(str(copy), "cpu", 64))
    ((_, line),) = recheck(task)
    assert f"without the columns {name}" in line
    with pytest.raises(StoreError, match=name):
        Store(copy).frames()


def test_an_answer_of_a_new_copy_that_was_blanked_is_named_without_running_the_attack_again(copy):
    rows_changed(copy, "evasion", lambda rows: rows.__setitem__("fresh_copy_agrees", float("nan")))
    lines = recheck(Task((entry_of(copy, "evasion").digest,), Context(str(copy), "cpu", 64)))
    assert any("fresh_copy_agrees is missing" in line for _, line in lines)


def test_a_column_of_another_kind_is_named(copy):
    rows_changed(copy, "evasion", lambda rows: rows.__setitem__("draws", "many"))
    with pytest.raises(StoreError, match="column draws holds 'many'"):
        Store(copy).frames()


def test_docs_and_rows_have_the_columns_of_the_declaration(whole):
    """The scenario writes them, the store requires them, the page names them."""
    assert list(Store(whole).rows(entry_of(whole, "evasion")).columns) == list(EVASION)
    text = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| `evasion` |")]
    assert set(EVASION) <= set(re.findall(r"[a-z_0-9]+", line))


def test_cells_are_counted_while_they_are_checked(whole, capsys):
    found = verify_run(whole, device="cpu", apart=here, verbose=True)
    said = capsys.readouterr().err
    assert found.differences == () and found.cells == found.planned == 4
    assert "planning the run again ..." in said and "checking cells: 0/4" in said
    assert verify_run(whole, device="cpu", apart=here).cells == 4 and capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_command_line_names_a_difference_and_exits_1(copy):
    rows_changed(copy, "evasion", one_value("score_adv", 1.0, where="broken"))
    result = CliRunner().invoke(main, ["verify", str(copy), "--device", "cpu"])
    assert result.exit_code == 1 and "score_adv" in result.output and "table.csv: " in result.output


@pytest.mark.slow
def test_a_run_without_images_is_looked_at_as_far_as_it_goes(tmp_path):
    run(parse_suite(SUITE), out=tmp_path / "run", workers=1, device="cpu")
    found = verify_run(tmp_path / "run", device="cpu", apart=here)
    assert found.differences == () and found.images == 0
    assert any("kept no images" in note for note in found.notes)
    rows_changed(tmp_path / "run", "evasion", one_value("score_clean"))
    assert any("score_clean" in line for line in looked_at(tmp_path / "run"))
