"""One clip from end to end: its outputs are whole however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError, one_line
from runtime.frames.clip import frames_between
from runtime.frames.opening import open_clip
from runtime.outputs.form import ClipForm
from runtime.outputs.registry import clip_sinks
from runtime.outputs.sinks import Sink, refuse_foreign
from runtime.stream.continuity import Continuity
from runtime.stream.frame import Job, Place, json_line
from runtime.stream.job import Stream
from runtime.stream.window import Drawn, check_window, close_window, show
from runtime.terminal import interruptions_held

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress

    from runtime.frames.clip import Clip
    from runtime.frames.source import Source
    from runtime.outputs.target import Target
    from runtime.stages import Stages
    from runtime.stream.options import ClipOptions
    from runtime.stream.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a clip. `busy`: share of the time each stage worked; `lost`: what could not be read.

    `sinks`: what has written it, by kind. `whole`: it was not stopped before its end.
    """

    frames: int
    seconds: float
    busy: dict[str, float]
    lost: tuple[str, ...]
    sinks: Mapping[str, Sink]
    whole: bool

    @property
    def written(self) -> tuple[Path, ...]:
        """The files and folders."""
        return tuple(sink.path for sink in self.sinks.values())

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.busy.items())
        plural = "" if self.frames == 1 else "s"
        files = ", ".join(str(path) for path in self.written) or "nothing written"
        return f"{self.frames} frame{plural} in {self.seconds:.1f} s ({shares}): {files}"


def run_clip(
    stages: Stages,
    source: Source,
    target: Target,
    kinds: Iterable[str],
    options: ClipOptions,
    *,
    progress: Progress,
    report: Callable[[dict[str, object]], None],
    say: Callable[[str], None],
    check: Callable[[Sink], None] = lambda sink: None,
) -> Outcome:
    """Segment one clip into its kinds of output at `target`.

    `report` gets each frame's JSON line, `say` a line for people; `check` may refuse a place.
    Whatever ends it, an error or an interruption, the files hold the frames that were done, and are whole. Raises
    DiffSegError, or what a stage raised.
    """
    if options.show:
        check_window()
    clip = open_clip(
        source, start=options.start, size=options.size, rate=options.rate, reconnect=options.reconnect, say=say
    )
    try:
        sinks = clip_sinks(kinds, target, ClipForm.of(clip), say)
        for sink in sinks.values():
            check(sink)
            refuse_foreign(sink.path)
        continuity = Continuity(
            stages,
            temporal=options.temporal,
            every=options.every,
            skip_similar=options.skip_similar,
            warm_start=options.warm_start,
        )
    except BaseException:
        clip.close()
        raise
    places = [Place(kind, sink) for kind, sink in sinks.items()]
    if options.show and "overlay" not in sinks:
        places.append(Place("overlay", Drawn()))
    shown = next((number for number, place in enumerate(places) if place.kind == "overlay"), -1)

    def jobs() -> Iterator[Job]:
        try:
            for frame in frames_between(clip, options.start, options.end, pipeline.stopping):
                yield Job(source, frame=frame.image, number=frame.number, time=frame.time, places=places)
        finally:  # here, for a clip must not be closed while another thread waits in it
            clip.close()

    pipeline = Stream(stages, continuity).pipeline(jobs(), live=clip.live)
    frames, stopped = 0, False
    began = time.perf_counter()
    task = progress.add_task(one_line(source.name), total=_expected(clip, options), detail="")
    window = f"DiffSeg: {source.name}" if options.show else None
    with interruptions_held(pipeline.stop):
        try:
            for job in pipeline:
                frames += 1
                progress.update(task, completed=frames, detail=_rates(pipeline, frames, time.perf_counter() - began))
                report(json_line(job, {"time": round(float(job.time), 6)}))
                if window and not show(window, job.prepared[shown]):
                    stopped = True
                    pipeline.stop()
        except BaseException:
            pipeline.abandon()
            _close(list(sinks.values()), quiet=True)
            raise
        finally:
            progress.remove_task(task)
            if window:
                close_window(window)
        _close(list(sinks.values()))
    lost = tuple(clip.lost)
    if not frames:
        reason = "; ".join(lost) or "no frames" + (" between --start and --end" if options.start or options.end else "")
        raise DiffSegError(f"{source.name}: {reason}")
    if pipeline.dropped:
        say(f"{source.name}: {pipeline.dropped} frames came faster than they could be segmented, and were left out")
    seconds = time.perf_counter() - began
    busy = {name: spent / seconds for name, spent in pipeline.busy.items() if name not in ("gather", "leave")}
    return Outcome(frames, seconds, busy, lost, sinks, not (lost or pipeline.dropped or stopped))


def _close(sinks: list[Sink], *, quiet: bool = False) -> None:
    failure: Exception | None = None
    for sink in sinks:
        try:
            sink.close()
        except Exception as error:
            failure = failure or error
    if failure is not None and not quiet:
        raise failure


def _expected(clip: Clip, options: ClipOptions) -> int | None:
    """How many frames there will be, as far as the source says."""
    ends = [float(end) for end in (clip.seconds, options.end) if end is not None]
    if not ends or not clip.rate:
        return None
    return max(1, round((min(ends) - float(options.start)) * float(clip.rate)))


def _rates(pipeline: Pipeline[Job], frames: int, seconds: float) -> str:
    """Frames per second, overall and of each stage were it alone."""
    stages = ", ".join(f"{name} {frames / spent:.0f}/s" for name, spent in pipeline.busy.items() if spent > 0)
    return f"{frames / seconds:.1f}/s ({stages})"
