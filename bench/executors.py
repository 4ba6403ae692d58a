"""Map over jobs: in this process, or over spawned local processes. Imports no torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_KEEP = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD (larger blocks come and go by themselves; its largest value) and M_TRIM_THRESHOLD, in bytes."""


def execute(function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as they finish; one worker runs here, more run in spawned processes.

    The function must be a top-level one and must turn a failure into a result.
    """
    if workers <= 1:
        for job in jobs:
            yield job, function(job)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(os.getpid(),))
    waiting: dict[Future[Result], Job] = {}
    queue = iter(jobs)
    try:
        for job in queue:
            waiting[pool.submit(function, job)] = job
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    finally:
        processes = list((pool._processes or {}).values())  # forgotten by shutdown, and busy ones would be waited for
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


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
