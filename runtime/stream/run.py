"""A clip for the command line: its outputs, progress and window, and an end that is whole however it comes."""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.clip import Clip
from runtime.frames.opening import open_clip
from runtime.outputs.movie import VideoForm, VideoSink
from runtime.outputs.sinks import ArchiveSink, PngSink, Sink, refuse_foreign
from runtime.stream.clip import ClipOptions, ClipSegmenter, Job
from runtime.terminal import interruptions_held

if TYPE_CHECKING:
    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.segmenter import Segmenter
    from runtime.stream.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a clip. `busy`: share of the time each stage worked; `lost`: what could not be read."""

    frames: int
    seconds: float
    busy: dict[str, float]
    lost: tuple[str, ...]
    written: tuple[Path, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.busy.items())
        plural = "" if self.frames == 1 else "s"
        files = ", ".join(str(path) for path in self.written) or "nothing written"
        return f"{self.frames} frame{plural} in {self.seconds:.1f} s ({shares}): {files}"


def clip_paths(folder: Path, target: Path, kinds: list[str]) -> dict[str, Path]:
    """Where each kind of output of a clip goes."""
    ends = {"overlay": "_overlay.mp4", "segments": "_segments.mp4", "labels": "_labels", "archive": "_labels.npz"}
    return {kind: folder / target.parent / f"{target.name}{ends[kind]}" for kind in kinds}


def run_clip(
    segmenter: Segmenter,
    source: Source,
    paths: dict[str, Path],
    options: ClipOptions,
    *,
    progress: Progress,
    report: Callable[[dict[str, object]], None],
    say: Callable[[str], None],
) -> Outcome:
    """Segment one clip into `paths`, by kind; `report` gets each frame's JSON line, `say` a line for people.

    Whatever ends it, an error or an interruption, the files hold the frames that were done, and are whole. Raises
    DiffSegError, or what a stage raised.
    """
    for path in paths.values():
        refuse_foreign(path)
    if options.show:
        check_window()
    clip = open_clip(
        source, start=options.start, size=options.size, rate=options.rate, reconnect=options.reconnect, say=say
    )
    try:
        form = VideoForm.of(clip)
        sinks = {kind: _sink(kind, path, form, say) for kind, path in paths.items()}
        worker = ClipSegmenter(segmenter, options, sinks, {*paths, *(["overlay"] if options.show else [])})
    except BaseException:
        clip.close()
        raise
    pipeline = worker.pipeline(clip)
    frames = 0
    began = time.perf_counter()
    task = progress.add_task(source.name, total=_expected(clip, options), detail="")

    def finished(job: Job) -> None:
        nonlocal frames
        frames += 1
        progress.update(task, completed=frames, detail=_rates(pipeline, frames, time.perf_counter() - began))
        report(_line(source, job))

    window = f"DiffSeg: {source.name}" if options.show else None
    with interruptions_held(pipeline.stop):
        try:
            for job in pipeline:
                finished(job)
                if window and not _show(window, job):
                    pipeline.stop()
        except BaseException:
            pipeline.stop()
            with contextlib.suppress(Exception):  # what it raises is known, or less than what is being raised
                collections.deque(pipeline, maxlen=0)
            _close(list(sinks.values()), quiet=True)
            raise
        finally:
            progress.remove_task(task)
            if window:
                _close_window(window)
        _close(list(sinks.values()))
    lost = tuple(clip.lost)
    if not frames:
        reason = "; ".join(lost) or "no frames" + (" between --start and --end" if options.start or options.end else "")
        raise DiffSegError(f"{source.name}: {reason}")
    if pipeline.dropped:
        say(f"{source.name}: {pipeline.dropped} frames came faster than they could be segmented, and were left out")
    seconds = time.perf_counter() - began
    busy = {name: spent / seconds for name, spent in pipeline.busy.items()}
    return Outcome(frames, seconds, busy, lost, tuple(paths.values()))


def _sink(kind: str, path: Path, form: VideoForm, say: Callable[[str], None]) -> Sink:
    if kind == "labels":
        return PngSink(path)
    return ArchiveSink(path) if kind == "archive" else VideoSink(path, form, say)


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


def _line(source: Source, job: Job) -> dict[str, object]:
    assert job.result is not None
    line: dict[str, object] = {
        "input": source.name,
        "frame": job.number,
        "time": round(float(job.frame.time), 6),
        "size": list(job.frame.image.shape[:2]),
        "segments": job.result.count,
    }
    if job.result.identities is not None:
        line["identities"] = job.result.identities.tolist()
    total = round(sum(job.milliseconds.values()), 3)
    return line | {"milliseconds": {**job.milliseconds, "total": total}}


def check_window() -> None:
    """Raise DiffSegError where no window can be opened. OpenCV's toolkit would abort the whole program instead."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise DiffSegError("--show: there is no display (DISPLAY is not set); leave it out, or run it on a desktop")
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('x'); cv2.waitKey(1)"]
    try:
        if subprocess.run(probe, capture_output=True, timeout=30).returncode == 0:
            return
    except subprocess.TimeoutExpired:
        pass
    raise DiffSegError(
        "--show: OpenCV cannot open a window here; expected a desktop and opencv-python, which opencv-python-headless "
        "is not"
    )


def _show(window: str, job: Job) -> bool:
    """Show the overlay; False once the person at the window wants no more (q, Esc, or the window is closed)."""
    import cv2

    cv2.imshow(window, job.pictures["overlay"])
    key = cv2.waitKey(1) & 0xFF
    return key not in (ord("q"), 27) and cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1


def _close_window(window: str) -> None:
    import cv2

    try:
        cv2.destroyWindow(window)
    except cv2.error:  # never opened, for no frame came
        return
