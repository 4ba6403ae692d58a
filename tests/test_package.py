"""What a user installs: the wheel's contents, a light start, a plug-in, an environment with a broken torchvision."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"bench": "robench", "attacks": "robench/attacks", "defenses": "robench/defenses", "reports": "robench/reports"}
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def python(*args: str, path: Path | None = None, cwd: Path = ROOT / "tests") -> str:
    """Output of a fresh interpreter."""
    env = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_whole_tree(tmp_path):
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out"), cwd=source)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("robench/")}
    tree = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == tree


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom robench.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    assert not end.code\nassert 'torch' not in sys.modules"
    )
    assert "Usage" in python("-c", code)


def test_a_broken_torchvision_does_not_matter(tmp_path):
    stub = tmp_path / "torchvision"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = "import robench.runner, robench.api\nfrom robench.catalog import TABLES\n"
    code += "[t[n].load() for t in TABLES.values() for n in t]\nprint('fine')"
    assert "fine" in python("-c", code, path=tmp_path)


@pytest.mark.slow
def test_a_third_party_attack_is_installed_and_found(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(ROOT / "tests" / "plugin", source, ignore=shutil.ignore_patterns("__pycache__"))
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    python(*install, str(source))
    code = (
        "from robench.catalog import ATTACKS\nfound = ATTACKS['toy']\n"
        "print(found.version, ATTACKS.resolve('toy'), found.load()(None, 1, 2, threat=None, seeds=None))"
    )
    told = python("-c", code, path=target).strip()
    assert re.fullmatch(r"robench-toy==1\.2\.3:7:[0-9a-f]{16} toy\(strength=0\.5\) 1", told), told
