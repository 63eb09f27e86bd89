"""Photographs, each by itself: while one is segmented, others are decoded, drawn and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError, as_one_line
from runtime.frames.source import Source
from runtime.frames.still import Still
from runtime.outputs.registry import picture_sinks
from runtime.outputs.sinks import Sink, refuse_foreign
from runtime.outputs.target import Target
from runtime.stages import check_frame
from runtime.stream.frame import Job, Place
from runtime.stream.job import Stream
from runtime.terminal import interruptions_held

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.result import Result
    from runtime.stages import Stages
    from runtime.stream.resume import Ledger


def run_photographs(
    stages: Stages,
    sources: Iterable[Source],
    folder: Path,
    kinds: list[str],
    *,
    finished: Callable[[Job], None],
    levels: tuple[float, ...] | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
    check: Callable[[Source, Sink], None] = lambda source, sink: None,
    ledger: Ledger | None = None,
    skipped: Callable[[Source], None] = lambda source: None,
) -> None:
    """Segment photographs into their kinds of output below `folder`; `finished` gets each one's job, in order.

    A job with an `error` has failed; the others go on. `levels`: thresholds of a hierarchy, whose levels are written,
    too. `settings`: how labels are made, for kinds that say so. `check` may refuse a place. `ledger`: what is done
    already, for which `skipped` is called instead, in another thread. Whatever ends it, files are whole: Ctrl-C lets
    those finish that are nearly done.
    """

    def jobs() -> Iterator[Job]:
        hashed = ((source, None) for source in sources) if ledger is None else ledger.hashed(sources)
        for source, content in hashed:
            target = Target.of(source, folder, settings)
            entry = None if ledger is None else ledger.entry(target, content)
            if ledger is not None and entry is not None and ledger.is_done(entry):
                skipped(source)
                continue
            still = Still(source) if ledger is None or entry is None else ledger.still(source, entry)
            job = Job(source, still, levels=levels)
            try:
                for level in (None, *range(len(levels or ()))):
                    part = target if level is None else replace(target, stem=target.path(f"_level{level}"))
                    sinks = picture_sinks(kinds, part, listed=level is None)
                    job.places += [Place(kind, sink, level) for kind, sink in sinks.items()]
                for place in job.places:
                    check(source, place.sink)
                    refuse_foreign(place.sink.path)
                if ledger is not None and entry is not None:
                    first, last = ledger.marks(entry, [(place.kind, place.sink) for place in job.places])
                    job.places = [Place("", first), *job.places, Place("", last)]
            except ModuleNotFoundError:
                raise
            except Exception as error:
                job.error = as_one_line(error, source.name)
            yield job

    pipeline = Stream(stages).pipeline(jobs())
    with interruptions_held(pipeline.stop):
        try:
            for job in pipeline:
                finished(job)
        except BaseException:
            pipeline.abandon()
            raise


def map_photographs(
    stages: Stages, inputs: Iterable[str | Path | NDArray[np.uint8]], *, give: bool
) -> Iterator[Result | DiffSegError]:
    """See `Segmenter.map`."""

    def jobs() -> Iterator[Job]:
        for given in inputs:
            if isinstance(given, (str, Path)):
                yield Job(still=Still(Source(Path(given), Path())))
                continue
            job = Job(frame=given)
            try:
                check_frame(given)  # None, for instance, is what cv2.imread gives for a file that it cannot read
            except DiffSegError as error:
                job.error = error
            yield job

    pipeline = Stream(stages).pipeline(jobs(), writes=False)
    try:
        for job in pipeline:
            if job.error is not None and not give:
                raise job.error
            if job.error is not None:
                yield job.error
            elif job.result is not None:
                yield job.result
    finally:  # also where nobody asks for more
        pipeline.abandon()
