"""A process that imports torch and robench once and forks itself for each child, so that a child starts in
milliseconds instead of seconds. Imports no torch.

It starts like a child (no main script, nothing from the current folder), runs nobody's code and has no threads of its
own; each fork gets the folder, the environment and the stderr that its caller has at that moment. Whatever only takes
effect when an interpreter or a library starts (the search path, ``PYTHON*``, ``OMP_*`` and the like) makes a launcher
of its own. Linux only: elsewhere a fork without a fresh interpreter is not safe for the system's libraries.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

AVAILABLE = sys.platform == "linux"
"""Whether children can be forks."""
IMPORTED = ("robench.evidence", "robench.builders.models", "robench.builders.predictions", "robench.scenarios.sentinel")
"""What is imported before a launcher's first fork: with what these import, nearly all that a run's cells need."""
_READ_AT_START = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH", "CUDA", "GLIBC_")
"""Variables that interpreters and libraries read once, by how their names begin."""
_NUMBER = struct.Struct("=i")
_LENGTH = struct.Struct("=I")
_KILLED = -int(signal.SIGKILL)
_PATIENCE = 5.0
"""Seconds that a launcher may take to end; it has nothing to clean up."""


class Forked:
    """A forked child: what robench uses of ``subprocess.Popen``.

    Args:
        status: Where its launcher writes its process id and, when it ended, its exit code.
        launcher: Where it was forked.
    """

    def __init__(self, status: int, launcher: Launcher) -> None:
        self._status, self._launcher = status, launcher
        self._pid: int | None = None
        self.returncode: int | None = None
        """The exit code, negative for a signal; None while it runs."""

    def __del__(self) -> None:
        if self._status >= 0:
            os.close(self._status)

    @property
    def pid(self) -> int | None:
        """Its process id, waited for; None where it never started."""
        if self._pid is None and self.returncode is None:
            self._pid = self._number()
        return self._pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, waited for.

        Raises:
            subprocess.TimeoutExpired: It still runs after ``timeout`` seconds.
        """
        while self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked child", timeout or 0.0)
            if self._pid is None:
                self._pid = self._number()
            else:
                self.returncode = self._number()
        return self.returncode

    def kill(self) -> None:
        """End it."""
        if self.poll() is None and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _number(self) -> int | None:
        """The next number from the launcher; where that is gone, so is the child."""
        told = os.read(self._status, _NUMBER.size)
        if len(told) == _NUMBER.size:
            return int(_NUMBER.unpack(told)[0])
        code = self._launcher.process.wait()
        self.returncode = code if code > 0 else _KILLED
        return None if self._pid is None else self.returncode


class Launcher:
    """The parent's side of a launcher; its process ends with this object, which its forks keep.

    Args:
        command: Starts its process, without the last argument.
        path: Where it looks for modules after its own places.
        stderr: A descriptor for what it writes when it cannot start.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, command: Sequence[str], path: Sequence[str], stderr: int) -> None:
        self.control, theirs = socket.socketpair()
        told = {"path": list(path), "control": theirs.fileno()}
        try:
            self.process = subprocess.Popen(
                [*command, json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is the parent's
            )
        except OSError:
            self.control.close()
            raise
        finally:
            theirs.close()

    def __del__(self) -> None:
        self.control.close()
        if "process" in vars(self):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_PATIENCE)

    def fork(self, told: dict[str, Any], connection: int, stderr: int) -> Forked:
        """A new child.

        Raises:
            OSError: The launcher is gone.
        """
        asked = json.dumps({**told, "environment": dict(os.environ), "folder": _folder()}).encode()
        reads, writes = os.pipe()
        try:
            socket.send_fds(self.control, [_LENGTH.pack(len(asked))], [connection, writes, stderr])
            self.control.sendall(asked)
        except OSError:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        return Forked(reads, self)


_lock = threading.Lock()
_kept: dict[str, Launcher] = {}
"""The launcher of this process, by all that must be as when it started; at most one."""


def forked(command: Sequence[str], path: Sequence[str], told: dict[str, Any], *, connection: int, stderr: int) -> Forked:
    """A new child of this process's launcher, which is started where there is none that fits.

    Args:
        command: Starts a process that calls ``launch``, without the last argument.
        path: Where modules are looked for after the interpreter's own places.
        told: What the child is told.
        connection: The descriptor of its end of the connection.
        stderr: The descriptor of what it prints to.

    Raises:
        OSError: No process can be started.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_START)}
    key = json.dumps([os.getpid(), list(command), list(path), sorted(variables.items())])
    with _lock:
        launcher = _kept.get(key)
        if launcher and launcher.process.poll() is None:
            with suppress(OSError):  # it died this moment: another takes its place
                return launcher.fork(told, connection, stderr)
        _kept.clear()
        _kept[key] = launcher = Launcher(command, path, stderr)
        return launcher.fork(told, connection, stderr)


def launch(told: dict[str, Any], serve: Callable[[dict[str, Any]], None]) -> NoReturn:
    """A launcher's life and its forks': fork when asked, tell exit codes, end with its parent. Never returns."""
    gc.collect()
    gc.freeze()  # collections in the forks leave the shared memory alone
    control = socket.socket(fileno=told["control"])
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the wake-up descriptor is written to
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    statuses: dict[int, int] = {}
    while True:
        ready = select.select([control.fileno(), woken], [], [])[0]
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, 4096)
            _reap(statuses)
        if control.fileno() not in ready:
            continue
        asked = _asked(control)
        if asked is None:
            os._exit(0)  # forks that still run see that their parent is gone, and end
        job, (connection, status, stderr) = asked
        launcher = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            control.close()
            for descriptor in (woken, wakes, status, *statuses.values()):
                os.close(descriptor)
            _become(job, stderr)
            serve({**job, "fd": connection, "parent": launcher})
            atexit._run_exitfuncs()
            os._exit(0)  # an interpreter that ends by itself writes to all of its memory, which a fork shares: seconds
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # as the child does itself, whoever comes first
        statuses[pid] = status
        _tell(status, pid)
        for descriptor in (connection, stderr):
            os.close(descriptor)


def _asked(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next request and its three descriptors; None when the parent is gone."""
    header, descriptors, _, _ = socket.recv_fds(control, _LENGTH.size, 3)
    if len(header) < _LENGTH.size:
        return None
    left, parts = _LENGTH.unpack(header)[0], []
    while left:
        part = control.recv(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return json.loads(b"".join(parts)), descriptors


def _become(job: dict[str, Any], stderr: int) -> None:
    """Make a fork what a fresh process of the caller would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(PermissionError):
        os.setpgid(0, 0)
    for descriptor in (1, 2):
        os.dup2(stderr, descriptor)
    if stderr > 2:
        os.close(stderr)
    os.environ.clear()
    os.environ.update(job.pop("environment"))
    with suppress(OSError, TypeError):  # a folder that was deleted
        os.chdir(job.pop("folder"))
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python reseeds its own generator after a fork; torch's starts alike in every process


def _reap(statuses: dict[int, int]) -> None:
    """Tell the exit codes of forks that ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if (status := statuses.pop(ended[0], None)) is not None:
                _tell(status, os.waitstatus_to_exitcode(ended[1]))
                os.close(status)


def _tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits any more
        os.write(status, _NUMBER.pack(number))


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
