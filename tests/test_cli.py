"""The command line, in this process: exit codes, texts without tracebacks, resume, reports and gates."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from robench import catalog, cli, load
from robench.api import _header, plan_run
from robench.cli import main
from robench.errors import RobenchError
from robench.metrics.table import tidy
from robench.spec import Cell
from robench.store import Store
from robench.suite import PACKAGED, parse_suite, read_suite
from robench.zoo.entries import WEIGHTS, ZOO

TINY = """
name: tiny
limit: 60
models: [digits-standard, digits-pgd-at, digits-trap]
threats: [linf(0.1)]
attacks: [noise(draws=3), pgd(steps=10), transfer(source='digits-standard')]
"""
HERE = ("--workers", "1", "--device", "cpu")


def robench(*args: str, code: int = 0) -> Result:
    """The command's result; its exit code must be as said and nothing may have escaped."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    escaped = result.exception
    assert escaped is None or isinstance(escaped, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """(suite, run directory, result of the first run)."""
    folder = tmp_path_factory.mktemp("cli")
    suite = folder / "tiny.yaml"
    suite.write_text(TINY)
    return suite, folder / "run", robench("run", "--suite", suite, "--out", folder / "run", *HERE)


def test_help_names_every_verb():
    for verb in ("run", "report", "leaderboard", "audit", "list", "show", "doctor", "zoo"):
        assert verb in robench("--help").output
        assert "Usage" in robench(verb, "--help").output


def test_version_is_the_package_s():
    import robench as package

    assert package.__version__ in robench("--version").output


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom robench.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'matplotlib', 'art', 'captum'} & set(sys.modules)\nassert not heavy, heavy"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_list_names_kinds_and_entries():
    kinds = robench("list").output.split()
    assert set(kinds) >= {*catalog.TABLES, "models", "suites"}
    for kind in kinds:
        assert robench("list", kind).output.strip(), kind
    assert "pgd" in robench("list", "attacks").output
    assert "digits-trap" in robench("list", "models").output


@pytest.mark.parametrize("form", ["json", "csv", "md"])
def test_list_in_other_formats(form):
    text = robench("list", "attacks", "--format", form).output
    assert "pgd" in text and "name" in text
    if form == "json":
        assert {row["name"] for row in json.loads(text)} == {*catalog.ATTACKS, "art:NAME"}


def test_zoo_is_another_name_of_the_models_and_every_model_and_suite_has_a_line():
    assert robench("list", "zoo").output == robench("list", "models").output
    for kind in ("models", "suites"):
        assert all(len(line.split()) > 4 for line in robench("list", kind).output.splitlines())


def test_every_listed_name_can_be_shown():
    for kind in robench("list").output.split():
        names = [row["name"] for row in json.loads(robench("list", kind, "--format", "json").output)]
        for name in names:
            shown = robench("show", kind, name.partition(":")[0]).output
            assert name.partition(":")[0] in shown and "ZooEntry" not in shown and "Ref(" not in shown
    assert "CLASS" in robench("show", "data", "folder").output


def test_dry_run_loads_trusted_code_and_checks_models_before_it_prints(tiny, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))\n")
    args = ["run", "--suite", tiny[0], "--model", f"{code}:make", "--dry-run", *HERE]
    refused = robench(*args, code=2).output
    assert "--trust" in refused and "cells" not in refused
    assert "nothing was computed" in robench(*args, "--trust").output
    code.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 3))\n")
    refused = robench(*args, "--trust", code=2).output
    assert "must be 10 per image" in refused and "cells" not in refused


def test_show_tells_defaults_models_and_suites():
    assert "steps = 40" in robench("show", "attack", "pgd").output
    assert "pgd_at" in robench("show", "model", "digits-pgd-at").output
    assert "name: smoke" in robench("show", "suite", "smoke").output


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["list", "atacks"], "attacks"),
        (["show", "attack", "pdg"], "pgd"),
        (["show", "atack", "pgd"], "attacks"),
        (["show", "model", "digits-standart"], "digits-standard"),
        (["show", "suite", "smok"], "smoke"),
        (["run", "--suite", "smok"], "smoke"),
        (["run", "--suite", "smoke", "--model", "digits-standart"], "digits-standard"),
        (["run", "--suite", "smoke", "--attack", "pdg"], "pgd"),
        (["run", "--suite", "smoke", "--attack", "pgd(stpes=1)"], "steps"),
        (["run", "--suite", "smoke", "--attack", "pgd(1)"], "keyword"),
        (["run", "--suite", "smoke", "--threat", "linf(8)"], "did you mean 8/255?"),
        (["run", "--suite", "smoke", "--threat", "l3(1)"], "linf"),
        (["run", "--suite", "smoke", "--defense", "bit_deph"], "bit_depth"),
        (["run", "--suite", "smoke", "--scenario", "evasoin"], "evasion"),
        (["run", "--suite", "smoke", "--data", "digit"], "digits"),
        (["run", "--suite", "smoke", "--device", "gpu"], "cuda"),
        (["run", "--suite", "smoke", "--width", "33"], "64"),
        (["run", "--suite", "smoke", "--mean", "a,b"], "0.49"),
        (["run", "--suite", "smoke", "--input-range", "0"], "LOW,HIGH"),
        (["run", "--suite", "smoke", "--data", "npz:missing.npz"], "missing.npz"),
        (["run", "--suite", "smoke", "--data", "folder:missing"], "missing"),
        (["run", "--suite", "smoke", "--model", "missing.safetensors"], "missing.safetensors"),
        (["zoo", "build", "digits-standart"], "digits-standard"),
        (["report", "nowhere"], "run directory"),
        (["leaderboard", "nowhere"], "run directory"),
        (["audit", "nowhere", "--require", "robust_accuracy>=0.4"], "run directory"),
    ],
)
def test_bad_names_exit_2_with_a_remedy_and_write_nothing(args, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--out", "out"] if args[0] == "run" else []
    result = robench(*args, *more, code=2)
    assert hint in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["run", "--limit", "0"], ["run", "--workers", "0"], ["run", "--nosuch"], ["nosuch"]])
def test_usage_errors_exit_2(args):
    robench(*args, code=2)


def test_unknown_key_of_a_suite_exits_2_with_a_suggestion(tmp_path):
    suite = tmp_path / "s.yaml"
    suite.write_text("name: s\natacks: [fgsm]")
    assert "did you mean 'attacks'?" in robench("run", "--suite", suite, "--out", tmp_path / "out", code=2).output
    assert not (tmp_path / "out").exists()


def test_code_of_the_user_needs_trust(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import pathlib\nimport torch\npathlib.Path(__file__).with_name('ran').touch()\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))\n"
    )
    suite = tmp_path / "s.yaml"
    suite.write_text("name: s\nlimit: 4\nthreats: [linf(0.1)]\nattacks: [fgsm]\n")
    args = ["run", "--suite", suite, "--model", f"{code}:make", *HERE, "--out", tmp_path / "out"]
    refused = CliRunner().invoke(main, [str(a) for a in args])
    assert refused.exit_code in (2, 3) and "--trust" in refused.output
    assert not (tmp_path / "ran").exists()
    robench(*args, "--trust")
    assert (tmp_path / "ran").exists()


def test_dry_run_computes_nothing(tiny, tmp_path):
    result = robench("run", "--suite", tiny[0], "--dry-run", "--out", tmp_path / "out", *HERE)
    first = result.stdout.splitlines()[0]
    assert "18 cells, about" in first and "on an idle machine" in first and "nothing was computed" in first
    assert "6  digits-trap" in result.output and "pgd(steps=10)" not in result.output
    assert "9  evasion" in result.output and "3  sentinel" in result.output
    assert not (tmp_path / "out").exists()


def test_first_run_computes_and_reports(tiny):
    _, out, result = tiny
    assert "18 cells computed, 0 kept" in result.output
    for model in ("digits-standard", "digits-pgd-at", "digits-trap"):
        assert model in result.output
    for name in ("report.html", "table.csv", "table.parquet", "table.md", "run.json"):
        assert (out / name).is_file(), name
    assert "suspicious" in (out / "table.csv").read_text()


def test_second_run_computes_no_cell(tiny):
    suite, out, _ = tiny
    before = sorted(p.name for p in (out / "cells").iterdir())
    result = robench("run", "--suite", suite, "--out", out, *HERE)
    assert "0 cells computed, 18 kept" in result.output
    assert sorted(p.name for p in (out / "cells").iterdir()) == before


def test_report_runs_no_model(tiny, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("a model was run")

    _, out, _ = tiny
    (out / "report.html").unlink()
    monkeypatch.setattr("robench.runner.perform", refuse)
    monkeypatch.setattr("robench.workshop.load", refuse)
    robench("report", out)
    assert "digits-trap" in (out / "report.html").read_text()


@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
def test_leaderboard_in_every_format(tiny, form):
    result = CliRunner().invoke(main, ["leaderboard", str(tiny[1]), "--format", form])
    assert result.exit_code == 0, result.output
    assert "digits-pgd-at" in result.stdout
    if form == "json":
        assert {row["model"] for row in json.loads(result.stdout)} >= {"digits-pgd-at", "digits-trap"}


def test_leaderboard_ranks_the_robust_first_and_the_trap_not_at_all(tiny):
    rows = json.loads(CliRunner().invoke(main, ["leaderboard", str(tiny[1]), "--format", "json"]).stdout)
    order = [row["model"] for row in rows]
    assert order.index("digits-pgd-at") < order.index("digits-standard") < order.index("digits-trap")
    (trap,) = (row for row in rows if row["model"] == "digits-trap")
    assert "suspicious" in json.dumps(trap)


@pytest.mark.parametrize(
    ("requirement", "model", "code"),
    [
        ("robust_accuracy[linf(0.1)]>=0.4", "digits-pgd-at", 0),
        ("robust_accuracy[linf(0.1)]>=0.999", "digits-pgd-at", 1),
        ("robust_accuracy[linf(0.1)]>=0.4", "digits-standard", 1),
        ("robust_accuracy[linf(0.1)]>=0", "digits-trap", 1),
        ("robust_accuracy[l2(9)]>=0", "digits-pgd-at", 2),
        ("robust_accuracy[linf(0.10)]>=0.4", "digits-pgd-at", 0),
        ("robust_accuracy>=0.4", "digits-pgd-at", 0),
        ("robust_accuracy>=nan", "digits-pgd-at", 2),
        ("robust_accuracy>=1e999", "digits-pgd-at", 2),
        ("robust_accuracy>=0.4", "digits-pgd-att", 2),
        ("shifted_accuracy>=0.4", "digits-pgd-at", 2),
        ("rank<=2", "digits-pgd-at", 0),
        ("accuracy>=0.5", "digits-standard", 0),
        ("robust_accuracy>0.4 please", "digits-pgd-at", 2),
        ("robustness>=0.4", "digits-pgd-at", 2),
    ],
)
def test_audit_holds_the_lower_end_against_the_bound(tiny, requirement, model, code):
    robench("audit", tiny[1], "--require", requirement, "--model", model, code=code)


def test_audit_of_no_model_never_passes(tiny):
    assert "digits-mlp" not in robench("audit", tiny[1], "--require", "accuracy>=0", "--model", "nosuch", code=2).output
    said = robench("audit", tiny[1], "--require", "accuracy>=0", "--model", "digits-trapp", code=2).output
    assert "did you mean 'digits-trap'?" in said
    assert "linf(0.1)" in robench("audit", tiny[1], "--require", "robust_accuracy[l2(9)]>=0", code=2).output


def test_audit_says_at_which_threat_it_judged(tiny):
    said = robench("audit", tiny[1], "--require", "robust_accuracy>=0.4", "--model", "digits-pgd-at").output
    assert "passed    digits-pgd-at on digits: robust_accuracy>=0.4" in said and "at linf(0.1), judged" in said


UNTRAINED = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
"""


@pytest.mark.parametrize("kind", ["weights", "code"])
def test_audit_says_what_it_judged_and_whether_the_file_is_another_now(tmp_path, kind):
    import safetensors.torch

    from robench.models import fresh

    own, out = tmp_path / ("net.safetensors" if kind == "weights" else "m.py"), tmp_path / "run"
    safetensors.torch.save_file(fresh("mlp(hidden=8)", seed=0).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "m.py").write_text(UNTRAINED)
    (tmp_path / "s.yaml").write_text("name: s\nlimit: 40\n")
    named = ["--model", f"num={own}", "--arch", "mlp(hidden=8)"] if kind == "weights" else ["--model", f"num={own}:make"]
    robench("run", "--suite", tmp_path / "s.yaml", "--scenario", "clean", "--out", out, "--trust", *named, *HERE)
    gate = ("audit", out, "--require", "accuracy>=0", "--model", "num")
    said = robench(*gate, code=1)
    assert "labels or preparation are doubted" in said.stdout and "WARNING: num: " in said.stderr
    flat = " ".join(said.stdout.split())
    assert str(own) in said.stdout.replace("\n", "").replace(" ", "") and "UTC" in flat and "differs" not in flat
    if kind == "weights":
        assert f"sha256 {hashlib.sha256(own.read_bytes()).hexdigest()[:12]}, measured 20" in flat
    with own.open("ab") as file:
        file.write(b"\n")
    assert "the file differs now" in " ".join(robench(*gate, code=1).stdout.split())
    own.unlink()
    assert "the file is not there now" in " ".join(robench(*gate, code=1).stdout.split())


def test_audit_names_the_weights_of_the_zoo(tiny):
    said = robench("audit", tiny[1], "--require", "accuracy>=0.1", "--model", "digits-pgd-at").stdout
    assert f"judged: digits-pgd-at: digits-pgd-at, sha256 {ZOO['digits-pgd-at'].sha256[:12]}, measured 20" in said


def test_audit_escapes_for_what_reads_it(tiny):
    """A terminal shows ``>=`` as it is, Markdown would not; readers of csv and json get the findings and nothing else."""
    gate = ("audit", tiny[1], "--require", "accuracy>=0.1", "--model", "digits-pgd-at", "--format")
    assert "accuracy&gt;=0.1" in robench(*gate, "md").output
    (finding,) = json.loads(robench(*gate, "json").stdout)
    assert finding["requirement"] == "accuracy>=0.1" and finding["passed"] is True
    assert [line.split(",")[0] for line in robench(*gate, "csv").stdout.splitlines()] == ["model", "digits-pgd-at"]


def test_limit_marks_the_run_and_fails_every_audit(tiny, tmp_path):
    robench("run", "--suite", tiny[0], "--model", "digits-pgd-at", "--limit", 8, "--out", tmp_path, "--width", 16, *HERE)
    assert "limited" in (tmp_path / "table.csv").read_text()
    robench("audit", tmp_path, "--require", "robust_accuracy[linf(0.1)]>=0", code=1)


def test_options_replace_attacks_threats_and_scenarios(tiny, tmp_path):
    args = ["run", "--suite", tiny[0], "--model", "digits-pgd-at", "--dry-run", "-v", *HERE]
    text = robench(*args, "--attack", "fgsm", "--threat", "linf(0.2)").output
    assert "fgsm" in text and "linf(0.2)" in text and "transfer" not in text and "linf(0.1)" not in text
    assert "evasion" not in robench(*args, "--scenario", "clean").output
    assert "bit_depth(bits=3)" in robench(*args, "--defense", "bit_depth(bits=3)").output


def test_interrupt_exits_130_and_the_same_command_goes_on(tiny, tmp_path, monkeypatch):
    from robench import runner

    suite, _, _ = tiny
    args = ["run", "--suite", suite, "--out", tmp_path, *HERE, "--scenario", "clean"]
    perform, calls = runner.perform, []

    def interrupted(job):
        calls.extend([job] if isinstance(job.work, Cell) else [])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return perform(job)

    monkeypatch.setattr(runner, "perform", interrupted)
    result = robench(*args, code=130)
    assert "goes on where it stopped" in result.output
    assert len(Store(tmp_path).finished()) == 2
    assert not list(tmp_path.rglob(".*.robench-tmp"))
    monkeypatch.undo()
    assert "4 cells computed, 2 kept" in robench(*args).output


def test_failing_cell_exits_3_and_stays_to_do(tiny, tmp_path, monkeypatch):
    from robench import runner

    suite, _, _ = tiny
    args = ["run", "--suite", suite, "--out", tmp_path, *HERE, "--scenario", "clean"]
    run_cell = runner.run_cell

    def failing(cell, context):
        if cell.model.label == "digits-trap":
            raise ValueError("planted")
        return run_cell(cell, context)

    monkeypatch.setattr(runner, "run_cell", failing)
    result = robench(*args, code=3)
    assert "failed: clean" in result.output and "ValueError: planted" in result.output
    assert "digits-pgd-at" in result.output
    assert len(list((tmp_path / "failed").iterdir())) == 2
    monkeypatch.undo()
    assert "2 cells computed, 4 kept" in robench(*args).output


def test_samples_that_no_attack_could_judge_exit_3(tiny, tmp_path, monkeypatch):
    from robench.attacks import _fgsm

    def crash(victim, x, y, *, threat, seeds, **params):
        raise RuntimeError("planted")

    monkeypatch.setattr(_fgsm, "fgsm", crash)
    args = ["run", "--suite", tiny[0], "--model", "digits-pgd-at", "--attack", "fgsm", "--out", tmp_path, "--workers", 1]
    robench(*args, code=3)
    robench("audit", tmp_path, "--require", "robust_accuracy[linf(0.1)]>=0", code=1)


def test_out_in_use_exits_2(tiny):
    suite, out, _ = tiny
    with Store(out).locked():
        assert "one run at a time" in robench("run", "--suite", suite, "--out", out, code=2).output


def test_environment_stands_in_for_options(tiny, monkeypatch):
    monkeypatch.setenv("ROBENCH_RUN_SUITE", "smok")
    assert "smok" in robench("run", code=2).output


def test_doctor_names_what_is_there():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code in (0, 1)
    for word in ("python", "torch", "cuda", "precision", "free disk"):
        assert word in result.output


@pytest.mark.slow
def test_smoke_runs_end_to_end_within_its_minute(tmp_path):
    robench("run", "--suite", "smoke", "--out", tmp_path, *HERE)
    page = (tmp_path / "report.html").read_text()
    doubted = page.partition("Unreliable results:")[2].partition(".</strong>")[0]
    assert "leads 2 ranked models" in page and "digits-pgd-at" not in doubted, "a page must not doubt the model that leads"
    assert not re.search(r"digits-standard at linf", doubted)
    assert "0 cells computed" in robench("run", "--suite", "smoke", "--out", tmp_path, *HERE).output


def test_a_users_model_is_seen_first_and_one_that_does_not_fit_leaves_nothing(tiny, tmp_path):
    """The clean accuracy through the wrapped path is said before anything is attacked."""
    weights = WEIGHTS / "digits-standard.safetensors"
    args = ("run", "--suite", tiny[0], "--limit", 8, "--width", 16, "--model", weights, "--workers", "1")
    said = robench(*args, "--arch", "small_cnn", "--out", tmp_path / "good").stderr
    assert "clean accuracy" in said and said.index("clean accuracy") < said.index("cells")
    robench(*args, "--arch", "small_cnn(width=8)", "--out", tmp_path / "bad", code=2)
    assert not (tmp_path / "bad").exists()


def test_a_worst_case_without_one_attack_is_pending_and_after_a_failure_unknown(tiny, tmp_path):
    """A run that lacks one attack must not show the worst case over the others as its own."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny[1], copy)
    gate = ("audit", copy, "--model", "digits-pgd-at", "--require", "robust_accuracy[linf(0.1)]>=0.1")
    robench(*gate)
    for header in (copy / "cells").glob("*.json"):
        about = json.loads(header.read_text())
        rows = pd.read_parquet(header.with_suffix(".parquet"))
        if about["model"] == "digits-pgd-at" and "attack" in rows and rows["attack"].iloc[0].startswith("pgd"):
            header.unlink()
    assert "pending: no result yet of 1 evasion" in robench(*gate, code=3).output
    table = tidy(load(copy))
    lost = table[(table["model"] == "digits-pgd-at") & (table["attack"] == "worst") & (table["metric"] == "robust_accuracy")]
    assert lost["value"].isna().item() and lost["status"].item() == "pending"
    page = robench("report", copy).output and (copy / "report.html").read_text()
    assert "This run is not finished: 1 cells have no result yet (1 evasion)" in page and "Failed" not in page
    board = json.loads(CliRunner().invoke(main, ["leaderboard", str(copy), "--format", "json"]).stdout)
    (line,) = (r for r in board if r["model"] == "digits-pgd-at")
    assert line["rank"] == "-" and line["validity"].startswith("pending")
    (copy / "failed").mkdir(exist_ok=True)
    (digest,) = load(copy)["unfinished"]["cell"]
    (copy / "failed" / f"{digest}.json").write_text(json.dumps({"error": "planted", "skipped": False}))
    assert "invalid: " in robench(*gate, code=1).output
    table = tidy(load(copy))
    lost = table[(table["model"] == "digits-pgd-at") & (table["attack"] == "worst") & (table["metric"] == "robust_accuracy")]
    assert lost["value"].item() == 0 and lost["n_unknown"].item() > 0 and lost["status"].item() == "unknown"


def test_a_model_without_any_result_is_pending(tiny, tmp_path):
    """A planned model that left nothing is told as such; a name that was never planned is refused."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny[1], copy)
    for header in (copy / "cells").glob("*.json"):
        if json.loads(header.read_text())["model"] == "digits-standard":
            header.unlink()
    require = ("--require", "accuracy>=0.1")
    said = robench("audit", copy, *require, code=3).output
    assert re.search(r"undecided digits-standard .*\n +pending: no result yet", said)
    board = json.loads(robench("leaderboard", copy, "--format", "json").stdout)
    (shown,) = [r for r in board if r["model"] == "digits-standard"]
    assert shown["rank"] == "-" and shown["validity"].startswith("pending")
    assert "must be a model of" in robench("audit", copy, *require, "--model", "digits-x", code=2).output


def test_finished_cells_that_a_run_does_not_ask_for_are_told(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny[1], copy)
    said = robench("run", "--suite", tiny[0], "--scenario", "clean", "--out", copy, *HERE).stderr
    assert "finished cells of this folder are no part of this run" in said


def test_two_releases_under_one_name_are_two_lines_and_one_release_in_two_runs_is_one(tiny, tmp_path):
    """Files of one name with other weights in two runs; the same file under two names in a third."""
    args = ("--suite", tiny[0], "--scenario", "clean", "--arch", "small_cnn", *HERE)
    for release, weights in (("v1", "digits-standard"), ("v2", "digits-pgd-at")):
        (tmp_path / release).mkdir()
        shutil.copy(WEIGHTS / f"{weights}.safetensors", tmp_path / release / "net.safetensors")
        robench("run", *args, "--model", tmp_path / release / "net.safetensors", "--out", tmp_path / "runs" / release)
    both = [tmp_path / "runs" / release for release in ("v1", "v2")]
    rows = json.loads(CliRunner().invoke(main, ["leaderboard", *map(str, both), "--format", "json"]).stdout)
    assert {row["model"] for row in rows} == {"net.safetensors [v1]", "net.safetensors [v2]"}
    shutil.copytree(both[0], tmp_path / "runs" / "again")
    same = [str(both[0]), str(tmp_path / "runs" / "again")]
    rows = json.loads(CliRunner().invoke(main, ["leaderboard", *same, "--format", "json"]).stdout)
    assert [row["model"] for row in rows] == ["net.safetensors"]
    named = [f"{release}={tmp_path / release / 'net.safetensors'}" for release in ("v1", "v2")]
    robench("run", *args, "--model", named[0], "--model", named[1], "--out", tmp_path / "runs" / "named")
    rows = json.loads(CliRunner().invoke(main, ["leaderboard", str(tmp_path / "runs" / "named"), "--format", "json"]).stdout)
    assert {row["model"] for row in rows} == {"v1", "v2"}


def test_an_unexpected_error_is_one_line_a_log_and_exit_code_70(monkeypatch, tmp_path):
    def wrong(name):
        raise ZeroDivisionError("no\nway")

    monkeypatch.setattr("robench.suite.read_suite", wrong)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "no run").mkdir()
    done = CliRunner().invoke(cli.main, ["run", "--out", str(tmp_path / "no run")])
    assert done.exit_code == 70 and done.stdout == "" and done.stderr.count("\n") == 1
    (log,) = tmp_path.glob("robench-*.log")
    assert str(log) in done.stderr and "ZeroDivisionError: no way" in done.stderr and log.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in log.read_text() and "Traceback" not in done.output


def test_the_log_of_an_unexpected_error_lies_in_the_run_directory(tiny, monkeypatch):
    def wrong(*args, **more):
        raise ZeroDivisionError("no way")

    monkeypatch.setattr("robench.reports.write.write_reports", wrong)
    for command in (["report", tiny[1]], ["run", "--suite", tiny[0], "--out", tiny[1], *HERE]):
        said = robench(*command, code=70).stderr
        (log,) = tiny[1].glob("robench-*.log")
        assert str(log) in said and "no way" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
        log.unlink()


@pytest.mark.parametrize("name", ["report.html", "table.csv", "security_curve.svg", "pareto.png", "leaderboard.md"])
def test_files_of_others_are_not_overwritten(tiny, tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    said = robench("run", "--suite", tiny[0], "--out", tmp_path, *HERE, code=2).output
    assert name in said and "would overwrite" in said and (tmp_path / name).read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "notes.txt"])


def test_every_file_that_a_report_writes_is_looked_for(tiny, tmp_path):
    from robench.errors import ConfigError
    from robench.reports.write import require_free

    written = [p.name for p in tiny[1].iterdir() if p.is_file() and p.name not in ("run.json", ".lock")]
    assert {"report.html", "table.parquet", "leaderboard.csv", "security_curve.png"} <= {*written, "security_curve.png"}
    for name in written:
        (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=re.escape(name)):
            require_free(tmp_path)
        (tmp_path / name).unlink()
    require_free(tmp_path)


def test_every_file_of_a_run_is_documented(tiny):
    pages = (Path(__file__).parent.parent / "docs" / "suites.md").read_text()
    for path in tiny[1].iterdir():
        names = {f"`{path.name}`", f"`{path.name}/`", f"`*{path.suffix}`"}
        assert path.name.startswith(".") or any(name in pages for name in names), path.name


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_a_command_is_wider_than_the_screen(tiny, monkeypatch, width):
    """Only words that cannot be broken, such as paths, may be."""
    monkeypatch.setenv("COLUMNS", str(width))
    commands = [
        ("leaderboard", tiny[1]),
        ("audit", tiny[1], "--require", "robust_accuracy>=0.4", "--require", "ece<=0.5"),
        *([("list", "attacks")] if width == 80 else []),
    ]
    for command in commands:
        result = CliRunner().invoke(main, [str(part) for part in command])
        for line in result.output.splitlines():
            assert len(line) <= width or len(line.split()[-1]) > width - 20, line
    if width == 80:
        assert len(robench("leaderboard", tiny[1], "--format", "csv").stdout.splitlines()[0]) > 120, "data is never broken"


def test_a_limit_that_leaves_the_suite_as_it_is_marks_nothing(tiny):
    """The suite's own number of images, or more than the data has, is the run without ``--limit``."""
    suite, whole = read_suite(str(tiny[0])), parse_suite("name: all\nmodels: [digits-standard]\n")

    def header(suite, limit):
        plan, _ = plan_run(suite, limit=limit)
        return _header(plan, suite, (), seed=0, images=False)

    plain = header(suite, None)
    assert header(suite, 60) == plain and plain["limited"] is False and plain["limit"] is None
    assert [(header(suite, n)["limited"], header(suite, n)["limit"]) for n in (20, 61)] == [(True, 20), (True, 61)]
    assert [header(whole, n)["limited"] for n in (None, 20, 5000)] == [False, True, False]


def test_clean_images_alone_are_ranked_by_clean_accuracy(tiny, tmp_path):
    robench("run", "--suite", tiny[0], "--scenario", "clean", "--out", tmp_path, *HERE)
    rows = json.loads(robench("leaderboard", tmp_path, "--format", "json").stdout)
    assert {row["n"] for row in rows} == {60} and "-" not in {row["rank"] for row in rows}


def test_an_exit_in_foreign_code_is_no_success(monkeypatch):
    monkeypatch.setattr("robench.suite.read_suite", lambda name: sys.exit(0))
    done = CliRunner().invoke(cli.main, ["run"])
    assert done.exit_code == 70 and "sys.exit(0)" in done.stderr


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ("| true; exit ${PIPESTATUS[0]}", 141),
        (">/dev/full", 2),
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
    ],
)
def test_streams_that_cannot_be_written_end_quietly(streams, code):
    """A closed pipe, a full disk and closed streams: no traceback."""
    command = f"'{sys.executable}' -c 'from robench.cli import main; main()' list attacks {streams}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1


@pytest.mark.parametrize("gap", [0.05, *(pytest.param(gap, marks=pytest.mark.slow) for gap in (0.0, 0.15))])
def test_a_second_interrupt_ends_at_once_without_a_traceback(gap, tmp_path):
    program = "import time, robench.suite as s; s.read_suite = lambda n: (print('go', flush=True), time.sleep(60))\n"
    command = [sys.executable, "-c", program + "from robench.cli import main; main()", "run"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "go\n"
    run.send_signal(signal.SIGINT)
    time.sleep(gap)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in errors and errors.count("\n") <= 1


def test_help_names_every_packaged_suite_and_what_a_dry_run_does():
    told = " ".join(robench("run", "--help").output.split())
    assert all(name in told.partition("--suite")[2].partition("--model")[0] for name in PACKAGED)
    assert "compute nothing" not in told and "Models are tried out" in told


def test_the_readme_names_every_exit_code():
    text = (Path(__file__).parent.parent / "README.md").read_text().partition("Exit codes:")[2].partition("```")[0]
    codes = {cli.BROKEN_PIPE, cli.FAILED_CELLS, cli.UNEXPECTED, RobenchError.exit_code, 0, 1, 130}
    assert codes <= {int(number) for number in re.findall(r"\d+", text)}
