"""Executors: every job once, in this process or in children, which may die and leave with their driver."""

from __future__ import annotations

import importlib
import math
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from robench.executors import execute


def test_one_worker_runs_here_lazily_and_in_order():
    seen = []

    def work(job):
        seen.append(job)
        return os.getpid(), job * job

    results = execute(work, iter([1, 2, 3]), workers=1)
    assert next(results) == (1, (os.getpid(), 1))
    assert seen == [1]
    assert [job for job, _ in results] == [2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_needed_comes_first_and_a_lost_job_is_not_run(workers):
    needs = [(), (), (0,), (2, 1), (), (4,)]

    def instead(job, results):
        return -1.0 if job < 0 or -1.0 in results else None

    found = list(execute(math.sqrt, [4, 9, 16, 25, -1, 36], workers=workers, needs=needs, instead=instead))
    order = [job for job, _ in found]
    assert sorted(found) == [(-1, -1.0), (4, 2.0), (9, 3.0), (16, 4.0), (25, 5.0), (36, -1.0)]
    assert order.index(4) < order.index(16) < order.index(25) > order.index(9) and order.index(-1) < order.index(36)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_no_jobs_give_no_results(workers):
    assert list(execute(abs, [], workers=workers)) == []


FAULTS = """
import resource
import numpy as np
from robench.children import keep_memory
kept = {wanted}
def held():
    return [np.ones(2_000_000) for _ in range(8)]
for _ in range(3):
    held()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    held()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is the one that is told")
def test_freed_memory_is_kept_for_the_next_tensors():
    def faults(wanted):
        code = FAULTS.format(wanted=wanted)
        told, count = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert told == "True"
        return int(count)

    assert faults("keep_memory()") * 10 < faults("True")


def test_two_workers_run_every_job_once_elsewhere():
    results = dict(execute(abs, range(-6, 0), workers=2))
    assert results == {n: -n for n in range(-6, 0)}
    groups = {group for _, group in execute(os.getpgid, [0] * 4, workers=2)}
    assert os.getpgid(0) not in groups, "Ctrl-C in this process's group must not reach them"


def test_a_caller_that_stops_leaves_no_process_behind():
    results = execute(time.sleep, [0.0, 30.0, 30.0], workers=2)
    assert next(results) == (0.0, None)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 10


DRIVER = """
import sys
from robench.executors import execute
from telling import tell

list(execute(tell, sys.argv[1:], workers=2))
"""
TELLING = """
import os, time

def tell(path):
    with open(path, 'w') as handle:
        handle.write(str(os.getpid()))
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_leave_when_the_driver_is_killed(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    (tmp_path / "telling.py").write_text(TELLING)
    told = [tmp_path / "a", tmp_path / "b"]
    driver = subprocess.Popen([sys.executable, str(script), *map(str, told)])
    deadline = time.monotonic() + 60
    while not all(p.is_file() and p.read_text() for p in told) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(p.read_text()) for p in told]
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_module_imports_no_torch():
    code = "import sys, robench.executors; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


DEEDS = """
import os, sys, time

def do(job):
    how, value = job
    deeds = {"sleep": time.sleep, "_exit": os._exit, "exit": sys.exit, "kill": lambda s: os.kill(os.getpid(), s)}
    return deeds[how](value)
"""


def test_a_worker_that_ends_costs_its_one_job(tmp_path, monkeypatch):
    """Exit codes, signals, exceptions and the time limit are told per job; the others have their results."""
    (tmp_path / "deeds_of_jobs.py").write_text(DEEDS)
    monkeypatch.syspath_prepend(tmp_path)
    do = importlib.import_module("deeds_of_jobs").do
    jobs = [("sleep", 0.0), ("_exit", 0), ("_exit", 3), ("kill", 9), ("kill", 11), ("exit", 0), ("sleep", 60)]
    jobs.append(("sleep", 0.01))

    def failed(job, answer):
        return answer.error

    found = dict(execute(do, jobs, workers=2, failed=failed, timeout_s=2.0, apart=True))
    assert found == {
        ("sleep", 0.0): None,
        ("_exit", 0): "the model ended the process with exit code 0",
        ("_exit", 3): "the model ended the process with exit code 3",
        ("kill", 9): "the worker process died: signal 9 (SIGKILL, perhaps for want of memory)",
        ("kill", 11): "the worker process died: signal 11 (SIGSEGV)",
        ("exit", 0): "the model's code ended the process by sys.exit(0)",
        ("sleep", 60): "stopped after the time limit of 2 s",
        ("sleep", 0.01): None,
    }


WHERE = """
import os

def where(job):
    return os.getpid()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_code_of_one_owner_is_never_in_the_process_of_another(tmp_path, monkeypatch, workers):
    """What one owner's code leaves behind (a thread that ends the process later) costs no other owner a job."""
    (tmp_path / "places_of_jobs.py").write_text(WHERE)
    monkeypatch.syspath_prepend(tmp_path)
    where = importlib.import_module("places_of_jobs").where
    jobs = [("", 0), ("a", 1), ("b", 2), ("b", 3), ("", 4), ("ab", 5), ("b", 6)]
    pids = {}
    for job, pid in execute(where, jobs, workers=workers, apart=True, owners=lambda job: frozenset(job[0])):
        assert all(set(other[0]) <= set(job[0]) for other, place in pids.items() if place == pid)
        pids[job] = pid
    assert set(pids) == set(jobs)
    if workers == 1:
        assert pids["", 0] == pids["a", 1] != pids["b", 2] == pids["b", 3], "only a change of owner costs a process"
