"""Map over jobs: in this process, or over processes of robench's own. Imports no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Generic, TypeVar

from robench.children import Answer, Child
from robench.errors import RobenchError, must

Job = TypeVar("Job")
Result = TypeVar("Result")


def execute(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    needs: Sequence[Collection[int]] = (),
    instead: Callable[[Job, list[Result]], Result | None] | None = None,
    failed: Callable[[Job, Answer], Result] | None = None,
    timeout_s: float | None = None,
    apart: bool = False,
    started: Sequence[Child] = (),
    owners: Callable[[Job], frozenset[str]] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as they finish; one worker runs here unless it is to be apart, more run in children.

    A child that dies or takes too long costs its one job; another takes its place.

    Args:
        function: A top-level one, which must turn a failure into a result.
        jobs: In an order in which one worker may do them.
        workers: Processes.
        needs: Per job the positions of earlier jobs that must be finished before it starts; by default none.
        instead: Given a job and the results of what it needs, may give its result, so that the function is not called.
        failed: The result of a job whose process died, was too slow or could not answer; by default that is an error.
        timeout_s: Seconds that a job may take in a child; None: no limit.
        apart: Whether also one worker runs in a child.
        started: Idle children to begin with; they may have run the code of every owner.
        owners: Whose code a job runs. A child that ran one owner's code is given no job without it, since that code may
            still do something (a thread that ends the process, a changed global); by default nobody's.

    Raises:
        RobenchError: No child can be started, or without ``failed`` a job that has no result.
    """
    queue = _Queue(jobs, needs, instead)
    if workers <= 1 and not apart:
        yield from queue.here(function)
        return
    crew = _Crew(min(workers, max(1, len(queue.jobs))), timeout_s=timeout_s)
    everyone = frozenset[str]().union(*map(owners, queue.jobs)) if owners else frozenset[str]()
    for child in started:
        crew.idle.append(child)
        crew.ran[child] = everyone
    waiting: deque[int] = deque()
    try:
        while queue.blocked or waiting or crew.busy:
            for i in queue.ready():
                given = queue.given(i)
                if given is None:
                    waiting.append(i)
                else:
                    yield queue.finish(i, given)
            while waiting and crew.has_room():
                i = waiting.popleft()
                crew.start(i, function, queue.jobs[i], owners(queue.jobs[i]) if owners else frozenset())
            for i, answer in crew.finished():
                yield queue.finish(i, _result(queue.jobs[i], answer, failed))
        crew.dismiss()
    finally:
        crew.kill()


def _result(job: Job, answer: Answer, failed: Callable[[Job, Answer], Result] | None) -> Result:
    if not answer.error:
        result: Result = answer.value
        return result
    if failed is None:
        raise RobenchError(must("a job in a worker process", "finished", answer.error, "see the lines above"))
    return failed(job, answer)


class _Crew:
    """A few children, each busy with one job or idle; they are started when there is something to do."""

    def __init__(self, size: int, *, timeout_s: float | None) -> None:
        self.size, self.timeout_s = size, timeout_s
        self.idle: list[Child] = []
        self.busy: dict[Child, int] = {}
        self.since: dict[Child, float] = {}
        """When a busy child's time began; none while it is still starting."""
        self.ran: dict[Child, frozenset[str]] = {}
        """Whose code a child ran."""

    def has_room(self) -> bool:
        return len(self.busy) < self.size

    def start(self, i: int, function: Callable[[Job], Result], job: Job, owners: frozenset[str]) -> None:
        """Give a job to an idle child that ran no other owner's code, or to a new one."""
        self.idle = [child for child in self.idle if child.process.poll() is None]
        fitting = [child for child in self.idle if self.ran.get(child, frozenset()) <= owners]
        if fitting:
            child = max(fitting, key=lambda c: len(self.ran.get(c, ())))  # children that ran nobody's code suit all
            self.idle.remove(child)
        else:
            while self.idle and len(self.idle) + len(self.busy) >= self.size:
                self.idle.pop(0).close()
            child = Child()
        self.ran[child] = self.ran.get(child, frozenset()) | owners
        self.busy[child] = i
        if child.ready:
            self.since[child] = time.monotonic()
        child.send(function, job)

    def finished(self) -> list[tuple[int, Answer]]:
        """Jobs that have an answer, waited for; none when a child became ready, or there are no jobs."""
        if not self.busy:
            return []
        told = {child.connection: child for child in self.busy}
        found: list[tuple[int, Answer]] = []
        for connection in wait(list(told), self._patience()):
            child = told[connection]  # type: ignore[index]
            answer = child.receive()
            if answer is None:
                self.since[child] = time.monotonic()
                continue
            found.append((self._leave(child), answer))
            if not answer.gone:
                self.idle.append(child)
        for child in [c for c in self.busy if self._left(c) <= 0]:
            found.append((self._leave(child), child.overdue(self.timeout_s or 0.0)))
        return found

    def _leave(self, child: Child) -> int:
        self.since.pop(child, None)
        return self.busy.pop(child)

    def _left(self, child: Child) -> float:
        """Seconds that a busy child still has."""
        if self.timeout_s is None or child not in self.since:
            return float("inf")
        return self.since[child] + self.timeout_s - time.monotonic()

    def _patience(self) -> float | None:
        left = min(map(self._left, self.busy))
        return None if left == float("inf") else max(0.0, left)

    def dismiss(self) -> None:
        """Nothing is left to do: the children go by themselves and clean up."""
        for child in self.idle:
            child.connection.close()
        for child in self.idle:
            child.close()
        self.idle.clear()

    def kill(self) -> None:
        for child in [*self.idle, *self.busy]:
            child.kill()


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
