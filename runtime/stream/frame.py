"""A frame on its way through the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import DiffSegError
from runtime.stream.continuity import Fate

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.frames.source import Source
    from runtime.frames.still import Still
    from runtime.hierarchy import Hierarchy
    from runtime.outputs.sinks import Sink
    from runtime.result import Merged, Result
    from runtime.stages import Stages


class Place(NamedTuple):
    """One output of a frame: its kind, where it goes, and which level of a hierarchy it shows, None for the labels."""

    kind: str
    sink: Sink
    level: int | None = None


@dataclass(slots=True)
class Job:
    """One frame. Each stage fills in its part and lets go of what nobody needs any more.

    Attributes:
        source: the photograph, or the clip it is of.
        still: gives the frame, where it is not there yet.
        turn: its place in the stream. `room`: pixels it takes up in memory.
        frame: uint8 [H, W, 3] BGR. `resized`: at the engine's size, where that is known before.
        number: of the frame in its clip. `time`: in seconds.
        places: where it is written.
        stages: how it is segmented, where not as the others of its stream: with other stages on the same engine.
        unwanted: set, from any thread, once nobody waits for it: what is left of its work is left out.
        fate: what becomes of it.
        levels: thresholds of a hierarchy that is wanted, too. `hierarchy`: it.
        error: why it could not be done, where its stream goes on with the others.
        colours: uint8 [N, 3] BGR of the labels, where they depend on the frames before.
        prepared: drawn and encoded, for every place. `written`: the files.
        milliseconds: wall time of each stage.
    """

    source: Source | None = None
    still: Still | None = None
    frame: NDArray[np.uint8] | None = None
    number: int = 0
    time: Fraction = Fraction(0)
    places: list[Place] = field(default_factory=list)
    stages: Stages | None = None
    unwanted: bool = False
    fate: Fate = Fate.SEGMENTED
    resized: NDArray[np.uint8] | None = None
    batch: NDArray[np.uint8] | None = None
    output: Any = None
    merged: Merged | None = None
    result: Result | None = None
    levels: tuple[float, ...] | None = None
    hierarchy: Hierarchy | None = None
    error: DiffSegError | None = None
    colours: NDArray[np.uint8] | None = None
    prepared: list[Any] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    turn: int = 0
    room: int = 0


def json_line(job: Job, more: Mapping[str, object] = MappingProxyType({})) -> dict[str, object]:
    """What `--json` prints of a frame; `more` follows its number."""
    assert job.source is not None and job.result is not None
    line: dict[str, object] = {"input": job.source.name, "frame": job.number, **more, "size": list(job.size)}
    line |= job.result.to_json()
    if job.hierarchy is not None:
        counted = zip(job.hierarchy.thresholds, job.hierarchy.counts, strict=True)
        line["hierarchy"] = [{"threshold": threshold, "segments": count} for threshold, count in counted]
    outputs = [str(path) for path in job.written]
    return line | {"outputs": outputs, "milliseconds": job.result.milliseconds}


def drop_unwanted(jobs: Sequence[Job]) -> bool:
    """Give up jobs where nobody waits for any of them; whether they are given up."""
    if not all(job.unwanted for job in jobs):
        return False
    for job in jobs:
        job.error = job.error or DiffSegError("nobody waits for this frame any more")
    return True


def is_segmented(job: Job) -> bool:
    """Whether the network is to see it."""
    return job.error is None and job.fate is Fate.SEGMENTED
