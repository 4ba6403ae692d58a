"""Every command and snippet of README and docs works as printed: planned for each, and run for real where it is slow.

What is replaced, and only here: ``SMALLER`` (sizes in snippets), ``SMALL_SUITE`` (suites in runs that compute), ``MADE``
(data and weights that a reader has and a test has to make), and ``NOT_RUN`` (commands that install or train for minutes).
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

import robench
from robench import api, suite
from robench.cli import main
from robench.models.weights import fresh
from robench.spec import Ref

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALLER = {"limit=64": "limit=4", "queries=1000": "queries=50"}
"""Sizes in snippets -> sizes in the test."""
SMALL_SUITE = {"limit": 10, "explain_limit": 4}
"""What a suite's YAML says in runs that compute; scarcity and compression are cut in ``small``."""
NOT_RUN = {
    "python3 -m venv": "makes an environment",
    ".": "enters an environment",
    "pip install": "installs; its files and extras must exist",
    "make": "installs and runs everything; its target must exist",
    "python -m pytest": "runs for an hour; its files must exist",
    "python tests/traps/study.py": "runs for an hour; its options must be known",
    "python tests/traps/masked.py": "runs for an hour; its options must be known",
    "python -m robench.benchmark": "trains and compares for an hour; its options must be known",
    "python -m robench.stepcost": "measures time; its options must be known",
}
"""Beginning of a command -> why it is not run, and what is checked of it."""


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every line of every shell block, continued lines joined, comments removed."""
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language not in ("sh", "bash", "console"):
                continue
            for line in text.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
                lexer.whitespace_split, lexer.commenters = True, "#"
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if word and set(word) <= set(";&"):
                        if words:
                            yield page.name, shlex.join(words)
                        words = []
                    else:
                        words.append(word)


COMMANDS = list(dict.fromkeys(commands()))
RUNS = [(page, text) for page, text in COMMANDS if text.startswith("robench run ")]
OTHERS = [(page, text) for page, text in COMMANDS if text.startswith("robench ") and not text.startswith("robench run ")]
REST = [(page, text) for page, text in COMMANDS if not text.startswith("robench ")]


def photos(path: Path, classes: list[str], each: int = 2) -> None:
    """A folder of 32 x 32 colour noise."""
    rng = np.random.default_rng(len(path.name))
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path / name / f"{i}.png")


def cifar(path: Path) -> None:
    """CIFAR-10 in its binary layout, ten images a file."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (path / name).write_bytes(b"".join(bytes([i]) + rng.bytes(3072) for i in range(10)))


def mnist(path: Path) -> None:
    """MNIST as IDX files, twenty images a split."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        (path / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 20, 28, 28) + rng.bytes(20 * 784))
        (path / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 20) + bytes(i % 10 for i in range(20)))


CLASSES = [f"class{i}" for i in range(10)]
MADE = {
    "photos": lambda path: photos(path, CLASSES, 4),
    "night_photos": lambda path: photos(path, CLASSES),
    "toys": lambda path: photos(path, ["ball", "doll"], 4),
    "groups.csv": lambda path: path.write_text(
        "sample,group\n" + "".join(f"{i},{'odd' if i % 2 else 'even'}\n" for i in range(40))
    ),
    "data": cifar,
    "data/mnist": mnist,
}
"""What the commands take for granted in the current folder -> how it is made."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader of the README has, and two finished small runs, runs/quick and runs/full."""
    folder = tmp_path_factory.mktemp("reader")
    for name, make in MADE.items():
        make(folder / name)
    text = "{name: quick, limit: 30, models: [%s], threats: [linf(0.1)], attacks: [noise(draws=5), pgd(steps=10)]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, models in (("quick", "digits-standard, digits-trades"), ("full", "digits-trades, digits-pgd-at")):
            (folder / "tiny.yaml").write_text(text % models)
            ran(["run", "--suite", "tiny.yaml", "--out", f"runs/{name}", "--width", "16", "--workers", "1",
                 "--save-adversarials"])  # fmt: skip
    return folder


def ran(args: list[str], codes: tuple[int, ...] = (0,)) -> Result:
    """The result of a command, which must end with one of these exit codes and without a traceback."""
    result = CliRunner().invoke(main, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in codes, result.output
    assert "Traceback" not in result.output
    return result


def weights(args: list[str], *, width: int | None = None) -> None:
    """Make the weight files of a command, of its architecture and for its data."""
    named = [args[i + 1].rpartition("=")[2] for i, word in enumerate(args) if word == "--model"]
    files = [name for name in named if name.endswith(".safetensors")]
    if files:
        ref = Ref.parse(args[args.index("--arch") + 1])
        colour = any("folder:" in word or "cifar" in word for word in args)
        known = {"in_channels": 3 if colour else 1} | ({"width": width} if width and ref.name == "resnet18" else {})
        for seed, name in enumerate(files):
            safetensors.torch.save_file(fresh(ref.with_defaults(known), seed=seed).state_dict(), name)


def small(name: str, *, original=suite.packaged) -> str:
    """A packaged suite's YAML, cut to what a test can compute."""
    told = {**yaml.safe_load(original(name)), **SMALL_SUITE}
    if told.get("scarcity"):
        kept = {"fractions": [0.5, 1.0], "arms_at": [0.5], "seeds": [0], "steps": 3}
        told["scarcity"] = {**{k: v for k, v in told["scarcity"].items() if k in ("arch", "threats", "attacks")}, **kept}
        told["scarcity"]["recipes"] = ["standard"]
    if told.get("compression"):
        told["compression"]["arms"] = told["compression"]["arms"][:2]
    return yaml.safe_dump({**told, "models": told.get("models", [])[:2]})


def test_every_page_has_its_commands_found():
    assert len(RUNS) >= 12 and len(OTHERS) >= 6 and len(REST) >= 6
    assert any("\\" not in text and "trained(" in text for _, text in RUNS)


@pytest.mark.parametrize(("page", "text"), RUNS)
def test_every_run_can_be_planned_as_printed(page, text, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("robench.estimate._seconds_per_forward", lambda *args: 1e-4)
    monkeypatch.setattr("robench.estimate._share_left", lambda *args: 0.5)
    monkeypatch.setattr("robench.estimate.isolated", lambda function, argument, what: function(argument))
    args = shlex.split(text)[1:]
    weights(args)
    assert "nothing was computed" in ran([*args, *([] if "--dry-run" in args else ["--dry-run"])]).output


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), [(p, t) for p, t in RUNS if "--dry-run" not in t])
def test_every_run_runs(page, text, place, monkeypatch, tmp_path):
    """With the suites of ``small``, nets of width 8 and trainings of 3 steps."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(suite, "packaged", small)
    text = re.sub(r"\bsteps=\d+\)(?=[\"'])", "steps=3)", text).replace(
        "resnet18(num_classes=10)", "resnet18(num_classes=10, width=8)"
    )
    args = shlex.split(text)[1:]
    weights(args, width=8)
    out = [] if "--out" in args else ["--out", str(tmp_path / "run")]
    args = [str(tmp_path / "out") if word.startswith("runs/") else word for word in args]
    done = ran([*args, *out, "--workers", "1"])
    assert "report:" in done.output and "Failed" not in done.output


@pytest.mark.parametrize(("page", "text"), OTHERS)
def test_every_other_command_works_as_printed(page, text, place, monkeypatch):
    monkeypatch.chdir(place)
    args = shlex.split(text)[1:]
    if args[:2] == ["zoo", "build"]:
        assert set(args[3:]) <= {"--data", "cifar10(root='data')"}
        return
    done = ran(args, (0, 1) if args[0] in ("audit", "doctor") else (0,))
    assert done.output.strip()


@pytest.mark.parametrize(("page", "text"), REST)
def test_every_command_that_is_not_run_names_what_exists(page, text):
    known = next((begin for begin in NOT_RUN if text.startswith(begin)), None)
    assert known, f"{text}: neither a robench command nor in NOT_RUN"
    words = shlex.split(text)
    if known == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif known == "pip install":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words[2:]:
            named = re.search(r"\[(\w+)\]", word)
            assert not named or named[1] in extras
            assert not word.endswith(".txt") or (ROOT / word).is_file()
    elif known == "python -m pytest":
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    elif known.startswith("python "):
        script = ROOT / "bench" / f"{words[2].rpartition('.')[2]}.py" if words[1] == "-m" else ROOT / words[1]
        source = script.read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))


SNIPPETS = [
    (page.name, text)
    for page in PAGES
    for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
    if language == "python"
]


def planned(*args: object, **options: object) -> None:
    """Stands for ``robench.run``: the arguments must be its own, and there must be a plan."""
    bound = inspect.signature(api.run).bind(*args, **options)
    about = {k: v for k, v in bound.arguments.items() if k in inspect.signature(api.plan_run).parameters}
    plan, _ = api.plan_run(**about)
    assert plan.cells


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_every_snippet_works_as_printed(page, text, place, monkeypatch):
    """Line by line in one namespace that holds nothing; ``robench.run`` is planned only."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(robench, "run", planned, raising=False)
    for before, after in SMALLER.items():
        text = text.replace(before, after)
    if "onnx" in text:
        pytest.importorskip("onnxruntime")
    names: dict[str, object] = {"__name__": "snippet"}
    exec(compile(text, page, "exec"), names)
    assert [node for node in ast.parse(text).body if isinstance(node, ast.Expr | ast.Assign)]


@pytest.mark.slow
def test_the_runs_of_the_readme_s_snippet_run(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "packaged", small)
    lines = [line for _, text in SNIPPETS for line in text.splitlines() if "robench.run(" in line or "read_suite" in line]
    assert len(lines) >= 2
    names: dict[str, object] = {"robench": robench}
    exec("\n".join(lines), names)
    assert (tmp_path / "runs" / "mine" / "run.json").is_file() and not names["run"].summary.failures  # type: ignore[attr-defined]


def test_the_package_lists_its_public_names_and_each_is_there():
    assert set(robench.__all__) <= set(dir(robench))
    assert not {"annotations", "Any", "importlib"} & set(dir(robench))
    for name in robench.__all__:
        assert getattr(robench, name).__doc__


def test_images_and_models_for_python_are_those_of_a_run():
    x, y = robench.load_data("digits", limit=20)
    assert x.shape == (20, 1, 32, 32) and x.min() >= 0 and x.max() <= 1 and sorted(set(y.tolist())) == list(range(10))
    model = robench.load_model("digits-pgd-at")
    assert not model.training and (model(x).argmax(1) == y).float().mean() > 0.9
    whole, _ = robench.load_data("digits")
    assert len(whole) == 500
