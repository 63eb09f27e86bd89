"""Stages that overlap: one thread each, bounded queues between them, errors that travel, and a way to stop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
_END: Any = object()


@dataclass(frozen=True, slots=True)
class Stage(Generic[Job]):
    """A step every job goes through. `finishes`: after a stop it still works off what reaches it."""

    name: str
    work: Callable[[Job], None]
    finishes: bool = False


class Pipeline(Generic[Job]):
    """Runs jobs from a source through stages, in order; `for job in pipeline` gives the finished ones.

    Each stage has a thread, so the slowest of them sets the rate. At most `depth` jobs wait before a stage: memory does
    not grow with the number of jobs. When a stage or the source raises, the jobs ahead of it are finished, the
    others are dropped, and the loop raises that very exception. `stop()` ends the source, drops what has not yet
    reached a stage that `finishes`, and lets the loop run out.

    Attributes:
        busy: seconds that the source and each stage have worked, by name.
        dropped: jobs of a live source that were too old by the time the first stage was free.
        stopping: set once no more jobs are wanted; the source is to look at it while it waits.
    """

    def __init__(
        self,
        source: Iterable[Job],
        stages: list[Stage[Job]],
        *,
        name: str = "decode",
        depth: int = 2,
        live: bool = False,
    ) -> None:
        self.busy = dict.fromkeys([name, *(stage.name for stage in stages)], 0.0)
        self.dropped = 0
        self.stopping = threading.Event()
        self._stopped = False
        self._error: BaseException | None = None
        self._broken = -1  # index of the last stage that has raised; what is before it works for nobody
        self._name = name
        self._live = live
        queues: list[queue.Queue[Any]] = [queue.Queue(depth) for _ in stages]
        self._first = queues[0]
        self._done: queue.Queue[Any] = queue.Queue(depth)
        self._threads = [threading.Thread(target=self._feed, args=(source,), name=name, daemon=True)]
        outboxes = [*queues[1:], self._done]
        for index, (stage, inbox, outbox) in enumerate(zip(stages, queues, outboxes, strict=True)):
            arguments = (index, stage, inbox, outbox)
            self._threads.append(threading.Thread(target=self._work, args=arguments, name=stage.name, daemon=True))
        self._started = False

    def stop(self) -> None:
        """Ask for no more jobs. The loop goes on with those that are nearly done, then ends."""
        self._stopped = True
        self.stopping.set()

    def __iter__(self) -> Iterator[Job]:
        """The finished jobs, in order. After an interruption another loop gives the rest."""
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        while True:
            job = self._done.get()
            if job is _END:
                self._done.put(_END)  # for a loop that asks again
                break
            yield job
        if self._error is not None:
            raise self._error

    def _feed(self, source: Iterable[Job]) -> None:
        jobs = iter(source)
        try:
            while not self.stopping.is_set():
                start = time.perf_counter()
                job = next(jobs, _END)
                self.busy[self._name] += time.perf_counter() - start
                if job is _END:
                    break
                self._hand_in(job)
        except BaseException as error:
            self._fail(error)
        finally:
            try:
                if isinstance(jobs, Iterator) and hasattr(jobs, "close"):
                    jobs.close()
            finally:
                self._first.put(_END)

    def _hand_in(self, job: Job) -> None:
        while self._live:
            try:
                return self._first.put_nowait(job)
            except queue.Full:
                try:  # the oldest gives way: what is shown is never far behind
                    self._first.get_nowait()
                    self.dropped += 1
                except queue.Empty:
                    pass
        self._first.put(job)

    def _next(self, inbox: queue.Queue[Any]) -> Any:
        while inbox is self._first:
            try:
                return inbox.get(timeout=0.2)
            except queue.Empty:
                # The source may wait for a camera that gives nothing any more; a stop does not wait for it.
                if self.stopping.is_set():
                    return _END
        return inbox.get()

    def _work(self, index: int, stage: Stage[Job], inbox: queue.Queue[Any], outbox: queue.Queue[Any]) -> None:
        # A broken stage goes on taking jobs, or the ones before it would wait for room for ever.
        while (job := self._next(inbox)) is not _END:
            if index <= self._broken or (self._stopped and not stage.finishes):
                continue
            start = time.perf_counter()
            try:
                stage.work(job)
            except BaseException as error:
                self._broken = max(self._broken, index)
                self._fail(error)
                continue
            self.busy[stage.name] += time.perf_counter() - start
            outbox.put(job)
        outbox.put(_END)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self.stopping.set()
