"""The runner: failures are values and stay to do, artifacts are built once and before the cells that need them."""

from __future__ import annotations

import pickle

import pandas as pd
import pytest

from robench import runner
from robench.plan import Plan
from robench.runner import Job, Outcome, perform, run_plan, versions
from robench.spec import Artifact, Cell, Context, Ref
from robench.store import Store
from robench.suite import parse_suite

DATA = Artifact("data", Ref.of("images"), label="digits")
ZOO = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
BASE = Artifact("model", Ref.of("trained", seed=1), inputs=(DATA,), label="base", stored=True)
TOP = Artifact("model", Ref.of("trained", seed=2), inputs=(BASE,), label="top", stored=True)


def plan(*models: Artifact) -> Plan:
    from robench.plan import levels as _levels

    cells = tuple(Cell(Ref("clean"), "1", model, DATA) for model in models)
    return Plan(parse_suite("name: s"), _levels(cells), cells)


def run(plan: Plan, root, **more):
    told = []
    summary = run_plan(plan, Store(root), Context(str(root)), workers=1, progress=lambda *a: told.append(a), **more)
    return summary, told


@pytest.fixture
def planted(monkeypatch):
    """Records what is performed; fails for the digests put into ``bad``."""
    seen, bad = [], set()

    def fake(job):
        seen.append(job.work)
        if job.work.digest in bad:
            return Outcome(None, {}, "ValueError: planted\ntraceback")
        rows = pd.DataFrame({"sample": [0], "score": [1.0]}) if isinstance(job.work, Cell) else None
        return Outcome(rows, {"seconds": 0.0, "device": "cpu", "threads": 1})

    monkeypatch.setattr(runner, "perform", fake)
    return seen, bad


def test_stored_artifacts_behind_others_are_built_once_before_the_cells(planted, tmp_path):
    """A cell's model may be made from a stored one that no cell names: cells would each build it for themselves."""
    pruned = Artifact("model", Ref.of("compressed", method="prune"), inputs=(BASE, DATA), label="base")
    run(plan(pruned, TOP), tmp_path)
    works = planted[0]
    assert works[:2] == [BASE, TOP] and all(isinstance(w, Cell) for w in works[2:]) and len(works) == 4
    run(plan(pruned, TOP), tmp_path)
    assert works[4:] == []


def test_artifacts_come_first_inputs_before_what_needs_them(planted, tmp_path):
    summary, told = run(plan(TOP, BASE, ZOO), tmp_path)
    works = planted[0]
    assert works[:2] == [BASE, TOP]
    assert len(works) == 5 and all(isinstance(w, Cell) for w in works[2:])
    assert (summary.computed, summary.kept, summary.failures) == (3, 0, ())
    assert told[-1] == ("cells", 3, 3)


def test_finished_cells_and_what_only_they_need_are_left_alone(planted, tmp_path):
    run(plan(TOP, BASE, ZOO), tmp_path)
    planted[0].clear()
    summary, _ = run(plan(TOP, BASE, ZOO), tmp_path)
    assert planted[0] == [] and (summary.computed, summary.kept) == (0, 3)


def test_failed_cells_are_told_kept_aside_and_tried_again(planted, tmp_path):
    seen, bad = planted
    whole = plan(ZOO, BASE)
    bad.add(whole.cells[0].digest)
    summary, _ = run(whole, tmp_path)
    ((what, error),) = summary.failures
    assert "digits-mlp" in what and error.startswith("ValueError: planted")
    assert summary.counts == "1 cells computed, 0 kept, 1 failed"
    assert [p.stem for p in (tmp_path / "failed").iterdir()] == [whole.cells[0].digest]
    seen.clear()
    bad.clear()
    summary, _ = run(whole, tmp_path)
    assert seen == [whole.cells[0]] and summary.failures == ()


def test_what_ended_its_process_twice_is_left_out_until_retry(planted, tmp_path, monkeypatch):
    seen, _ = planted
    whole = plan(ZOO, BASE)

    def ends(job):
        if job.work != whole.cells[0]:
            return good(job)
        seen.append(job.work)
        return Outcome(None, {}, "the worker process died: signal 9", ended=True)

    good = runner.perform
    monkeypatch.setattr(runner, "perform", ends)
    for times in (1, 2):
        summary, _ = run(whole, tmp_path)
        assert [error for _, error in summary.failures] == ["the worker process died: signal 9"]
        assert Store(tmp_path).endings(whole.cells[0].digest) == times
    seen.clear()
    summary, _ = run(whole, tmp_path)
    ((what, error),) = summary.failures
    assert seen == [] and "digits-mlp" in what and "2 times; not tried again without --retry" in error
    assert (summary.computed, summary.kept, summary.failed) == (0, 1, 1)
    run(whole, tmp_path, retry=True)
    assert seen == [whole.cells[0]]


def test_an_artifact_that_ended_its_process_counts_for_its_cells(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "perform", lambda job: Outcome(None, {}, "died", ended=True))
    whole = plan(BASE)
    for _ in range(3):
        summary, _ = run(whole, tmp_path)
    assert len(summary.failures) == 1 and "without --retry" in summary.failures[0][1]


def test_failed_artifacts_are_told(planted, tmp_path):
    planted[1].add(BASE.digest)
    summary, _ = run(plan(BASE), tmp_path)
    assert summary.failures[0][0].startswith("trained(")


def test_cells_of_one_model_follow_each_other(planted, tmp_path):
    models = [Artifact("model", Ref.of("zoo", name=str(n)), label=str(n)) for n in range(3)]
    cells = tuple(Cell(Ref("clean"), "1", m, DATA, seed=s) for s in range(3) for m in models)
    run(Plan(parse_suite("name: s"), (), cells), tmp_path)
    order = [c.model.label for c in planted[0]]
    assert [label for n, label in enumerate(order) if n == 0 or order[n - 1] != label] == sorted(set(order), key=order.index)


def test_perform_turns_any_failure_into_a_value():
    missing = Artifact("model", Ref.of("zoo", name="nosuch"), label="nosuch")
    outcome = perform(Job(Cell(Ref("clean"), "1", missing, DATA), Context("")))
    assert outcome.rows is None
    assert "nosuch" in outcome.error.splitlines()[0]


def test_perform_runs_a_cell_of_the_zoo(tmp_path):
    data = Artifact("data", Ref.of("images", source="digits", limit=12), label="digits")
    seen = Artifact("predictions", Ref.of("predictions"), inputs=(ZOO, data), stored=True)
    outcome = perform(Job(Cell(Ref.of("clean"), "1", ZOO, data, extra=(seen,)), Context(str(tmp_path))))
    assert outcome.error == "" and len(outcome.rows) == 12
    assert set(outcome.header) == {"seconds", "device", "threads"}


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), type("Odd", (BaseException,), {})()])
def test_whatever_a_model_raises_is_a_failed_cell(monkeypatch, error):
    def stop(cell, context):
        raise error

    monkeypatch.setattr(runner, "run_cell", stop)
    outcome = perform(Job(Cell(Ref("clean"), "1", ZOO, DATA), Context("")))
    assert outcome.rows is None and (type(error).__name__ in outcome.error or "sys.exit(0)" in outcome.error)


def test_interrupts_are_not_swallowed(monkeypatch):
    def stop(cell, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_cell", stop)
    with pytest.raises(KeyboardInterrupt):
        perform(Job(Cell(Ref("clean"), "1", ZOO, DATA), Context("")))


def test_jobs_travel_between_processes():
    job = Job(Cell(Ref.of("clean"), "1", TOP, DATA), Context("x"))
    again = pickle.loads(pickle.dumps(job))
    assert again == job and again.work.digest == job.work.digest


def test_versions_name_what_numbers_depend_on():
    assert {"python", "robench", "torch", "numpy"} <= set(versions())
