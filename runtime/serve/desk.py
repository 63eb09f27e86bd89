"""Between requests and workers: how many frames may be inside, who works on which, and when a request is given up."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from runtime.errors import DiffSegError, as_one_line
from runtime.merge.threads import usable_cores
from runtime.options import settle_options
from runtime.refine.refinement import Refinement
from runtime.serve.settings import GONE, Refused
from runtime.serve.worker import Worker
from runtime.stages import Stages

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter
    from runtime.serve.metrics import Metrics
    from runtime.serve.settings import Settings
    from runtime.stream.frame import Job

Value = TypeVar("Value")
Gone = Callable[[], Awaitable[Any]] | None
MOST_VARIANTS = 64  # combinations of options that are kept for each worker


class Options(NamedTuple):
    """How a request is segmented, where not as the service was told: thresholds, a number of them, "auto", or None."""

    thresholds: Any = None
    refine: str | None = None
    min_area: float | None = None
    pieces: str | None = None


class Desk:
    """Takes work for the workers, one for each device.

    All of its methods but `close` are called from the event loop's thread.
    """

    def __init__(self, segmenters: Sequence[Segmenter], settings: Settings, metrics: Metrics) -> None:
        """`segmenters`: one for each device, of one engine."""
        self.settings, self.metrics = settings, metrics
        self.segmenter = segmenters[0]
        self._workers = [Worker(segmenter) for segmenter in segmenters]
        self._variants: OrderedDict[tuple[int, Options], Stages] = OrderedDict()
        self._threads = ThreadPoolExecutor(usable_cores(), "aside")
        # For work beside the stream: clips, and pictures whose attention is kept.
        self.aside = [segmenter.clone() for segmenter in segmenters]
        self.inside = 0  # frames
        self._pace = 0.1  # seconds from one frame's end to the next one's, while there is work
        self._last = 0.0

    @property
    def ready(self) -> bool:
        """Whether every worker takes work."""
        return all(worker.works for worker in self._workers)

    def _take(self, count: int) -> None:
        """Make room for frames. Raises Refused, 503, where too many are inside already."""
        if self.inside + count > self.settings.queue:
            if count > self.settings.queue:
                raise Refused(413, f"expected at most {self.settings.queue} frames at once, found {count}; send fewer")
            wait = max(1, math.ceil(self.inside * self._pace))
            raise Refused(
                503,
                f"the service is full: {self.inside} of {self.settings.queue} frames are waiting; try again in "
                f"{wait} s",
                Retry_After=str(wait),
            )
        self.inside += count
        self.metrics.inside.set(self.inside)

    def _give(self) -> None:
        now = time.monotonic()
        if self.inside > 1 and self._last:
            self._pace += 0.1 * (min(now - self._last, 60) - self._pace)
        self._last = now
        self.inside -= 1
        self.metrics.inside.set(self.inside)

    def options(self, options: Options, segmenter: Segmenter | None = None) -> Stages:
        """Stages with these options. Raises Refused, 400, where they are invalid."""
        base = (segmenter or self.segmenter).stages
        if options == Options():
            return base
        key = (id(base), options)
        if key not in self._variants:
            try:
                config, refinement, auto = settle_options(
                    base.route.config,
                    thresholds=options.thresholds,
                    refine="none" if options.refine is None else options.refine,
                    solver=base.route.config.solver if options.refine is None else None,
                    min_area=base.refinement.min_area if options.min_area is None else options.min_area,
                    pieces=options.pieces or base.refinement.pieces,
                    auto=base.route.auto and not base.asked,
                )
                if options.refine is None:
                    refinement = Refinement(base.refinement.names, refinement.min_area, refinement.pieces)
                asked = options.thresholds is not None or base.asked
                auto = auto or (base.route.auto and base.asked and options.thresholds is None)
                route = type(base.route)(base.route.engine, config, auto)
                self._variants[key] = Stages(route, refinement, asked=asked or not auto)
            except (DiffSegError, ValueError) as error:
                raise Refused(400, str(error).replace("thresholds:", "threshold:", 1)) from None
            if len(self._variants) > MOST_VARIANTS * len(self._workers):
                self._variants.popitem(last=False)
        self._variants.move_to_end(key)
        return self._variants[key]

    async def segment(
        self, jobs: Sequence[Job], options: Options, gone: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        """Segment the jobs of one request.

        `gone()` ends once nobody waits for the answer any more. Raises Refused: 503 where there is no room, 504 when
        the time is up, GONE when nobody waits, 400 where a picture is invalid and 500 where the engine fails.
        """
        self._take(len(jobs))
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        worker = min(self._workers, key=len)
        given = 0
        try:
            stages = self.options(options, worker.segmenter)
            futures = []
            for job in jobs:
                job.stages = stages
                future: asyncio.Future[Job] = loop.create_future()
                futures.append(future)

                def done(job: Job, future: asyncio.Future[Job] = future) -> None:
                    loop.call_soon_threadsafe(self._left, job, future)

                worker.submit(job, done)
                given += 1
        finally:
            for _ in range(len(jobs) - given):
                self._give()
        try:
            await self._within(asyncio.gather(*futures), gone)
        except BaseException:
            for job in jobs:
                job.unwanted = True
            raise
        spent = (time.perf_counter() - started) * 1e3
        for job in jobs:
            for stage, milliseconds in job.milliseconds.items():
                self.metrics.stage(stage, milliseconds / 1e3)
            waited = spent - sum(job.milliseconds.values())
            self.metrics.stage("queue", max(waited, 0) / 1e3)
            if job.error is not None:
                raise Refused(500 if "resize" in job.milliseconds else 400, str(job.error))

    def _left(self, job: Job, future: asyncio.Future[Job]) -> None:
        self._give()
        if not future.done():
            future.set_result(job)

    async def aside_of(self, work: Callable[[], Value], gone: Gone = None) -> Value:
        """Do work in a thread beside the stream, which takes the room of one frame.

        Raises Refused as `segment` does; a DiffSegError of the work is 400. Work whose time is up goes on, and holds
        its room until its end.
        """
        self._take(1)
        loop = asyncio.get_running_loop()
        left = threading.Event()  # nobody waits any more

        def guarded() -> Value:
            if left.is_set():
                raise Refused(GONE, "nobody waits for this any more")
            try:
                return work()
            except DiffSegError:
                raise
            except Exception as error:
                raise Refused(500, str(as_one_line(error, "this request"))) from None

        future = loop.run_in_executor(self._threads, guarded)

        def ended(done: asyncio.Future[Value]) -> None:
            self._give()
            _looked_at(done)

        future.add_done_callback(ended)
        try:
            return await self._within(asyncio.shield(future), gone)
        except Refused:
            raise
        except DiffSegError as error:
            raise Refused(400, str(error)) from None
        finally:
            left.set()

    async def _within(self, work: asyncio.Future[Value], gone: Gone) -> Value:
        """The value of the work. Raises Refused where it takes too long, or nobody waits for it."""
        watch = None if gone is None else asyncio.ensure_future(gone())
        waited: set[asyncio.Future[Any]] = {work} if watch is None else {work, watch}
        try:
            done, _ = await asyncio.wait(waited, timeout=self.settings.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return work.result()
            if watch is not None and watch in done:
                self.metrics.gone.inc()
                raise Refused(GONE, "the client went away")
            raise Refused(504, f"not finished within {self.settings.seconds:g} s; try again later, or raise --seconds")
        finally:
            if watch is not None:
                watch.cancel()
            if not work.done():
                work.cancel()
                work.add_done_callback(_looked_at)

    def close(self) -> None:
        """Finish what is inside, and end the workers."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _looked_at(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()  # asyncio reports one that nobody has looked at
