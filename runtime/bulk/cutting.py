"""Where a clip is cut: at changes of scene, by the tracker's own measure, and where a scene is too long."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from runtime.bulk.cluster import Resources, in_tasks
from runtime.bulk.inputs import CLIPS, Columns, kind_of
from runtime.bulk.manifest import Job, write_tables
from runtime.bulk.places import Place
from runtime.bulk.reading import table_rows
from runtime.errors import as_one_line

if TYPE_CHECKING:
    from runtime.frames.clip import Clip, Frame

COLUMNS = {
    "part": "int32",
    "start": "int64",
    "first": "int64",
    "stop": "int64",
    "begin": "string",
    "end": "string",
    "error": "string",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a clip, as a row of the manifest has it.

    Attributes:
        id, path: of the clip. `part`: its number in the clip.
        start: the frame with which reading begins. `first`: its own first frame, the same after a change of scene.
        stop: the frame behind its last.
        begin: time of the frame `start`, in seconds as a fraction. `end`: of the frame `stop`; None: the clip's end.
        error: why there is nothing of it.
    """

    id: str
    path: str
    part: int = 0
    start: int = 0
    first: int = 0
    stop: int = 0
    begin: str = "0"
    end: str | None = None
    error: str | None = None


def cut_clip(identity: str, path: str, most: int, overlap: int, pixels: int | None = None) -> list[dict[str, Any]]:
    """The parts of a clip, as rows of the manifest; one with an error where it cannot be read. Decodes all of it.

    `most`: frames between cuts, 0 for changes of scene alone; `overlap`: frames that two parts have in common.
    """
    from runtime.track.motion import MotionEstimator
    from runtime.track.tracker import TrackerConfig

    if pixels is not None:
        from runtime.frames.limits import set_most_pixels

        set_most_pixels(pixels)
    parts: list[Part] = []
    lost: list[str] = []
    try:
        with opened(path) as clip:
            estimator = MotionEstimator(TrackerConfig().side)
            times: deque[Fraction] = deque(maxlen=overlap + 1)
            scene, count = 0, 0
            for count, frame in enumerate(frames_of(clip), 1):
                index, moment = count - 1, str(frame.time)
                times.append(frame.time)
                if not parts:
                    estimator.start(frame.image)
                    parts.append(Part(identity, path, begin=moment))
                    continue
                fresh = estimator.step(frame.image)[1].cut
                if not fresh and not (most and index - parts[-1].first >= most):
                    continue
                scene = index if fresh else scene
                start = max(scene, index - overlap)
                parts[-1] = replace(parts[-1], stop=index, end=moment)
                begin = str(times[-1 - (index - start)])
                parts.append(Part(identity, path, len(parts), start, index, 0, begin))
            if parts:
                parts[-1] = replace(parts[-1], stop=count)
            lost = list(clip.lost) or ([] if parts else ["no frames"])
    except Exception as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        parts, lost = [], [str(as_one_line(error, identity))]
    if lost:
        parts.append(Part(identity, path, len(parts), error=f"{identity}: {'; '.join(lost)}"))
    return [{name: getattr(part, name) for name in Part.__slots__} for part in parts]


def cut_all(job: Job, output: Place, resources: Resources, most_pixels: int | None, say: Callable[[str], None]) -> Job:
    """The job of clips with their parts for its rows. Raises DiffSegError."""
    assert job.clips is not None
    length, overlap = job.clips
    clips = [(row["id"], row["path"], length, overlap, most_pixels) for row in table_rows(job, range(job.rows))]

    def rows() -> Iterator[dict[str, Any]]:
        for number, parts in enumerate(in_tasks(cut_clip, clips, resources), 1):
            say(f"cut {number} of {len(clips)} clips: {clips[number - 1][0]} in {len(parts)} parts")
            yield from parts

    tables = write_tables(output, rows(), "parts", COLUMNS)
    return replace(job, tables=tables, columns=Columns("path", True, "id"))


@contextlib.contextmanager
def opened(path: str, start: Fraction = Fraction(0)) -> Iterator[Clip]:
    """A clip, opened; one in a store is copied to this machine first."""
    from runtime.frames.opening import open_clip
    from runtime.frames.source import Source

    place = Place.of(path)
    with contextlib.ExitStack() as stack:
        if not place.is_local:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="diffseg-"))
            name = f"{folder}/{place.path.rpartition('/')[2]}"
            from pyarrow import fs

            with place.reading():
                fs.copy_files(place.path, name, source_filesystem=place.system)
            place = Place.of(name)
        kind = "video" if kind_of(place.path) == CLIPS else "image"
        clip = open_clip(Source(Path(place.path), Path("clip"), kind), start=start)
        stack.callback(clip.close)
        yield clip


def frames_of(clip: Clip, begin: Fraction = Fraction(0), end: str | None = None) -> Iterator[Frame]:
    """The frames of a clip from `begin`, in seconds, to `end`, a fraction of seconds; None: all that are left."""
    from runtime.frames.clip import frames_between

    return frames_between(clip, begin, None if end is None else Fraction(end), Event())
