"""The store: immutable pairs, refused writers, damage that is told and never read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robench.api import load
from robench.errors import StoreError
from robench.files import write_atomically
from robench.lineage import planned as columns_of
from robench.metrics.columns import EVASION
from robench.spec import SCHEMA, Artifact, Cell, Ref, sha256
from robench.store import LEAD, Store, free_bytes


def cell(seed: int = 0, scenario: str = "clean", model: str = "net") -> Cell:
    """A cell that nothing has to be built for."""
    data = Artifact("data", Ref.of("images", source="digits"), label="digits")
    return Cell(Ref(scenario), "1", Artifact("model", Ref.of("zoo", name=model), label=model), data, seed=seed)


def rows(value: float = 1.0, n: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"sample": np.arange(n), "score": np.full(n, value)})


def attacked() -> pd.DataFrame:
    """Rows with all columns of an attack's."""
    return rows().assign(**{name: 0.0 for name in EVASION if name != "sample"})


def snapshot(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_put_then_finished_todo_and_frames(tmp_path):
    store, cells = Store(tmp_path), [cell(0), cell(1), cell(2, scenario="corruption")]
    assert store.todo(cells) == cells
    store.put(cells[1], rows(0.25), {"device": "cpu"})
    store.put(cells[2], rows(0.5), {"device": "cpu"})
    assert store.todo(cells) == [cells[0]]
    found = store.finished()
    assert set(found) == {cells[1].digest, cells[2].digest}
    assert found[cells[1].digest].header["schema"] == SCHEMA
    frames = store.frames()
    assert sorted(frames) == ["clean", "corruption"]
    clean = frames["clean"]
    assert tuple(clean.columns[: len(LEAD)]) == LEAD
    assert clean["model"].tolist() == ["net"] * 3
    assert clean["seed"].tolist() == [1] * 3
    assert clean["cell"].unique().tolist() == [cells[1].digest]
    assert clean["score"].tolist() == [0.25] * 3


def test_file_names_carry_digest_and_content_hash(tmp_path):
    Store(tmp_path).put(cell(), rows(), {})
    (data,) = (tmp_path / "cells").glob("*.parquet")
    digest, short, _ = data.name.split(".")
    assert digest == cell().digest
    assert short == sha256(data.read_bytes())[:8]
    header = json.loads(data.with_suffix(".json").read_text())
    assert header["content"] == sha256(data.read_bytes())


def test_frames_of_chosen_digests_only_and_in_an_order_of_content(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    cells = [cell(seed) for seed in range(4)]
    for c in cells:
        one.put(c, rows(c.seed), {})
    for c in reversed(cells):
        other.put(c, rows(c.seed), {})
    pd.testing.assert_frame_equal(one.frames()["clean"], other.frames()["clean"])
    chosen = one.frames([cells[2].digest, "0" * 64])
    assert chosen["clean"]["seed"].unique().tolist() == [2]
    assert one.frames([]) == {}


def test_columns_that_only_some_cells_have_stay_missing_in_the_others(tmp_path):
    store = Store(tmp_path)
    store.put(cell(0), rows(), {})
    store.put(cell(1), rows().assign(recipe="standard", steps=30), {})
    frame = store.frames()["clean"].set_index("seed")
    assert frame.loc[0, "recipe"].isna().all()
    assert (frame.loc[1, "steps"] == 30).all()


def test_other_bytes_than_the_header_says_are_refused(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(1.0), {})
    (data,) = store.cells.glob("*.parquet")
    rows(0.0).to_parquet(data, index=False)
    with pytest.raises(StoreError, match="unchanged since it was written"):
        store.frames()


def test_truncated_rows_are_refused(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (data,) = store.cells.glob("*.parquet")
    data.write_bytes(data.read_bytes()[:-20])
    with pytest.raises(StoreError, match="unchanged"):
        store.frames()


def test_missing_rows_are_told(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    next(store.cells.glob("*.parquet")).unlink()
    with pytest.raises(StoreError, match="readable"):
        store.frames()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "x"}'])
def test_damaged_header_is_told(tmp_path, text):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    next(store.cells.glob("*.json")).write_text(text)
    with pytest.raises(StoreError):
        store.finished()


def test_rows_without_header_are_not_finished(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    next(store.cells.glob("*.json")).unlink()
    assert store.finished() == {}
    assert store.todo([cell()]) == [cell()]
    store.put(cell(), rows(), {})
    assert store.todo([cell()]) == []


def test_newer_schema_is_refused(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (header,) = store.cells.glob("*.json")
    header.write_text(json.dumps({**json.loads(header.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(StoreError, match=f"at most {SCHEMA}, got {SCHEMA + 1}; update robench"):
        store.todo([cell()])


def test_two_contents_under_one_digest_are_a_conflict(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.put(cell(), rows(1.0), {})
    other.put(cell(), rows(0.0), {})
    for path in other.cells.iterdir():
        shutil.copy(path, one.cells / path.name)
    with pytest.raises(StoreError, match="stored once"):
        one.finished()


def test_merging_stores_is_copying_and_seconds_are_no_conflict(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.put(cell(0), rows().assign(seconds=1.0), {})
    other.put(cell(0), rows().assign(seconds=2.0), {})
    other.put(cell(1), rows().assign(seconds=2.0), {})
    for path in other.cells.iterdir():
        shutil.copy(path, one.cells / path.name)
    assert len(list(one.cells.glob("*.json"))) == 3
    assert set(one.finished()) == {cell(0).digest, cell(1).digest}
    assert len(one.frames()["clean"]) == 6


def _hold(root, ready, release):
    with Store(root).locked():
        ready.set()
        release.wait(30)


def test_second_writer_is_refused_until_the_first_leaves(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(StoreError, match="one run at a time"), Store(tmp_path).locked():
            pytest.fail("two writers")
    finally:
        release.set()
        process.join(30)
    with Store(tmp_path).locked() as store:
        assert store.root == tmp_path


def test_lock_of_a_killed_writer_does_not_stay(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(30)
    process.kill()
    process.join(30)
    with Store(tmp_path).locked():
        pass


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StoreError, match="--out must be a writable folder"), Store(tmp_path / "out").locked():
        pytest.fail("locked a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_unwritable_folder_is_refused(tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with pytest.raises(StoreError, match="choose another --out"), Store(tmp_path / "out").locked():
        pytest.fail("locked an unwritable folder")
    assert not (tmp_path / "out").exists()


def test_read_only_folder_is_refused(tmp_path):
    """Root writes everywhere but to the kernel's own folders."""
    tmp_path.chmod(0o500)
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path
    with pytest.raises(StoreError), Store(folder / "out").locked():
        pytest.fail("locked a read-only folder")


@pytest.mark.parametrize("failing", [1, 2], ids=["rows", "header"])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, failing):
    store = Store(tmp_path)
    store.put(cell(0), rows(), {})
    before = snapshot(tmp_path)
    calls = []
    real = os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("robench.files.os.fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*resumes where it stopped"):
        store.put(cell(1), rows(), {})
    monkeypatch.undo()
    after = snapshot(tmp_path)
    assert {k: v for k, v in after.items() if k in before} == before
    assert not [p for p in after if p.endswith(".robench-tmp")]
    assert not [p for p in after if p.startswith(f"cells/{cell(1).digest}") and p.endswith(".json")]
    assert store.todo([cell(0), cell(1)]) == [cell(1)]
    store.put(cell(1), rows(), {})
    assert store.todo([cell(0), cell(1)]) == []


def test_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    monkeypatch.setattr("robench.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StoreError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_parent_that_is_a_file_is_a_store_error(tmp_path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(StoreError, match="writable folder"):
        write_atomically(tmp_path / "cells" / "x.json", b"{}")


def test_temporary_files_of_a_killed_run_are_removed(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (store.cells / ".abc.parquet.0123456789abcdef.robench-tmp").write_bytes(b"half")
    deep = tmp_path / "artifacts" / "x"
    deep.mkdir(parents=True)
    (deep / ".model.safetensors.0123456789abcdef.robench-tmp").write_bytes(b"half")
    before = {k for k in snapshot(tmp_path) if not k.endswith(".robench-tmp")}
    store.clean_temporary()
    assert set(snapshot(tmp_path)) == before
    assert store.todo([cell()]) == []


def test_failed_attempts_are_kept_and_stay_to_do(tmp_path):
    store = Store(tmp_path)
    store.put_failure(cell(), "ValueError: no")
    assert store.todo([cell()]) == [cell()]
    told = json.loads((tmp_path / "failed" / f"{cell().digest}.json").read_text())
    assert told["error"] == "ValueError: no"
    assert told["model"] == "net"


PLANNED = {"scenario": "clean", "model": "net", "condition": "", "seed": 0}


def test_run_header_comes_back_and_its_absence_is_told(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match=r"run\.json"):
        store.read_run()
    header = {"cells": {"a": dict(PLANNED), "b": {**PLANNED, "scenario": "evasion", "threat": "linf(1)", "attack": "pgd"}}}
    store.write_run({**header, "limited": True})
    assert store.read_run() == {**header, "limited": True}


def test_free_bytes_is_positive(tmp_path):
    assert free_bytes(tmp_path) > 0


def test_damaged_run_header_is_told(tmp_path):
    Store(tmp_path).write_run({})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match="readable JSON"):
        Store(tmp_path).read_run()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1], "a run's configuration"),
        ("text", "a run's configuration"),
        ({"cells": {}}, "told whether the run was limited"),
        ({"cells": {}, "limited": 1}, "a run's configuration"),
        ({"cells": {}, "limited": False, "suite": "full"}, "a run's configuration"),
        ({"cells": ["a", "b"], "limited": False}, "earlier versions of robench wrote a list"),
        ({"limited": False}, "cells by digest with what each was to measure"),
        ({"cells": {"a": "clean"}, "limited": False}, "what cell a was to measure"),
        ({"cells": {"a": {"scenario": "clean"}}, "limited": False}, "what cell a was to measure"),
        ({"cells": {"a": {**PLANNED, "scenario": "evasion"}}, "limited": False}, "threat and attack"),
    ],
)
def test_a_run_header_of_another_shape_is_told_with_a_remedy(tmp_path, content, told):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=told) as caught:
        Store(tmp_path).read_run()
    assert "with the same --out again" in str(caught.value)


def test_a_run_of_an_earlier_version_is_an_error_and_no_traceback_for_those_who_load_it(tmp_path):
    store = Store(tmp_path)
    store.put(cell(scenario="evasion"), attacked(), {})
    store.write_run({"cells": [cell().digest], "limited": False})
    with pytest.raises(StoreError, match="cells by digest"):
        load(tmp_path)


def test_results_of_an_older_schema_are_refused_with_a_remedy(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (header,) = store.cells.glob("*.json")
    header.write_text(json.dumps({**json.loads(header.read_text()), "schema": SCHEMA - 1}))
    with pytest.raises(StoreError, match=f"must be '?{SCHEMA}'?, got {SCHEMA - 1}; run the same command"):
        store.frames()


def changed(path: Path, *, rehash: bool = True, **fields) -> None:
    """Edit fields of a JSON header, with a fresh own hash as an adversary would."""
    from robench.store import _sealed

    told = {**json.loads(path.read_text()), **fields}
    path.write_bytes(_sealed(told) if rehash else json.dumps(told).encode())


@pytest.mark.parametrize("field", ["digest", "content", "cell", "model", "dataset", "scenario", "condition", "seed"])
def test_a_changed_header_field_is_named(tmp_path, field):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (header,) = store.cells.glob("*.json")
    changed(header, **{field: 7 if field == "seed" else "f" * 64})
    with pytest.raises(StoreError, match=f"{field} in cells/"):
        store.finished()


def test_a_changed_field_that_nothing_else_tells_breaks_the_own_hash(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {"device": "cpu"})
    (header,) = store.cells.glob("*.json")
    changed(header, rehash=False, device="cuda")
    with pytest.raises(StoreError, match="header_sha256 in cells/"):
        store.finished()


def test_swapped_digests_are_told(tmp_path):
    """Each header with the other's digest: before, each model was shown the other's numbers."""
    store = Store(tmp_path)
    store.put(cell(model="one"), rows(1.0), {})
    store.put(cell(model="two"), rows(0.0), {})
    one, two = sorted(store.cells.glob("*.json"))
    told = [json.loads(p.read_text())["digest"] for p in (one, two)]
    changed(one, digest=told[1], cell=told[1])
    changed(two, digest=told[0], cell=told[0])
    with pytest.raises(StoreError, match="digest in cells/"):
        store.frames()


def test_swapped_files_are_told(tmp_path):
    store = Store(tmp_path)
    store.put(cell(model="one"), rows(1.0), {})
    store.put(cell(model="two"), rows(0.0), {})
    one, two = sorted(store.cells.glob("*.json"))
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    with pytest.raises(StoreError, match="file name in cells/"):
        store.frames()


def test_another_lineage_is_another_digest(tmp_path):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    (header,) = store.cells.glob("*.json")
    lineage = json.loads(header.read_text())["lineage"]
    changed(header, lineage={**lineage, "seed": 5}, seed=5)
    with pytest.raises(StoreError, match="digest in cells/"):
        store.finished()


@pytest.mark.parametrize(("column", "value"), [("threat", "linf(0.2)"), ("attack", "fgsm")])
def test_rows_of_another_threat_or_attack_are_told(tmp_path, column, value):
    store = Store(tmp_path)
    own = Ref.of("evasion", attack="pgd", threat="linf(0.1)")
    data = attacked().assign(**{"attack": "pgd", "threat": "linf(0.1)", column: value})
    store.put(replace(cell(), scenario=own), data, {})
    with pytest.raises(StoreError, match=f"{column} in "):
        store.frames()


@pytest.mark.parametrize("field", ["model", "dataset", "condition", "seed", "scenario"])
def test_a_plan_that_says_otherwise_than_the_cells_is_told(tmp_path, field):
    store = Store(tmp_path)
    store.put(cell(), rows(), {})
    about = {**columns_of(cell()), field: "other"}
    with pytest.raises(StoreError, match=f"{field} of cell"):
        store.frames({cell().digest: about})


def test_a_changed_run_header_is_told_by_its_own_hash(tmp_path):
    store = Store(tmp_path)
    store.write_run({"cells": {}, "limited": True})
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "limited": False}))
    with pytest.raises(StoreError, match="own hash does not fit"):
        store.read_run()
    assert store.read_run(changed=True)["limited"] is False
