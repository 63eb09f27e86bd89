"""One clip from end to end: decode, resize, network, merge, track, draw and encode as stages that overlap."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.frames.clip import Clip, Frame, frames_between
from runtime.outputs.draw import draw_overlay, label_image, paint
from runtime.stream.pipeline import Pipeline, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.outputs.sinks import Sink
    from runtime.result import Merged, Result
    from runtime.segmenter import Segmenter

# Two frames are near-identical when, at the engine's size, they differ by less than this many grey levels on average,
# and nowhere by more than this over a 16th of a side: noise passes, a small thing that moves does not.
SIMILAR_ON_AVERAGE, SIMILAR_ANYWHERE = 1.0, 4.0


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """How a clip is segmented.

    Attributes:
        start, end: part of the clip in seconds; `end` None: all that is left.
        every: the engine sees every so many frames; between them labels are carried along the optical flow.
        skip_similar: a frame like the last one segmented takes over its labels.
        temporal: labels are identities that stay with their objects; False: every frame by itself.
        warm_start: with `temporal`, the proposals of the last frame stand in for part of the anchors, which saves half
            of the merge.
        size, rate: width and height, and frames per second, of raw frames and numbered pictures.
        reconnect: open a camera or stream again when it drops.
        show: show the overlay in a window.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    every: int = 1
    skip_similar: bool = False
    warm_start: bool = False
    temporal: bool = True
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    reconnect: bool = False
    show: bool = False


@dataclass(slots=True)
class Job:
    """A frame on its way. Each stage fills in its part and lets go of what nobody needs any more."""

    frame: Frame
    number: int = -1
    reused: bool = False
    carried: bool = False
    resized: NDArray[np.uint8] | None = None
    maps: list[NDArray[Any]] | Merged | None = None
    result: Result | None = None
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)


DRAWN: dict[str, Callable[[NDArray[np.uint8], Result], NDArray[Any]]] = {
    "overlay": lambda frame, result: draw_overlay(frame, result.labels),
    "segments": lambda frame, result: paint(result.labels),
    "labels": lambda frame, result: label_image(result.labels),
    "archive": lambda frame, result: label_image(result.labels),
}


class ClipSegmenter:
    """The stages of one clip, and what they remember from frame to frame."""

    def __init__(
        self, segmenter: Segmenter, options: ClipOptions, sinks: dict[str, Sink], drawn: Iterable[str] | None = None
    ) -> None:
        """`sinks`: by kind, where pictures go; `drawn`: kinds to draw, those of the sinks if left out.

        Raises DiffSegError where a warm start is asked of an engine without maps.
        """
        if options.warm_start:
            segmenter.require_maps("warm start")
        self._segmenter = segmenter
        self._options = options
        self._sinks = sinks
        self._drawn = tuple(sinks if drawn is None else drawn)
        self._numbers = itertools.count()
        self._seen: NDArray[np.uint8] | None = None
        self._last: Result | None = None
        self._seeds: NDArray[np.float32] | None = None
        self._aside: Segmenter | None = None
        self._tracker: Any = None
        if options.temporal or options.every > 1:
            self._tracker = self._fresh_tracker()

    @staticmethod
    def _fresh_tracker() -> Any:
        from runtime.track.tracker import Tracker

        return Tracker()

    def pipeline(self, clip: Clip) -> Pipeline[Job]:
        """The pipeline of a clip, not yet started. It closes the clip when that ends."""

        def jobs() -> Iterator[Job]:
            try:
                for frame in frames_between(clip, self._options.start, self._options.end, pipeline.stopping):
                    yield Job(frame)
            finally:  # here, for a clip must not be closed while another thread waits in it
                clip.close()

        stages = [
            self._stage("resize", self._resize),
            self._stage("network", self._network),
            self._stage("merge", self._merge),
            # From here on a stopped pipeline finishes what it has.
            self._stage("draw", self._draw, finishes=True),
            self._stage("encode", self._encode, finishes=True),
        ]
        if self._tracker is not None:
            stages.insert(3, self._stage("track", self._track, finishes=True))
        pipeline: Pipeline[Job] = Pipeline(jobs(), stages, live=clip.live)
        return pipeline

    @staticmethod
    def _stage(name: str, work: Callable[[Job], None], *, finishes: bool = False) -> Stage[Job]:
        def timed(job: Job) -> None:
            start = time.perf_counter()
            work(job)
            job.milliseconds[name] = round((time.perf_counter() - start) * 1e3, 3)

        return Stage(name, timed, finishes)

    def _resize(self, job: Job) -> None:
        job.number = next(self._numbers)
        job.carried = job.number % self._options.every != 0
        if job.carried and not self._options.skip_similar:
            return
        resized = self._segmenter.resize(job.frame.image)
        if self._options.skip_similar:
            job.reused = self._seen is not None and similar(resized, self._seen)
            if job.reused:
                job.carried = False
                return
            # After a frame that was carried over, the labels shown last are no longer those of the frame seen last.
            self._seen = None if job.carried else resized
        if not job.carried:
            job.resized = resized
            self._segmenter.prefetch(resized)

    def _network(self, job: Job) -> None:
        if job.resized is not None:
            job.maps = self._segmenter.network(job.resized, proposals=self._options.temporal)
        job.resized = None

    def _merge(self, job: Job) -> None:
        from runtime.result import Result

        if job.maps is None:
            return
        merged = self._segmenter.merge(job.maps, seeds=self._seeds)
        labels, count, proposals = self._segmenter.fit(merged, job.frame.image, proposals=self._options.temporal)
        self._seeds = proposals if self._options.warm_start else None  # without `temporal` there are none
        job.maps = None
        job.result = Result(labels, count, {}, proposals)

    def _track(self, job: Job) -> None:
        if job.result is not None:
            job.result = self._identify(job.frame.image, job.result)
        elif job.carried:
            job.result = self._tracker.propagate(job.frame.image)
            if self._tracker.cut:  # another scene: nothing to carry over. The network's own thread is frames ahead.
                self._aside = self._aside or self._segmenter.clone()
                found = self._aside(job.frame.image, proposals=self._options.temporal)
                job.result = self._identify(job.frame.image, found)

    def _identify(self, image: NDArray[np.uint8], result: Result) -> Result:
        """Identities, or without `temporal` the segments as they are, from which the next frames are carried over."""
        if self._options.temporal:
            return self._tracker.update(image, result)
        self._tracker = self._fresh_tracker()
        self._tracker.update(image, result)
        return result

    def _draw(self, job: Job) -> None:
        if job.result is None:  # a frame like the last one
            assert self._last is not None
            job.result = self._last
        self._last = job.result = replace(job.result, proposals=None, milliseconds=job.milliseconds)
        job.pictures = {kind: DRAWN[kind](job.frame.image, job.result) for kind in self._drawn}

    def _encode(self, job: Job) -> None:
        for kind, sink in self._sinks.items():
            sink.write(job.number, job.frame.time, job.pictures[kind])


def similar(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two frames uint8 [H, W, 3] of one size are near-identical: the same but for noise."""
    difference = cv2.absdiff(one, other)
    if sum(cv2.mean(difference)[:3]) / 3 >= SIMILAR_ON_AVERAGE:
        return False
    side = max(1, min(difference.shape[:2]) // 16)
    return bool(cv2.blur(difference, (side, side)).max() < SIMILAR_ANYWHERE)
