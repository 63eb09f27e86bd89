"""Stages that overlap: threads of their own, bounded queues between them, errors that travel, and a way to stop."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
_END: Any = object()
LONGEST = 4  # times as long as asked for: how long a list may become of jobs that do not count


@dataclass(frozen=True, slots=True)
class Stage(Generic[Job]):
    """A step every job goes through.

    Attributes:
        name: for messages and for `Pipeline.busy`.
        work: what is done to a job; to a list of jobs in a stage that gathers, and in those behind it up to the one
            that scatters.
        finishes: after a stop it still works off what reaches it.
        threads: how many jobs it works on at once. They leave in the order in which they came.
        gathers: of how many jobs it makes one list; 0 for none. The last list may be shorter.
        counts: which jobs count towards `gathers`; the others travel along.
        hurries: whether nothing more will come before the list is handed on; then it stays short.
        scatters: behind this stage a list is single jobs again.
    """

    name: str
    work: Callable[[Any], None]
    finishes: bool = False
    threads: int = 1
    gathers: int = 0
    counts: Callable[[Job], bool] = lambda job: True
    hurries: Callable[[], bool] = lambda: False
    scatters: bool = False


class Pipeline(Generic[Job]):
    """Runs jobs from a source through stages, in order; `for job in pipeline` gives the finished ones.

    Every stage has threads of its own, so the slowest of them sets the rate. At most `depth` jobs wait before a stage:
    memory does not grow with the number of jobs. When a stage or the source raises, the jobs ahead of it are finished,
    the others are dropped, and the loop raises that very exception. `stop()` ends the source, drops what has not yet
    reached a stage that `finishes`, and lets the loop run out.

    Attributes:
        busy: seconds that the source and each stage have worked, by name.
        dropped: jobs of a live source that were too old by the time the first stage was free.
        stopping: set once no more jobs are wanted; the source must look at it while it waits.
    """

    def __init__(
        self,
        source: Iterable[Job],
        stages: list[Stage[Job]],
        *,
        name: str = "decode",
        depth: int = 2,
        live: bool = False,
        awaited: Callable[[], bool] = lambda: True,
    ) -> None:
        """`live`: jobs that come too fast are dropped. `awaited`: whether more of them come soon, so that a list is
        worth waiting for."""
        self.busy = dict.fromkeys([name, *(stage.name for stage in stages)], 0.0)
        self.dropped = 0
        self.stopping = threading.Event()
        self._stopped = False
        self._error: BaseException | None = None
        self._broken = -1  # index of the last stage that has raised; what is before it works for nobody
        self._name = name
        self._live, self._awaited = live, awaited
        self._lock = threading.Lock()  # of `busy`
        queues: list[queue.Queue[Any]] = [queue.Queue(depth) for _ in stages]
        self._first = queues[0]
        self._done: queue.Queue[Any] = queue.Queue(depth)
        self._threads = [threading.Thread(target=self._feed, args=(source,), name=name, daemon=True)]
        for index, (stage, inbox, outbox) in enumerate(zip(stages, queues, [*queues[1:], self._done], strict=True)):
            crew = _Crew(self, index, stage, inbox, outbox)
            self._threads += [
                threading.Thread(target=crew.work, name=stage.name, daemon=True) for _ in range(stage.threads)
            ]
        self._started = False

    def stop(self) -> None:
        """Ask for no more jobs. The loop goes on with those that are nearly done, then ends."""
        self._stopped = True
        self.stopping.set()

    def abandon(self) -> None:
        """Stop, and wait until what is nearly done is finished; its jobs, and errors that come now, are left aside."""
        self.stop()
        with contextlib.suppress(Exception):
            collections.deque(self, maxlen=0)

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
                self.worked(self._name, start)
                if job is _END:
                    break
                self._hand_in(job)
        except BaseException as error:
            self.fail(error)
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

    def next_job(self, inbox: queue.Queue[Any]) -> Any:
        """The next job of a queue, or the end."""
        while inbox is self._first:
            try:
                return inbox.get(timeout=0.2)
            except queue.Empty:
                # The source may wait for a camera that gives nothing any more; a stop does not wait for it.
                if self.stopping.is_set():
                    return _END
        return inbox.get()

    @property
    def patient(self) -> bool:
        """Whether a list is worth waiting for. Of a live source jobs come when they come."""
        return not self._live and self._awaited()

    def useless(self, index: int, stage: Stage[Job]) -> bool:
        """Whether what reaches a stage is to be dropped."""
        return index <= self._broken or (self._stopped and not stage.finishes)

    def worked(self, name: str, start: float) -> None:
        """Count the time since `start` as work of a stage."""
        with self._lock:
            self.busy[name] += time.perf_counter() - start

    def fail(self, error: BaseException, index: int = -1) -> None:
        """Keep the first error, which the loop raises; `index` is the stage's."""
        self._broken = max(self._broken, index)
        if self._error is None:
            self._error = error
        self.stopping.set()


class _Crew(Generic[Job]):
    """The threads of one stage. They take jobs in turns, and hand them on in the same order."""

    def __init__(
        self, pipeline: Pipeline[Job], index: int, stage: Stage[Job], inbox: queue.Queue[Any], outbox: queue.Queue[Any]
    ) -> None:
        self._pipeline, self._index, self._stage = pipeline, index, stage
        self._inbox, self._outbox = inbox, outbox
        self._taking = threading.Lock()
        self._handing = threading.Condition()
        self._taken = self._handed = 0
        self._end = False  # the crew has met the end
        self._over = False  # so has the queue
        self._failed: int | None = None  # the turn that has raised; what comes after it is dropped

    def work(self) -> None:
        """Work until the end comes."""
        while True:
            with self._taking:
                turn, self._taken = self._taken, self._taken + 1
                first_end = not self._end
                job = self._take() if first_end else _END
                self._end = job is _END
            done = job is not _END and self._do(job, turn)
            with self._handing:
                while self._handed != turn:
                    self._handing.wait()
                after_a_failure = self._failed is not None and turn > self._failed
            # Only whoever has the turn hands on, so nobody else needs the condition's lock while the queue is full.
            if done and not after_a_failure:
                for item in job if self._stage.scatters else [job]:
                    self._outbox.put(item)
            if job is _END and first_end:
                self._outbox.put(_END)
            with self._handing:
                self._handed += 1
                self._handing.notify_all()
            if job is _END:
                return

    def _take(self) -> Any:
        """The next job, or list of jobs, that is wanted; or the end."""
        gathered: list[Job] = []
        counted = 0
        while True:
            job = self._next(waits=not gathered, patient=self._pipeline.patient)
            if job is None or job is _END:
                # The end is met again after the last list.
                self._over = job is _END
                return gathered or _END
            if self._pipeline.useless(self._index, self._stage):
                continue  # and go on taking jobs, or the stages before would wait for room for ever
            if not self._stage.gathers:
                return job
            gathered.append(job)
            counted += self._stage.counts(job)
            if counted >= self._stage.gathers or len(gathered) >= LONGEST * self._stage.gathers:
                return gathered

    def _next(self, waits: bool, patient: bool) -> Any:
        """The next job; the end; or None where there is no job and the list is to be handed on.

        `waits`: there is no list yet. `patient`: a list is worth waiting for, unless the stage hurries.
        """
        if self._over:
            return _END
        if waits:
            return self._pipeline.next_job(self._inbox)
        while True:
            try:
                return self._inbox.get(timeout=0.02) if patient else self._inbox.get_nowait()
            except queue.Empty:
                if not patient or self._stage.hurries() or self._pipeline.stopping.is_set():
                    return None

    def _do(self, job: Any, turn: int) -> bool:
        """Do the work; whether it was done."""
        start = time.perf_counter()
        try:
            self._stage.work(job)
        except BaseException as error:
            with self._handing:
                self._failed = turn if self._failed is None else min(turn, self._failed)
            self._pipeline.fail(error, self._index)
            return False
        self._pipeline.worked(self._stage.name, start)
        return True
