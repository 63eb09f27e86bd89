"""One device's engine at work: the stream's stages, fed by requests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from runtime.errors import as_one_line
from runtime.stream.job import Stream

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter
    from runtime.stream.frame import Job

_END: Any = None


class Worker:
    """Segments jobs as photographs: decoding, network, merge, drawing and encoding of different jobs overlap.

    Jobs that arrive together run through the network together where the engine takes batches; a job that is alone waits
    for no others. A job that fails has its `error`, and harms no other.

    Attributes:
        segmenter: of the device; its stages belong to this worker.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._inside: dict[int, tuple[Job, Callable[[Job], None]]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many jobs are inside."""
        return len(self._inside)

    @property
    def works(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._closed

    def submit(self, job: Job, done: Callable[[Job], None]) -> None:
        """Take a job; `done` is called with it, in another thread, once it is segmented, given up, or has failed."""
        with self._lock:
            self._inside[id(job)] = (job, done)
            self._inbox.put(job)

    def close(self) -> None:
        """Finish what is inside, and end."""
        self._closed = True
        with self._lock:
            self._inbox.put(_END)
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                inbox = self._inbox
            pipeline = Stream(self.segmenter.stages).pipeline(_jobs(inbox), awaited=self._more_come)
            try:
                for job in pipeline:
                    self._leave(job)
                if self._closed:
                    return
            except Exception as error:  # of a stage itself; what was inside is lost, and the next jobs are not
                failure = as_one_line(error, "this request")
            else:
                failure = as_one_line(RuntimeError("the stream has ended"), "this request")
            with self._lock:
                inbox.put(_END)  # for the thread that waits for jobs of the pipeline that has failed
                self._inbox = queue.SimpleQueue()
                if self._closed:
                    self._inbox.put(_END)
                lost = [job for job, _ in self._inside.values()]
            for job in lost:
                job.error = job.error or failure
                self._leave(job)

    def _more_come(self) -> bool:
        """Whether a job is on its way to the network: still to be decoded or resized."""
        with self._lock:
            return any("resize" not in job.milliseconds and job.error is None for job, _ in self._inside.values())

    def _leave(self, job: Job) -> None:
        with self._lock:
            _, done = self._inside.pop(id(job), (None, None))
        if done is not None:
            done(job)


def _jobs(inbox: queue.SimpleQueue[Any]) -> Iterator[Job]:
    while (job := inbox.get()) is not _END:
        yield job
