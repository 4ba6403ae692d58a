"""Bad input of every kind: the exit code says so, one bounded line tells why, nothing in the run directory changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from robench import cli
from robench.errors import LINE
from robench.spec import Artifact, Cell, Ref
from robench.store import Store

BASE = "name: s\ndata: digits\nlimit: 4\nmodels: [digits-mlp]\n"
DEEP = "models: " + "[" * 1500 + "]" * 1500
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + above] * 9)}]\n" for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)

SUITES = {
    "empty": "",
    "a number": "3",
    "a list": "[1, 2]",
    "no name": "data: digits",
    "tabs": "\tname: s",
    "unclosed": "name: [s",
    "two documents": "name: s\n---\nname: t",
    "python tag": "name: !!python/object/apply:os.system ['true']",
    "unknown anchor": "name: *nowhere",
    "null byte": "name: s\0",
    "unknown key": BASE + "attaks: [fgsm]",
    "unknown key in shifts": BASE + "shifts: {a: {data: digits, bogus: 1}}",
    "unknown key in corruption": BASE + "corruption: {nmes: [fog]}",
    "unknown key in curves": BASE + "curves: [{nrm: linf}]",
    "unknown key in scarcity": BASE + "scarcity: {recipe: [standard]}",
    "unknown key in compression": BASE + "compression: {arm: [int8]}",
    "unknown key in defenses": BASE + "defenses: [{model: digits-mlp, defence: jpeg}]",
    "unknown key in chains": BASE + "chains: [{chains: 'prune(amount=0.5)'}]",
    "unknown key in ood": BASE + "ood: {source: [glyphs]}",
    "unknown key in calibration": BASE + "calibration: {splits: train}",
    "unknown key in spatial": BASE + "spatial: {angle: [1]}",
    "unknown key in robust_gap": BASE + "robust_gap: {limits: 3}",
    "alias bomb as models": BOMB + BASE.replace("[digits-mlp]", "*i"),
    "alias bomb as name": BOMB + "name: *i",
    "deep nesting": DEEP,
    "limit 0": BASE.replace("limit: 4", "limit: 0"),
    "limit text": BASE.replace("limit: 4", "limit: many"),
    "limit nan": BASE.replace("limit: 4", "limit: .nan"),
    "models a text": BASE.replace("[digits-mlp]", "digits-mlp"),
    "models numbers": BASE.replace("[digits-mlp]", "[1, 2]"),
    "models a map": BASE.replace("[digits-mlp]", "{a: 1}"),
    "unknown model": BASE.replace("digits-mlp", "digits-nosuch"),
    "severity 9": BASE + "calibration: {split: train, severity: 9}",
    "fraction 2": BASE + "scarcity: {recipes: [standard], fractions: [2]}",
    "negative lr": BASE + "scarcity: {recipes: [standard], fractions: [1], lr: -1}",
    "unknown recipe": BASE + "scarcity: {recipes: [nosuch], fractions: [1.0]}",
    "bad recipe": BASE + "scarcity: {recipes: ['pgd_at(steps=-1)'], fractions: [1.0]}",
    "unknown arch": BASE + "scarcity: {arch: nosuch, recipes: [standard], fractions: [1.0]}",
    "unknown augmentation": BASE + "scarcity: {recipes: [standard], fractions: [1.0], augmentations: [nosuch]}",
    "unknown compression": BASE + "compression: {models: [digits-mlp], arms: [nosuch]}",
    "prune by 2": BASE + "compression: {models: [digits-mlp], arms: ['prune(amount=2)']}",
    "prune without a word": BASE + "compression: {models: [digits-mlp], arms: ['prune(2)']}",
    "int8 with 1 bit": BASE + "compression: {models: [digits-mlp], arms: ['int8(bits=1)']}",
    "unknown corruption": BASE + "corruption: {names: [nosuch]}",
    "unknown table": BASE + "corruption: {table: nosuch, names: [fog]}",
    "unknown explainer": BASE + "explainers: [nosuch]",
    "explainer without steps": BASE + "explainers: ['integrated_gradients(steps=0)']",
    "unknown detector": BASE + "ood: {sources: [glyphs], detectors: [nosuch]}",
    "knn of none": BASE + "ood: {sources: [glyphs], detectors: ['knn(k=0)']}",
    "unknown ood source": BASE + "ood: {sources: [nosuch]}",
    "unknown defense": BASE + "defenses: [{model: digits-mlp, defense: nosuch}]",
    "bit depth 0": BASE + "defenses: [{model: digits-mlp, defense: 'bit_depth(bits=0)'}]",
    "jpeg quality 0": BASE + "defenses: [{model: digits-mlp, defense: 'jpeg(quality=0)'}]",
    "defended stranger": BASE + "defenses: [{model: nosuch, defense: jpeg}]",
    "unknown data": BASE.replace("data: digits", "data: nosuch"),
    "bad chain": BASE + "chains: [{chain: 'prune(amount=0.5) | nosuch(fog, 3)'}]",
    "curve of no norm": BASE + "curves: [{norm: l7, eps: ['1'], attacks: [pgd]}]",
    "curve of bad eps": BASE + "curves: [{norm: linf, eps: ['8'], attacks: [pgd]}]",
}
THREATS = (
    "", "linf", "linf()", "linf(", "linf(x)", "linf(-1)", "linf(8)", "linf(8/0)", "linf(0/0)", "linf(1e400)", "linf(nan)",
    "linf(-inf)", "l7(1)", "LINF(0.1)", "linf(1/2/3)", "linf(0.1))", "linf(1e999999999)", "linf(0x1)", "l2(1_)", "l2(--1)",
    "linf(" + "1" * 5000 + ")", "l2(1,2)", "linf(8/255) l2(1)", "\0", "linf(½)",
)  # fmt: skip
ATTACKS = (
    "", "nosuch", "pgd(", "pgd)", "pgd(40)", "pgd(steps)", "pgd(steps=)", "pgd(steps=-1)", "pgd(steps=0)", "pgd(steps=2.5)",
    "pgd(steps='40')", "pgd(steps=True)", "pgd(steps=[1])", "pgd(restarts=0)", "pgd(step_size=8/0)", "pgd(step_size=1e400)",
    "pgd(step_size=-0.1)", "pgd(step_size='a')", "pgd(stps=40)", "pgd(steps=1, steps=2)", "pgd(**{'steps': 1})",
    "pgd(steps={1: 2})", "pgd(steps={[]: 1})", "pgd(steps=open('x'))", "pgd(steps=__import__('os'))", "pgd(steps=1)(2)",
    "pgd(steps=" + "-" * 5000 + "1)", "pgd(steps=" + "(" * 500 + "1" + ")" * 500 + ")", "pgd(steps=" + "9" * 5000 + ")",
    "pgd(step_size=" + "9" * 400 + "/1)", "pgd(steps=1\0)", "pgd(loss=1)", "noise(draws=0)", "fgsm(steps=1)",
    "square(queries=0)", "square(queries=-5)", "apgd(rho=2)", "apgd(restarts=-1)", "apgd_t(targets=-1)", "fab(steps=0)",
    "cw(searches=0)", "ead(steps=-1)", "hop_skip_jump(directions=0)", "spsa(pairs=0)", "nes(sigma=0)", "sparse_rs(share=2)",
    "sigma_zero(rate=0)", "ddn(steps=0)", "fmn(steps=-3)", "deepfool(candidates=0)", "art:", "art:NoSuch",
    "art:ProjectedGradientDescents", "transfer(source='nosuch')", "transfer(source='digits-standard', steps=0)",
    "through(attack='nosuch')", "through(attack='pgd(steps=-1)')", "pgd(steps=0x)", "pgd(steps=1 if 1 else 2)",
)  # fmt: skip
OPTIONS = {
    "unknown command": ["rnu"],
    "unknown option": ["run", "--modle", "x"],
    "no value": ["run", "--model"],
    "limit 0": ["run", "--limit", "0"],
    "limit text": ["run", "--limit", "ten"],
    "workers 0": ["run", "--workers", "0"],
    "batch size 0": ["run", "--batch-size", "0"],
    "width 7": ["run", "--width", "7"],
    "cell timeout 0": ["run", "--cell-timeout", "0"],
    "cell timeout nan": ["run", "--cell-timeout", "nan"],
    "precision": ["run", "--search-precision", "float8"],
    "device": ["run", "--device", "tpu"],
    "device number": ["run", "--device", "cuda:x"],
    "unknown scenario": ["run", "--scenario", "nosuch"],
    "unknown defense": ["run", "--defense", "nosuch"],
    "unknown chain": ["run", "--chain", "nosuch"],
    "shift without name": ["run", "--shift", "folder:x"],
    "shift without data": ["run", "--shift", "a="],
    "ood without data": ["run", "--ood", "A=folder:nosuch"],
    "groups missing": ["run", "--groups", "nosuch.csv"],
    "digits of x": ["run", "--data", "digits(x=1)"],
    "root a number": ["run", "--data", "cifar10(root=5)"],
    "root missing": ["run", "--data", "cifar10(root='nosuch')"],
    "folder missing": ["run", "--data", "folder:nosuch"],
    "folder empty": ["run", "--data", "folder:{empty}"],
    "npz missing": ["run", "--data", "npz:nosuch.npz"],
    "npz damaged": ["run", "--data", "npz:{noise}.npz"],
    "npz without labels": ["run", "--data", "npz:{npz}"],
    "data unknown": ["run", "--data", "nosuch"],
    "data nothing": ["run", "--data", ""],
    "suite a folder": ["run", "--suite", "{folder}"],
    "suite binary": ["run", "--suite", "{noise}.npz"],
    "suite missing": ["run", "--suite", "nosuch.yaml"],
    "out a file": ["run", "--suite", "{suite}", "--out", "{noise}.npz"],
    "list of nothing": ["list", "nosuch"],
    "show nothing": ["show", "attack", "nosuch"],
    "show of nothing": ["show", "nosuch", "pgd"],
    "show no suite": ["show", "suite", "nosuch"],
    "show no model": ["show", "model", "nosuch"],
    "zoo of nothing": ["zoo", "build", "nosuch"],
    "report nowhere": ["report", "nosuch"],
    "report of a file": ["report", "{noise}.npz"],
    "leaderboard nowhere": ["leaderboard", "nosuch"],
    "leaderboard of none": ["leaderboard"],
    "leaderboard by nothing": ["leaderboard", "{run}", "--by", "nosuch"],
    "leaderboard at nothing": ["leaderboard", "{run}", "--threat", "l7(1)"],
    "verify nowhere": ["verify", "nosuch"],
    "audit nowhere": ["audit", "nosuch", "--require", "accuracy>=0.5"],
}
MODELS = {
    "classes below 1": ["run", "--num-classes", "-3", "--model", "{weights}", "--arch", "small_cnn"],
    "mean text": ["run", "--mean", "a,b", "--model", "{weights}", "--arch", "small_cnn"],
    "mean nan": ["run", "--mean", "nan", "--model", "{weights}", "--arch", "small_cnn"],
    "std 0": ["run", "--std", "0", "--model", "{weights}", "--arch", "small_cnn"],
    "std negative": ["run", "--std", "-1", "--model", "{weights}", "--arch", "small_cnn"],
    "range of one": ["run", "--input-range", "1", "--model", "{weights}"],
    "range reversed": ["run", "--input-range", "1,0", "--model", "{weights}"],
    "range infinite": ["run", "--input-range", "0,inf", "--model", "{weights}"],
    "weights without arch": ["run", "--model", "{weights}"],
    "weights of another arch": ["run", "--model", "{weights}", "--arch", "mlp"],
    "unknown arch": ["run", "--model", "{weights}", "--arch", "nosuch"],
    "arch without width": ["run", "--model", "{weights}", "--arch", "small_cnn(width=0)"],
    "missing file": ["run", "--model", "nosuch.safetensors", "--arch", "small_cnn"],
    "folder as model": ["run", "--model", "{folder}"],
    "damaged safetensors": ["run", "--model", "{noise}.safetensors", "--arch", "small_cnn"],
    "damaged pt": ["run", "--model", "{noise}.pt", "--arch", "small_cnn"],
    "damaged pt2": ["run", "--model", "{noise}.pt2"],
    "factory without trust": ["run", "--model", "{code}:fine"],
    "missing factory": ["run", "--model", "{code}:nosuch", "--trust"],
    "missing module": ["run", "--model", "no.such.module:make", "--trust"],
    "untrained data": ["run", "--model", "trained(arch='nosuch')"],
    "trained badly": ["run", "--model", "trained(arch='small_cnn', steps=-1)"],
    "trained nowhere": ["run", "--model", "trained("],
}
REQUIREMENTS = (
    "", "x", ">=0.5", "accuracy", "accuracy>=", "accuracy>=x", "accuracy>=nan",
    "accuracy>=1e999", "accuracy>=-inf", "accuracy=0.5",
    "accuracy>>0.5", "nosuch>=0.5", "accuracy[>=0.5",
    "accuracy[l7(1)]>=0.5", "robust_accuracy[linf(1e400)]>=0.5", "accuracy>=0.5>=0.4", "accuracy>=8/0",
    "accuracy>=" + "9" * 5000,
)  # fmt: skip
DAMAGES = {
    "run.json empty": lambda run: (run / "run.json").write_text(""),
    "run.json a list": lambda run: (run / "run.json").write_text("[]"),
    "run.json a number": lambda run: (run / "run.json").write_text("3"),
    "run.json deep": lambda run: (run / "run.json").write_text("[" * 100_000),
    "run.json binary": lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"),
    "run.json without cells": lambda run: change(run / "run.json", cells=None),
    "run.json cells a list": lambda run: change(run / "run.json", cells=[]),
    "run.json limited a text": lambda run: change(run / "run.json", limited="yes"),
    "run.json suite a text": lambda run: change(run / "run.json", suite="s"),
    "run.json a folder": lambda run: ((run / "run.json").unlink(), (run / "run.json").mkdir()),
    "header empty": lambda run: header(run).write_text(""),
    "header a list": lambda run: header(run).write_text("[]"),
    "header deep": lambda run: header(run).write_text("[" * 100_000),
    "header digest a list": lambda run: change(header(run), digest=["a"]),
    "header digest a number": lambda run: change(header(run), digest=3),
    "header seed a text": lambda run: change(header(run), seed="zero"),
    "header scenario a list": lambda run: change(header(run), scenario=["clean"]),
    "header content a number": lambda run: change(header(run), content=1),
    "header schema a text": lambda run: change(header(run), schema="two"),
    "header schema newer": lambda run: change(header(run), schema=99),
    "header model a map": lambda run: change(header(run), model={"a": 1}),
    "rows empty": lambda run: rows(run).write_bytes(b""),
    "rows noise": lambda run: rows(run).write_bytes(b"\0" * 100),
    "rows missing": lambda run: rows(run).unlink(),
    "rows without scores": lambda run: without(run, "score"),
    "rows without confidence": lambda run: without(run, "confidence"),
    "rows a folder": lambda run: (lambda path: (path.unlink(), path.mkdir()))(rows(run)),
}
CODE = {
    "raises": "def make():\n    raise ValueError('no')",
    "own class": "class Odd(Exception): pass\ndef make():\n    raise Odd('no')",
    "own base class": "class Odd(BaseException): pass\ndef make():\n    raise Odd('no')",
    "no text": "class Odd(Exception):\n    def __str__(self): raise Odd\ndef make():\n    raise Odd",
    "raises on import": "class Odd(Exception): pass\nraise Odd",
    "syntax": "def make(:",
    "exits": "import sys\ndef make():\n    sys.exit(0)",
    "exits on import": "import sys\nsys.exit(0)",
    "ends": "import os\ndef make():\n    os._exit(0)",
    "needs an argument": "def make(x): pass",
    "returns nothing": "def make(): pass",
    "no function": "make = 3",
}


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def header(run: Path) -> Path:
    return next((run / "cells").glob("*.json"))


def rows(run: Path) -> Path:
    return next((run / "cells").glob("*.parquet"))


def without(run: Path, column: str) -> None:
    """Leave a column out of the rows, as a whole cell with its hashes."""
    store = Store(run)
    (entry,) = store.finished().values()
    kept = store.rows(entry).drop(columns=column)
    for path in (entry.rows, entry.rows.with_suffix(".json")):
        path.unlink()
    store.put(entry.cell, kept, {"seconds": 0.0, "device": "cpu", "threads": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run directory of one clean cell."""
    root = tmp_path_factory.mktemp("whole") / "run"
    data = Artifact("data", Ref.of("images", source="digits", limit=4), label="digits")
    model = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
    cell = Cell(Ref.of("clean", split="test"), "1", model, data)
    columns = {"sample": range(4), "label": 0, "pred": 0, "score": 1.0, "confidence": 0.9, "margin": 1.0, "split": "test"}
    store = Store(root)
    store.cells.mkdir(parents=True)
    store.put(cell, pd.DataFrame(columns), {"seconds": 0.0, "device": "cpu", "threads": 1})
    from robench.lineage import planned

    suite = {"name": "s", "threats": [], "attacks": []}
    told = {"suite": suite, "seed": 0, "limited": False, "versions": {}, "left_out": [], "adversarials": False}
    store.write_run({**told, "cells": {cell.digest: planned(cell)}})
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory, whole) -> dict[str, str]:
    """Files that options name."""
    from safetensors.torch import save_file

    from robench.models.weights import ARCHITECTURES, construct

    root = tmp_path_factory.mktemp("places")
    save_file(construct(ARCHITECTURES.resolve("small_cnn")).state_dict(), root / "net.safetensors")
    for suffix in ("safetensors", "pt", "pt2", "npz"):
        (root / f"noise.{suffix}").write_bytes(hashlib.sha512(b"noise").digest() * 9)
    np.savez(root / "images.npz", x=np.zeros((4, 1, 32, 32)))
    (root / "code.py").write_text("def fine(): pass")
    (root / "suite.yaml").write_text(BASE)
    (root / "empty").mkdir()
    named = {"weights": "net.safetensors", "noise": "noise", "npz": "images.npz", "code": "code.py", "suite": "suite.yaml"}
    files = {name: str(root / file) for name, file in named.items()}
    return {**files, "folder": str(root), "empty": str(root / "empty"), "run": str(whole)}


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def told(arguments: list[str], *, code: int = 2) -> str:
    """The one line that a command ends with."""
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == code, (done.exit_code, done.output[-600:], done.exception)
    lines = done.stderr.strip("\n").split("\n")
    assert len(lines) == 1 and lines[0].startswith("robench: ") and len(lines[0]) <= LINE + len("robench: "), lines
    assert "Traceback" not in done.output and "unexpected" not in lines[0] and done.stdout == ""
    return lines[0]


@pytest.mark.parametrize("name", SUITES)
def test_suites(name, tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITES[name])
    told(["run", "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", THREATS)
def test_threats(text, places, tmp_path):
    told(["run", "--suite", places["suite"], "--attack", "fgsm", "--threat", text, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks(text, places, tmp_path):
    arguments = ["--threat", "linf(0.1)", "--threat", "l2(1)", "--threat", "l1(5)", "--threat", "l0(5)"]
    told(["run", "--suite", places["suite"], *arguments, "--attack", text, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models(name, places, tmp_path, monkeypatch):
    """User models are loaded in child processes, a few seconds each."""
    monkeypatch.chdir(tmp_path)
    told([*(argument.format(**places) for argument in MODELS[name]), "--suite", places["suite"]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *rest = [argument.format(**places) for argument in OPTIONS[name]]
    if command == "run" and "--suite" not in rest:
        rest = ["--suite", places["suite"], *rest]
    told([command, *rest])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_requirements(text, whole):
    before = state(whole)
    told(["audit", str(whole), "--require", text])
    assert state(whole) == before


@pytest.mark.parametrize("command", ["report", "audit", "leaderboard"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_runs(name, command, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    DAMAGES[name](run)
    before = state(run)
    told([command, str(run), *(["--require", "accuracy>=0.5"] if command == "audit" else [])])
    assert state(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_code(name, places, tmp_path):
    (tmp_path / "code.py").write_text(CODE[name])
    arguments = ["--trust", "--model", f"{tmp_path / 'code.py'}:make", "--out", str(tmp_path / "run")]
    told(["run", "--suite", places["suite"], *arguments])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["run", "--suite", "nosuch"], ["lst"], ["audit", "nosuch", "--require", "x>=1"]])
def test_a_program_ends_with_one_line(arguments, tmp_path):
    command = [sys.executable, "-c", "from robench.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and done.stderr.startswith("robench: ")


def test_the_whole_run_is_fine(whole):
    """What the damaged ones are made from."""
    assert CliRunner().invoke(cli.main, ["leaderboard", str(whole)]).exit_code == 0
    found = CliRunner().invoke(cli.main, ["audit", str(whole), "--require", "accuracy>=0.1"])
    assert found.exit_code in (0, 1, 3), "a finding, not an error"
