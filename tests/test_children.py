"""Children: fresh interpreters that neither read the current folder nor the main script, and may end without harm."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robench import children, launcher
from robench.children import Child, child_path, isolated
from robench.errors import DataError, ModelError, RobenchError

DEEDS = """
import os, signal, sys, time, warnings
from robench.errors import DataError

class Odd(BaseException):
    def __str__(self):
        raise ValueError("no text")

def do(job):
    how, value = job
    if how == "odd":
        raise Odd
    if how == "data":
        raise DataError("labels must be whole")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "print":
        print("from the child")
        sys.stdout.flush()
        os.system("echo from its child")
    if how == "unpicklable":
        return lambda: None
    if how == "loaded":
        return [name for name in value if name in sys.modules]
    deeds = {"sleep": time.sleep, "_exit": os._exit, "exit": sys.exit, "kill": lambda s: os.kill(os.getpid(), s)}
    deeds["close"] = lambda _: (os.closerange(3, 256), time.sleep(60))
    return deeds[how](value) if how in deeds else value
"""


@pytest.fixture(scope="module")
def do(tmp_path_factory):
    """What children are asked to do; one place for all tests, so that one launcher serves them."""
    folder = tmp_path_factory.mktemp("deeds")
    (folder / "deeds_of_children.py").write_text(DEEDS)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        yield importlib.import_module("deeds_of_children").do


def test_a_result_comes_back(do):
    assert isolated(do, ("value", [1, 2])) == [1, 2]
    assert isolated(do, ("loaded", ["pytest", "deeds_of_children"])) == ["deeds_of_children"]


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (("exit", 0), "sys.exit(0)"),
        (("exit", "bye"), "sys.exit('bye')"),
        (("_exit", 0), "ended the process with exit code 0"),
        (("kill", 9), "signal 9"),
        (("kill", 6), "signal 6"),
        (("interrupt", 0), "KeyboardInterrupt"),
        (("odd", 0), "Odd: (its text cannot be made)"),
        (("sleep", 60), "time limit of 0.5 s"),
        (("unpicklable", 0), "pickle"),
    ],
)
def test_whatever_ends_it_is_one_line(do, job, told):
    with pytest.raises(ModelError) as caught:
        isolated(do, job, timeout_s=0.5, what="the factory nets.py:make")
    assert str(caught.value).startswith("the factory nets.py:make must") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_own_errors_keep_their_class(do):
    with pytest.raises(DataError, match="labels must be whole"):
        isolated(do, ("data", 0))


def test_one_child_answers_many_calls(do):
    child = Child()
    assert [child.call(do, ("value", n)).value for n in range(3)] == [0, 1, 2]
    assert child.call(do, ("exit", 0)).kind == "SystemExit" and child.call(do, ("value", 3)).value == 3
    child.close()
    assert child.process.returncode == 0


RUN = """
import sys
from robench.children import isolated
print("main", __name__)
isolated(exec, {code!r})
"""


def ran(code: str, folder, **environment: str):
    script = folder / "elsewhere" / "script.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(RUN.format(code=code))
    full = {**os.environ, **environment}
    return subprocess.run([sys.executable, str(script)], cwd=folder, env=full, capture_output=True, text=True)


def test_a_child_has_the_callers_folder_and_environment_of_the_moment(do, tmp_path, monkeypatch):
    told = []
    for value in ("one", "two"):
        monkeypatch.setenv("SAID", value)
        (tmp_path / value).mkdir()
        monkeypatch.chdir(tmp_path / value)
        told.append(isolated(eval, "(__import__('os').environ['SAID'], __import__('os').getcwd())"))
    assert told == [(value, str(tmp_path / value)) for value in ("one", "two")]


def test_what_is_read_when_an_interpreter_starts_counts(do, tmp_path, monkeypatch):
    isolated(do, ("value", 0))
    (tmp_path / "only_there").mkdir()
    (tmp_path / "only_there" / "late.py").write_text("said = 'found'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "only_there"))
    assert isolated(eval, "__import__('late').said") == "found"


def test_children_draw_numbers_of_their_own():
    draw = "(__import__('random').random(), float(__import__('numpy').random.random()))"
    (a, b), (c, d) = isolated(eval, draw), isolated(eval, draw)
    assert a != c and b != d


@pytest.mark.skipif(not launcher.AVAILABLE, reason="children are forks on Linux only")
def test_forks_share_one_launcher_and_end_with_it(do):
    first, second = Child(), Child()
    assert [child.call(eval, "__import__('os').getppid()").value for child in (first, second)] == [_launcher().pid] * 2
    pids = [child.process.pid for child in (first, second)]
    _launcher().kill()
    assert [child.process.wait(5) for child in (first, second)] == [-9, -9] and gone(pids)
    assert first.call(do, ("value", 1)).kind == "died"
    third = Child()
    assert third.call(do, ("value", 3)).value == 3
    third.close()


def _launcher():
    [kept] = launcher._kept.values()
    return kept.process


def test_no_process_is_left_when_the_caller_is_gone(tmp_path):
    code = "import os; open('pids', 'w').write(f'{os.getpid()} {os.getppid()}'); os.kill(int(os.environ['CALLER']), 9)"
    script = "import os; os.environ['CALLER'] = str(os.getpid())\nfrom robench.children import isolated\n"
    script += f"isolated(exec, {code!r})"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == -9
    assert gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def gone(pids: list[int]) -> bool:
    """Whether processes end within seconds."""
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_nothing_of_the_current_folder_is_executed(tmp_path):
    """Neither for the standard library's names nor for names that only this folder has."""
    for name in ("tempfile", "pickle", "random", "torch", "onlyhere"):
        (tmp_path / f"{name}.py").write_text(f"open('executed-{name}', 'w')\n")
    code = "import tempfile, pickle, random, torch, multiprocessing.resource_tracker as r; r.ensure_running()"
    done = ran(code, tmp_path)
    assert (done.returncode, done.stderr, list(tmp_path.glob("executed*"))) == (0, "", [])
    assert "No module named 'onlyhere'" in ran("import onlyhere", tmp_path).stderr


def test_pythonpath_is_the_users_own_word(tmp_path):
    (tmp_path / "onlyhere.py").write_text("print('executed')\n")
    assert ran("import onlyhere", tmp_path, PYTHONPATH=str(tmp_path)).stderr == "executed\n"


def test_the_folder_of_the_main_script_is_searched_last(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beside.py").write_text("print('executed')\n")
    (tmp_path / "elsewhere" / "netrc.py").write_text("print('executed')\n")
    assert ran("import beside", tmp_path).stderr == "executed\n"
    assert ran("import netrc", tmp_path).stderr == ""


def test_the_main_script_is_not_run_again_and_prints_go_to_stderr(tmp_path):
    done = ran("print('from the child')", tmp_path)
    assert (done.stdout, done.stderr) == ("main __main__\n", "from the child\n")


@pytest.mark.slow
def test_a_file_that_is_both_script_and_model_ends(tmp_path):
    """Its code starts children that start children; that stops at a depth, with a line."""
    (tmp_path / "both.py").write_text("from robench.children import isolated\nisolated(exec, 'import both')\n")
    done = subprocess.run([sys.executable, "both.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "nested at most 3 deep" in done.stderr


def test_a_closed_connection_is_a_death(do, monkeypatch):
    monkeypatch.setattr(children, "_PATIENCE", 0.5)
    started = time.monotonic()
    child = Child()
    assert child.call(do, ("close", 0)).kind == "died"
    assert child.process.poll() is not None and time.monotonic() - started < 50


def test_the_current_folder_is_left_out_of_a_prompts_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere"])
    assert child_path() == ["/elsewhere"]


def test_a_missing_interpreter_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(RobenchError, match="a worker process must be startable"):
        Child()
