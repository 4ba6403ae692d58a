"""Promises 1 and 2 of the design: the same table after kills, other batch sizes and workers; near it at other widths.

A driver process imports robench once and forks a child per attempt. A child dies by SIGKILL: from inside (between the
write and the rename of a result file, inside a training step, inside an attack) or from outside while a cell is open.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robench import api, catalog
from robench.metrics.table import tidy, unmeasured
from robench.spec import Settings

SUITE = """
name: promises
data: digits
limit: 30
models: [digits-pgd-at]
threats: [linf(0.15)]
attacks: [noise(draws=3), "pgd(steps=6, loss='margin')"]
corruption: {table: digits-v1, names: [gaussian_noise]}
scarcity: {arch: mlp, recipes: [standard], fractions: [0.25], seeds: [0], steps: 60}
"""
WIDER = SUITE.replace("[digits-pgd-at]", "[digits-pgd-at, digits-standard]").replace("arch: mlp", "arch: small_cnn")
WIDER = WIDER.replace("[0.25]", "[0.25, 1.0]").replace("limit: 30", "limit: 60")
HERE = {"device": "cpu", "settings": Settings(width=16)}
"""Batches of 16: padding to more would make small batches the dearest."""

DRIVER = '''
import json, multiprocessing, os, signal, sys, time
from pathlib import Path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(number, function, before=lambda *a: True):
    """The function, but the process dies when it is called for the number-th time."""
    seen = [0]

    def replaced(*args, **kwargs):
        seen[0] += before(*args)
        if seen[0] == number and before(*args):
            die()
        return function(*args, **kwargs)

    return replaced


def arm(kind, number):
    from robench import victim
    from robench.defenses import training

    cells = lambda path, target: target.parent.name == "cells"
    if kind == "rows":
        Path.replace = after(number, Path.replace, lambda p, t: cells(p, t) and t.suffix == ".parquet")
    if kind == "header":
        Path.replace = after(number, Path.replace, lambda p, t: cells(p, t) and t.suffix == ".json")
    if kind == "weights":
        Path.replace = after(number, Path.replace, lambda p, t: t.name == "model.safetensors")
    if kind == "images":
        Path.replace = after(number, Path.replace, lambda p, t: t.name == "images.npz")
    if kind == "step":
        training._step = after(number, training._step)
    if kind == "gradient":
        victim.Victim.gradient = after(number, victim.Victim.gradient)


def attempt(suite, out, log, kind, number):
    from robench import api, runner
    from robench.builders import images, predictions, training
    from robench.spec import Settings

    arm(kind, number)
    perform, run_cell, current, opened = runner.perform, runner.run_cell, [""], [0]

    def note():
        opened[0] += 1
        with open(log, "a") as handle:
            handle.write(current[0] + "\\n")
        if kind == "outside" and opened[0] == number:
            time.sleep(0.3)

    def noted(function):
        def replaced(*args, **more):
            note()
            return function(*args, **more)

        return replaced

    def known(job):
        current[0] = job.work.digest
        return perform(job)

    runner.perform, runner.run_cell = known, noted(run_cell)
    training._train, images._corrupt = noted(training._train), noted(images._corrupt)
    predictions._arrays = noted(predictions._arrays)
    api.run(suite, out=out, device="cpu", workers=1, settings=Settings(width=16))


def finished(out):
    from robench.store import Store

    cells = sorted(Store(out).finished())
    return cells + sorted(p.parent.name for p in Path(out).glob("artifacts/*/header.json"))


def once(suite, out, kind, number):
    log = Path(out + ".log")
    log.write_text("")
    before = finished(out)
    child = multiprocessing.get_context("fork").Process(target=attempt, args=(suite, out, str(log), kind, number))
    child.start()
    alive = True
    if kind == "outside":
        while child.is_alive() and len(log.read_text().split()) < number:
            time.sleep(0.01)
        time.sleep(0.05 * (number % 5))
        alive = child.is_alive()
        child.kill()
    child.join()
    return {
        "kind": kind, "before": before, "ran": log.read_text().split(), "after": finished(out), "code": child.exitcode,
        "alive": alive, "temporary": [str(p) for p in Path(out).rglob(".*.robench-tmp")],
    }


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    from robench import api, runner
    from robench.builders import images, predictions, training
    import robench.scenarios.evasion, robench.scenarios.corruption, robench.scenarios.sentinel, robench.defenses.training

    suite, out, kills = json.loads(sys.argv[1])
    api.plan_run(suite)
    print(json.dumps([once(suite, out, kind, number) for kind, number in [*kills, ["none", 0]]]))
'''


def csv(out: Path) -> bytes:
    return unmeasured(tidy(api.load(out))).to_csv(index=False).encode()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """(suite file, run directory, table) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    suite = folder / "promises.yaml"
    suite.write_text(SUITE)
    done = api.run(str(suite), out=folder / "run", workers=1, **HERE)
    assert done.summary.failures == () and done.summary.kept == 0
    return suite, folder / "run", csv(folder / "run")


def attempts(tmp_path: Path, suite: Path, kills: list[tuple[str, int]]) -> list[dict]:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    task = json.dumps([str(suite), str(tmp_path / "run"), kills])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, str(driver), task], capture_output=True, text=True, timeout=500, env=environment, check=False
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


def check(story: list[dict], kills: list[tuple[str, int]]) -> None:
    """Every kill hit a live process with work open; what was finished stayed and did not run again."""
    assert [s["kind"] for s in story] == [kind for kind, _ in kills] + ["none"]
    for kill in story[:-1]:
        assert kill["alive"] and kill["code"] == -9, kill["kind"]
        opened = set(kill["ran"]) - set(kill["after"])
        assert len(opened) == 1, kill["kind"]
    assert story[-1]["code"] == 0
    for one, following in itertools.pairwise(story):
        assert set(one["before"]) <= set(one["after"])
        assert one["after"] == following["before"]
    for one in story:
        assert len(one["ran"]) == len(set(one["ran"]))
        assert not set(one["ran"]) & set(one["before"])
    for kind in {s["kind"] for s in story} & {"rows", "header", "weights", "images"}:
        assert any(s["temporary"] for s in story if s["kind"] == kind), f"{kind}: died before the write"
    assert story[-1]["temporary"] == []


def test_three_kills_leave_the_same_table(reference, tmp_path):
    suite, _, table = reference
    kills = [("step", 55), ("rows", 2), ("header", 2)]
    story = attempts(tmp_path, suite, kills)
    check(story, kills)
    assert csv(tmp_path / "run") == table


@pytest.mark.slow
def test_ten_kills_leave_the_same_table(tmp_path):
    suite = tmp_path / "wider.yaml"
    suite.write_text(WIDER)
    api.run(str(suite), out=tmp_path / "whole", workers=1, **HERE)
    kills = [
        ("images", 1), ("step", 20), ("weights", 1), ("step", 57), ("outside", 2),
        ("rows", 2), ("header", 2), ("gradient", 3), ("outside", 2), ("rows", 1),
    ]  # fmt: skip
    story = attempts(tmp_path, suite, kills)
    check(story, kills)
    assert csv(tmp_path / "run") == csv(tmp_path / "whole")


def test_robust_accuracy_is_where_verdicts_could_differ(reference):
    table = tidy(api.load(reference[1]))
    worst = table[(table["metric"] == "robust_accuracy") & (table["attack"] == "worst")]
    assert worst["value"].between(0.2, 0.8).all() and len(worst) == 1


@pytest.mark.parametrize("size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in (16, 500))])
def test_batch_size_changes_nothing(reference, tmp_path, size):
    suite, _, table = reference
    api.run(str(suite), out=tmp_path / "run", workers=1, batch_size=size, **HERE)
    assert csv(tmp_path / "run") == table


@pytest.mark.slow
def test_two_workers_change_nothing(reference, tmp_path):
    suite, _, table = reference
    done = api.run(str(suite), out=tmp_path / "run", workers=2, **HERE)
    assert done.summary.failures == ()
    assert csv(tmp_path / "run") == table


def test_second_run_computes_nothing_and_keeps_every_byte(reference):
    suite, out, table = reference
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.parent.name in ("cells", "artifacts")}
    done = api.run(str(suite), out=out, workers=1, **HERE)
    assert done.summary.computed == 0 and done.summary.kept == len(done.plan.cells)
    assert {p: p.read_bytes() for p in before} == before
    assert csv(out) == table


PROTOCOLS = """
name: protocols
data: digits
limit: 10
models: [digits-mlp]
threats: [linf(0.05), l0(3)]
attacks: [{}]
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_protocol_keeps_promise_one(tmp_path, precision):
    protocols = {name: entry.facts for name, entry in catalog.ATTACKS.items() if entry.facts.get("protocol")}
    names = [f"{n}(source='digits-standard')" if told.get("surrogate") else n for n, told in protocols.items()]
    suite = tmp_path / "suite.yaml"
    suite.write_text(PROTOCOLS.format(", ".join(f'"{n}"' for n in names)))
    told = {"device": "cpu", "settings": Settings(search_precision=precision)}
    api.run(str(suite), out=tmp_path / "reference", workers=1, **told)
    table = csv(tmp_path / "reference")
    assert set(api.load(tmp_path / "reference")["evasion"]["attack"]) == set(names)
    for workers, size in ((1, 1), (2, 7)):
        done = api.run(str(suite), out=tmp_path / f"{size}", workers=workers, batch_size=size, **told)
        assert done.summary.failures == ()
        assert csv(tmp_path / f"{size}") == table, f"{workers} workers, batch size {size}"
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "reference", resumed)
    for cell in sorted((resumed / "cells").iterdir())[::2]:
        cell.unlink()
    assert api.run(str(suite), out=resumed, workers=1, **told).summary.computed > 3
    assert csv(resumed) == table


KEYS = ["model", "condition", "sample"]


def near(one: pd.Series, other: pd.Series) -> None:
    np.testing.assert_allclose(other.to_numpy(float), one.to_numpy(float), rtol=1e-4, atol=1e-6)


def test_other_width_keeps_promise_two(reference, tmp_path):
    suite, out, _ = reference
    api.run(str(suite), out=tmp_path / "run", device="cpu", workers=1, settings=Settings(width=32))
    one, other = api.load(out), api.load(tmp_path / "run")
    assert set(one["clean"]["cell"]).isdisjoint(other["clean"]["cell"])
    both = one["clean"].merge(other["clean"], on=[*KEYS, "split"], suffixes=("", "_narrow"), validate="1:1")
    assert len(both) == len(one["clean"])
    for column in ("confidence", "p_label", "margin"):
        near(both[column], both[f"{column}_narrow"])
    both = one["evasion"].merge(other["evasion"], on=[*KEYS, "attack"], suffixes=("", "_narrow"), validate="1:1")
    assert len(both) == len(one["evasion"])
    for column in ("margin_clean", "distance"):
        near(both[column], both[f"{column}_narrow"])
    differing = both[both["score_adv"] != both["score_adv_narrow"]]
    assert (differing["margin_adv"].abs() < 1e-4).all()
    both = one["corruption"].merge(other["corruption"], on=[*KEYS, "corruption", "severity"], suffixes=("", "_narrow"))
    assert (both["pred"] == both["pred_narrow"]).mean() > 0.995
