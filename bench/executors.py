"""Map over jobs: in this process, or over spawned local processes. Imports no torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_KEEP = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD (larger blocks come and go by themselves; its largest value) and M_TRIM_THRESHOLD, in bytes."""


def execute(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    needs: Sequence[Collection[int]] = (),
    instead: Callable[[Job, list[Result]], Result | None] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as they finish; one worker runs here, more run in spawned processes.

    Args:
        function: A top-level one, which must turn a failure into a result.
        jobs: In an order in which one worker may do them.
        workers: Processes.
        needs: Per job the positions of earlier jobs that must be finished before it starts; by default none.
        instead: Given a job and the results of what it needs, may give its result, so that the function is not called.
    """
    queue = _Queue(jobs, needs, instead)
    if workers <= 1:
        yield from queue.here(function)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(os.getpid(),))
    waiting: dict[Future[Result], int] = {}
    try:
        while queue.blocked or waiting:
            for i in queue.ready():
                given = queue.given(i)
                if given is None:
                    waiting[pool.submit(function, queue.jobs[i])] = i
                else:
                    yield queue.finish(i, given)
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield queue.finish(waiting.pop(future), future.result())
        pool.shutdown()  # nothing is left to do, so the workers go by themselves and clean up
    finally:
        processes = list((pool._processes or {}).values())  # forgotten by shutdown, and busy ones would be waited for
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


class _Queue(Generic[Job, Result]):
    """Jobs that wait for others, and the results that they wait for."""

    def __init__(
        self,
        jobs: Iterable[Job],
        needs: Sequence[Collection[int]],
        instead: Callable[[Job, list[Result]], Result | None] | None,
    ) -> None:
        self.jobs = list(jobs)
        self.needs = needs or [()] * len(self.jobs)
        self.instead = instead
        self.blocked = {i: set(self.needs[i]) for i in range(len(self.jobs))}
        self.wanted = {i for each in self.needs for i in each}
        self.results: dict[int, Result] = {}

    def ready(self) -> list[int]:
        """Positions of jobs that may start; they are not blocked any more."""
        found = [i for i, missing in self.blocked.items() if not missing]
        for i in found:
            del self.blocked[i]
        return found

    def given(self, i: int) -> Result | None:
        """The result of a job that need not be run."""
        return self.instead(self.jobs[i], [self.results[k] for k in self.needs[i]]) if self.instead else None

    def finish(self, i: int, result: Result) -> tuple[Job, Result]:
        """Note a job's result and free those that waited for it."""
        if i in self.wanted:
            self.results[i] = result
            for missing in self.blocked.values():
                missing.discard(i)
        return self.jobs[i], result

    def here(self, function: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """All jobs in their order, in this process."""
        for i, job in enumerate(self.jobs):
            given = self.given(i)
            yield self.finish(i, function(job) if given is None else given)


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


def _settle(parent: int) -> None:
    """What every worker does first."""
    keep_memory()
    _leave_with_parent(parent)


def _leave_with_parent(parent: int) -> None:
    """Leave Ctrl-C to the driver, and end this worker when the driver is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
