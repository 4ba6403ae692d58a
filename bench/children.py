"""Processes of robench's own: each runs one top-level function at a time and may die without harm. Imports no torch.

A child is a fresh interpreter, or a fork of one (``robench.launcher``). It never imports the caller's main script, does
not look for modules in the current folder, takes jobs through a private socket, writes what its code prints to stderr,
leaves Ctrl-C to its parent and ends with it. User code (factories, modules, exported programs) runs in children only, so
that nothing it does to its process (``os._exit``, a crash, a changed global setting) reaches the run.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from robench import errors, launcher
from robench.errors import ModelError, RobenchError, described, must, one_line

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_START = """
import json, sys
told = json.loads(sys.argv[1])
sys.path += [place for place in told["path"] if place not in sys.path]
from robench.children import {begin}
{begin}(told)
"""
"""What a child runs; what the parent can import comes last, so that nothing there stands in for the standard library."""
_DEEPEST = 3
"""Children of children of children: a run's worker starts one that measures memory, which starts none."""
_PATIENCE = 5.0
"""Seconds that a child which was told to end may take to clean up."""
_KEEP = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD (larger blocks come and go by themselves; its largest value) and M_TRIM_THRESHOLD, in bytes."""
_depth = [0]
"""How many robench processes are above this one."""


@dataclass(frozen=True)
class Answer:
    """What came of one call in a child."""

    value: Any = None
    error: str = ""
    """Why there is no value, one line; empty when there is one."""
    detail: str = ""
    """The traceback of an exception, several lines."""
    kind: str = ""
    """The class of an exception; ``died`` or ``overdue`` where the process is gone."""

    @property
    def gone(self) -> bool:
        """Whether the process died, or was ended because it took too long."""
        return self.kind in ("died", "overdue")

    def result(self, what: str) -> Any:
        """The value.

        Raises:
            RobenchError: The function's own, of its class; else a ``ModelError`` that says what could not run, and why.
        """
        if not self.error:
            return self.value
        own = getattr(errors, self.kind, None)
        if isinstance(own, type) and issubclass(own, RobenchError):
            raise own(self.error)
        remedy = "correct the code" if self.kind != "overdue" else "correct the code, or allow more time"
        raise ModelError(must(what, "run to its end in a process of its own", self.error, remedy))


class Child:
    """One process that answers one call at a time.

    Args:
        preload: Modules that the process imports before it counts as ready.
        keep: Whether its C library keeps freed memory (see ``keep_memory``); where not, it is never a fork.

    Raises:
        RobenchError: No process can be started.
    """

    def __init__(self, *, preload: Sequence[str] = launcher.IMPORTED, keep: bool = True) -> None:
        if _depth[0] >= _DEEPEST:
            remedy = "call robench.run under `if __name__ == '__main__':` in a file that is also named as a model"
            raise RobenchError(must("robench's processes", f"nested at most {_DEEPEST} deep", "one more", remedy))
        ours, theirs = socket.socketpair()
        told = {"parent": os.getpid(), "depth": _depth[0] + 1, "preload": list(preload), "keep": keep}
        start = _forked if keep and launcher.AVAILABLE else _fresh
        try:
            with _stderr() as stderr:
                self.process = start(told, theirs.fileno(), stderr)
        except OSError as error:
            ours.close()
            raise RobenchError(must("a worker process", "startable", str(error), "free memory or processes")) from error
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.ready = False
        """Whether the process has told that it has started."""

    def send(self, function: Callable[[Argument], Any], argument: Argument) -> None:
        """Have the child call a top-level function; its answer is read by ``receive``."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; receive says how
            self.connection.send_bytes(pickle.dumps((function, argument)))

    def receive(self) -> Answer | None:
        """The next message, waited for: None when the child has just become ready.

        Raises:
            RobenchError: The process ended before it was ready.
        """
        try:
            answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._death()
        if answer is None:
            self.ready = True
        return answer if isinstance(answer, Answer) else None

    def _death(self) -> Answer:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        code = self.process.poll()
        self.kill()
        if not self.ready:
            remedy = "see the lines above; `robench doctor` checks the installation"
            raise RobenchError(must("a worker process", "startable", f"its end with exit code {code}", remedy))
        if code is None:
            return Answer(error="the model closed its process's connection", kind="died")
        return Answer(error=_told_end(code), kind="died")

    def call(self, function: Callable[[Argument], Any], argument: Argument, *, timeout_s: float | None = None) -> Answer:
        """Send a call and wait for its answer; after ``timeout_s`` seconds of the call itself the process is ended."""
        self.send(function, argument)
        answer = None if self.ready else self.receive()
        while answer is None:
            if not self.connection.poll(timeout_s):
                return self.overdue(timeout_s or 0.0)
            answer = self.receive()
        return answer

    def overdue(self, timeout_s: float) -> Answer:
        """End a process that took too long, and say so."""
        self.kill()
        return Answer(error=f"stopped after the time limit of {timeout_s:g} s", kind="overdue")

    def close(self) -> None:
        """Let an idle process end by itself and clean up; one that does not is ended."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End the process and what it started."""
        if self.process.poll() is None and self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self.connection.close()


def isolated(
    function: Callable[[Argument], Result],
    argument: Argument,
    *,
    timeout_s: float | None = None,
    what: str = "the code",
    fresh: bool = False,
) -> Result:
    """What a top-level function returns for an argument, run in a process of its own whose end does no harm.

    Args:
        function: Importable by name from a module (not from ``__main__``).
        argument: Picklable, as the result must be.
        timeout_s: Seconds that the call may take, without the start of the process; None: no limit.
        what: What is run, for the error's text, e.g. ``the factory nets.py:make``.
        fresh: Whether the process is a new interpreter that has imported nothing but what the function needs; by default
            it is a fork of one that has imported what cells of a run need, attacks included.

    Raises:
        RobenchError: The function's own, of its class. For everything else (any other exception, ``sys.exit``,
            ``os._exit``, a crash, a signal, the time limit) a ``ModelError`` of one line.
    """
    child = Child(preload=(), keep=False) if fresh else Child()
    try:
        answer = child.call(function, argument, timeout_s=timeout_s)
    except BaseException:
        child.kill()
        raise
    if not answer.gone:
        child.close()
    result: Result = answer.result(what)
    return result


@contextmanager
def closing_child(child: Child | None) -> Iterator[None]:
    """End a child, where there is one, when the block is left."""
    try:
        yield
    finally:
        if child:
            child.kill()


def inside() -> bool:
    """Whether this process is a child of another robench process."""
    return _depth[0] > 0


def child_path() -> list[str]:
    """Where a child looks for modules after its own places: what this process can import, but not the current folder.

    The folder that the main script or module was started from stays, whichever it is; otherwise the current folder is
    a place only where PYTHONPATH names it (the child reads that itself).
    """
    if inside():
        return list(sys.path)
    left_out = {_here()} - {_main_folder()}
    return [place for place in sys.path if place and _resolved(place) not in left_out]


def _here() -> Path | None:
    """The current folder, unless it was deleted."""
    try:
        return Path.cwd().resolve()
    except OSError:
        return None


def _main_folder() -> Path | None:
    """The folder whose script or module (``python -m``) is the main program; none of a prompt."""
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if file is None:
        return None
    above = spec.name.removesuffix(".__main__").count(".") + file.endswith("__main__.py") if spec else 0
    return Path(file).resolve().parents[above] if above < len(Path(file).resolve().parents) else None


def _resolved(place: str) -> Path | None:
    try:
        return Path(place).resolve()
    except OSError:
        return None


def keep_memory() -> bool:
    """Have the C library keep up to 512 MB of what is freed for the next tensors; whether it does (glibc).

    Otherwise a forward and backward pass gives its activations back to the system and gets them zeroed again page by
    page, 5 to 8 % of its time on a ResNet. For processes of robench's own; those of others are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in _KEEP.items())


def _flags() -> list[str]:
    """The interpreter's own switches that a child shares."""
    flags = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [flag for flag, is_set in flags.items() if is_set]


@contextmanager
def _stderr() -> Iterator[int]:
    """A descriptor for what a child prints: this process's stderr, or nowhere where that is closed."""
    try:
        os.fstat(2)
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            yield nowhere.fileno()
    else:
        yield 2


def _command(begin: str) -> list[str]:
    """What starts a child or a launcher, without its last argument."""
    return [sys.executable, *_flags(), "-P", "-c", _START.format(begin=begin)]


def _forked(told: dict[str, Any], connection: int, stderr: int) -> launcher.Forked:
    return launcher.forked(_command("_launch"), child_path(), told, connection=connection, stderr=stderr)


def _fresh(told: dict[str, Any], connection: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_command("_serve"), json.dumps({**told, "path": child_path(), "fd": connection})],
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=[connection],
        process_group=0,  # Ctrl-C is the parent's, and what the child starts can be ended with it
    )


def _launch(told: dict[str, Any]) -> None:
    """The life of a launcher, and of its forks."""
    _import(launcher.IMPORTED)
    launcher.launch(told, _serve)


def _told_end(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"the model ended the process with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    return f"the worker process died: signal {-code} ({name}{hint})"


def _serve(told: dict[str, Any]) -> None:
    """A child's life: answer calls until the parent closes the connection."""
    _depth[0] = told["depth"]
    connection = Connection(told["fd"])
    os.set_inheritable(told["fd"], False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(told["parent"],), daemon=True).start()
    if told["keep"]:
        keep_memory()
    _import(told["preload"])
    connection.send_bytes(pickle.dumps(None))
    while True:
        try:
            asked = connection.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _answered(asked)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(BrokenPipeError):
            connection.send_bytes(answer)


def _import(modules: Sequence[str]) -> None:
    try:
        for module in modules:
            importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001  one line instead of a traceback
        sys.stderr.write(f"robench: {one_line(described(error))}\n")
        os._exit(1)


def _answered(asked: bytes) -> bytes:
    """The pickled answer to a pickled call; nothing that the call raises ends the process."""
    try:
        function, argument = pickle.loads(asked)
        return pickle.dumps(Answer(function(argument)))
    except RobenchError as error:
        return pickle.dumps(Answer(error=str(error), detail=traceback.format_exc(limit=8), kind=type(error).__name__))
    except BaseException as error:  # noqa: BLE001  sys.exit, interrupts and classes of the user's own are answers too
        return pickle.dumps(Answer(error=one_line(described(error)), detail=trace(), kind=type(error).__name__))


def trace() -> str:
    """The traceback of the exception being handled; empty where its class, a user's, raises itself."""
    try:
        return traceback.format_exc(limit=8)
    except BaseException:  # noqa: BLE001  the user's class
        return ""


def _watch(parent: int) -> None:
    """End this process and what it started when the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    with suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
