"""The stages that photographs and clips share, overlapping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.errors import as_one_line
from runtime.hierarchy import merge_levels
from runtime.merge.threads import usable_cores
from runtime.outputs.palette import Painter
from runtime.stream.continuity import Continuity
from runtime.stream.frame import drop_unwanted, is_segmented
from runtime.stream.pipeline import Pipeline, Stage
from runtime.stream.room import Room, with_turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.stages import Stages
    from runtime.stream.frame import Job

MOST_THREADS = 4  # of a stage: frames in memory grow with them
MOST_PIXELS = 48_000_000  # of frames between resizing and the end, where there is more than one


class Stream:
    """The stages that every frame goes through, as a pipeline.

    With a `continuity` the frames are those of a clip; without one every frame is a photograph by itself, which may
    fail without harm to the others.
    """

    def __init__(self, stages: Stages, continuity: Continuity | None = None) -> None:
        self._stages = stages if continuity is None else continuity.stages
        self._continuity = continuity
        self._room = Room(MOST_PIXELS)
        self._painter = Painter()

    def pipeline(
        self,
        jobs: Iterable[Job],
        *,
        live: bool = False,
        writes: bool = True,
        awaited: Callable[[], bool] = lambda: True,
    ) -> Pipeline[Job]:
        """The pipeline, not yet started. Jobs with `still` are decoded in it. `writes`: frames go to their sinks.

        `awaited`: see `Pipeline`.
        """
        threads = min(MOST_THREADS, usable_cores())
        clip = self._continuity is not None
        stages = [self._stage("resize", self._resize)]
        if not clip:
            stages.insert(0, Stage("decode", self._decode, threads=threads))
        # An engine's copy to its device may begin here, while the network works on the frames before.
        stages.append(
            Stage(
                "gather",
                self._gather,
                gathers=self._stages.frames,
                counts=is_segmented,
                hurries=self._room.is_full,
            )
        )
        if self._stages.route.overlaps:
            stages += [Stage("network", self._network, scatters=True), self._stage("merge", self._merge)]
        else:  # what the network gives lasts until its next pass
            stages.append(Stage("network", self._network_and_merge, scatters=True))
        if self._continuity is None or not self._continuity.warm_start:
            stages.append(self._stage("labels", self._finish, threads=threads))
        # From here on a stopped pipeline finishes what it has.
        if clip:
            stages.append(self._stage("track", self._settle, finishes=True))
        if writes:
            stages.append(self._stage("draw", self._draw, finishes=True, threads=threads))
            stages.append(self._stage("encode", self._write, finishes=True))
        stages.append(Stage("leave", self._leave, finishes=True))
        pipeline: Pipeline[Job] = Pipeline(
            with_turns(jobs), stages, name="decode" if clip else "find", live=live, awaited=awaited
        )
        self._room.stopping = pipeline.stopping
        self._stages.stop_with(pipeline.stopping)
        return pipeline

    def _stage(self, name: str, work: Callable[[Job], None], **options: Any) -> Stage[Job]:
        """A stage that times its work, and keeps an error of a photograph with it."""

        def timed(job: Job) -> None:
            drop_unwanted([job])
            if job.error is None:
                with self._errors_of([job]):
                    start = time.perf_counter()
                    work(job)
                    job.milliseconds[name] = _since(start)

        return Stage(name, timed, **options)

    def _of(self, job: Job) -> Stages:
        return job.stages or self._stages

    @contextmanager
    def _errors_of(self, jobs: Sequence[Job]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # What is not installed is no fault of a photograph.
            if self._continuity is not None or isinstance(error, ModuleNotFoundError):
                raise
            for job in jobs:
                name = "this frame" if job.source is None else job.source.name
                job.error = job.error or as_one_line(error, name)

    def _decode(self, job: Job) -> None:
        # In turn, also for what has failed: whoever overtook another here could take the room that one waits for.
        if job.error is None:
            job.room = job.still.pixels() if job.still is not None else _frame(job).shape[0] * _frame(job).shape[1]
        self._room.take(job.room, job.turn)
        self._stage("decode", self._read).work(job)

    @staticmethod
    def _read(job: Job) -> None:
        if job.still is not None:
            job.frame, job.still = job.still.read(), None

    def _resize(self, job: Job) -> None:
        if self._continuity is None:
            job.resized = self._stages.resize(_frame(job)) if job.resized is None else job.resized
        else:
            job.fate, job.resized = self._continuity.decide(_frame(job))
        job.size = (_frame(job).shape[0], _frame(job).shape[1])
        if self._continuity is not None:
            job.room = job.size[0] * job.size[1]
            self._room.take(job.room)  # one thread takes it here, in order; of a live clip some turns never come

    def _gather(self, jobs: list[Job]) -> None:
        resized = [job.resized for job in jobs if job.resized is not None]
        for job in jobs:
            job.resized = None
        if resized:
            with self._errors_of(jobs):
                jobs[0].batch = self._stages.gather(resized)
                self._stages.prefetch(jobs[0].batch)

    def _network(self, jobs: list[Job], then: Callable[[Job], None] = lambda job: None) -> None:
        """Run the network, and `then` on what it has seen. Where a batch of photographs fails, each runs by itself."""
        segmented = [job for job in jobs if is_segmented(job)]
        batch, jobs[0].batch = jobs[0].batch, None
        if batch is None or not segmented or drop_unwanted(segmented):
            return
        parts: Iterable[tuple[NDArray[np.uint8], list[Job]]] = [(batch, segmented)]
        if self._continuity is None and len(segmented) > 1:
            each = zip(batch, segmented, strict=False)  # a fixed batch is filled up
            parts = ((self._stages.gather([resized]), [job]) for resized, job in each)
            if self._stages.route.has_maps or len({id(job.stages) for job in segmented}) == 1:
                with suppress(Exception):  # of each by itself, below
                    return self._infer(batch, segmented, then)
        for part, owners in parts:
            with self._errors_of(owners):
                self._infer(part, owners, then)

    def _infer(self, batch: NDArray[np.uint8], jobs: list[Job], then: Callable[[Job], None]) -> None:
        start = time.perf_counter()
        outputs = self._of(jobs[0]).network(batch, len(jobs))  # thresholds in a graph are those of all
        spent = round(_since(start) / len(jobs), 3)
        for job, output in zip(jobs, outputs, strict=True):
            job.output, job.milliseconds["network"] = output, spent
            then(job)

    def _network_and_merge(self, jobs: list[Job]) -> None:
        merge = self._stage("merge", self._merge).work
        self._network(jobs, merge)
        for job in jobs:
            if "merge" not in job.milliseconds:  # which the network has not seen
                merge(job)

    def _merge(self, job: Job) -> None:
        if job.output is None:
            return
        output, job.output = job.output, None
        clip = self._continuity
        if job.levels is not None:
            job.hierarchy = merge_levels(self._stages, output, _frame(job), job.levels)
        job.merged = self._of(job).merge(
            output, proposals=clip is not None and clip.temporal, seeds=None if clip is None else clip.seeds
        )
        if clip is not None and clip.warm_start:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.merged is None:
            return
        clip = self._continuity
        merged, job.merged = job.merged, None
        temporal = clip is not None and clip.temporal
        job.result = self._of(job).finish(merged, _frame(job), proposals=temporal)
        if clip is not None:
            clip.remember(job.result)

    def _settle(self, job: Job) -> None:
        assert self._continuity is not None
        job.result = self._continuity.settle(job.fate, _frame(job), job.result)
        if job.places:
            job.colours = self._painter(job.result.labels)

    def _draw(self, job: Job) -> None:
        assert job.result is not None
        views: dict[int | None, NDArray[np.int32]] = {None: job.result.labels}
        if job.hierarchy is not None:
            views |= {level: job.hierarchy.labels(level) for level in range(job.hierarchy.levels)}
        colours = {level: Painter()(labels) for level, labels in views.items()} if job.colours is None else {}
        for place in job.places:
            labels, chosen = views[place.level], colours.get(place.level, job.colours)
            named = self._stages.names_of(labels, job.result.words) if place.level is not None else job.result.names
            job.prepared.append(place.sink.prepare(_frame(job), labels, chosen, named))

    def _write(self, job: Job) -> None:
        for place, prepared in zip(job.places, job.prepared, strict=True):
            path = place.sink.write(job.number, job.time, prepared)
            if path is not None:
                job.written += [one for one in (path, place.sink.listing) if one is not None and one not in job.written]

    def _leave(self, job: Job) -> None:
        self._room.give(job.room)
        job.frame = job.resized = job.batch = job.output = None
        if job.result is not None:
            total = round(sum(job.milliseconds.values()), 3)
            job.result = replace(job.result, proposals=None, milliseconds={**job.milliseconds, "total": total})


def _frame(job: Job) -> NDArray[np.uint8]:
    assert job.frame is not None
    return job.frame


def _since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 3)
