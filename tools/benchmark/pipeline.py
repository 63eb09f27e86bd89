"""Do the stages of video overlap, and how fast is a clip from file to file: `python -m tools.benchmark pipeline`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.engine.base import Engine

if TYPE_CHECKING:
    import numpy as np

    from runtime.segmenter import Segmenter
    from runtime.stream.clip import ClipOptions
    from runtime.stream.run import Outcome

OVERLAP_RATIO = 1.15
AIM = 10.0  # frames per second from end to end
SIZE, RATE = (360, 640), Fraction(25)


class SleepingEngine(Engine):
    """Gives the maps another engine gave once, after a time in which it leaves the processor to the other stages."""

    def __init__(self, engine: Engine, maps: list[np.ndarray], seconds: float) -> None:
        self.spec, self.device, self.path, self.asked = engine.spec, "cpu", engine.path, "cpu"
        self.maps, self.seconds = maps, seconds

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        time.sleep(self.seconds)
        return self.maps

    def clone(self) -> SleepingEngine:
        """Itself: it has nothing to share."""
        return self


def pipeline(
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    clip: Annotated[Path | None, typer.Option(help="A video of your own; default: a drawn one, 640x360.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames of the clip.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="From end to end: the engine sees every Nth frame.")] = 1,
    backend: Annotated[str | None, typer.Option(help="onnxruntime or openvino.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Do the stages of video overlap? And how many frames a second go from file to file?

    First an engine's stand-in sleeps twice as long as all other stages together take: the clip may take no more than
    1.15 times the stand-in's own time. Then the engine itself; that rate is the machine's, and only reported.
    Exit 1: the stages do not overlap.
    """
    from runtime.errors import DiffSegError
    from runtime.segmenter import Segmenter
    from runtime.stream.clip import ClipOptions
    from tools.benchmark.common import machine

    try:
        segmenter = Segmenter.open(engine, backend=backend)
        with tempfile.TemporaryDirectory() as folder:
            source = clip or draw_clip(Path(folder) / "clip.mp4", frames)
            # A clip of another rate may be a little shorter than this, which changes no ratio.
            options = ClipOptions(end=None if clip is None else _seconds(clip, frames))
            overlap = measure_overlap(segmenter, source, Path(folder), options)
            whole = through(segmenter, source, Path(folder), ClipOptions(end=options.end, every=every))
    except DiffSegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    rate = whole.frames / whole.seconds
    report: dict[str, Any] = {
        "machine": machine(),
        "engine": str(engine or "embedded"),
        "backend": type(segmenter.engine).__name__,
        "every": every,
        "overlap": overlap,
        "whole": {"frames": whole.frames, "per_second": round(rate, 2), "busy": _rounded(whole.busy)},
    }
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    raise typer.Exit(1 if overlap["ratio"] > OVERLAP_RATIO else 0)


def measure_overlap(segmenter: Segmenter, source: Path, folder: Path, options: ClipOptions) -> dict[str, Any]:
    """Time of a clip over the sleep of its engine's stand-in, and what the other stages took meanwhile."""
    import numpy as np

    from runtime.segmenter import Segmenter
    from tools.scenes.moving import draw_moving_scene

    frame = segmenter.resize(draw_moving_scene(0, SIZE).frame(0))
    maps = segmenter.engine.infer(np.repeat(frame[None], segmenter.engine.spec.batch or 1, axis=0))
    stand_in = SleepingEngine(segmenter.engine, maps, 0.0)
    awake = through(Segmenter(stand_in, segmenter.config), source, folder, options)
    others = sum(share for name, share in awake.busy.items() if name != "network") * awake.seconds / awake.frames
    stand_in.seconds = 2 * others
    asleep = through(Segmenter(stand_in, segmenter.config), source, folder, options)
    slept = stand_in.seconds * asleep.frames
    return {
        "frames": asleep.frames,
        "engine_ms": round(stand_in.seconds * 1e3, 2),
        "others_ms": round(others * 1e3, 2),
        "seconds": round(asleep.seconds, 2),
        "ratio": round(asleep.seconds / slept, 3),
        "busy": _rounded(asleep.busy),
    }


def through(segmenter: Segmenter, source: Path, folder: Path, options: ClipOptions) -> Outcome:
    """Segment a clip as the command line does, into overlay and label pictures."""
    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.stream.run import clip_paths, run_clip

    def ignore(line: object) -> None:
        pass

    paths = clip_paths(folder, Path("out"), ["overlay", "labels"])
    with Progress(disable=True) as progress:
        return run_clip(
            segmenter,
            Source(source, Path("out"), "video"),
            paths,
            options,
            progress=progress,
            report=ignore,
            say=ignore,
        )


def draw_clip(path: Path, frames: int) -> Path:
    """A moving drawn scene as a video."""
    from runtime.outputs.movie import VideoForm, VideoSink
    from tools.scenes.moving import draw_moving_scene

    scene = draw_moving_scene(0, SIZE, split="test")
    sink = VideoSink(path, VideoForm(RATE, 1 / RATE))
    for number in range(frames):
        # There and back, for a long walk would lead out of the picture.
        sink.write(number, number / RATE, scene.frame(20 - abs(number % 40 - 20)))
    sink.close()
    return path


def _seconds(path: Path, frames: int) -> Fraction:
    from runtime.frames.clip import DEFAULT_RATE
    from runtime.frames.opening import open_clip
    from runtime.frames.source import Source

    clip = open_clip(Source(path, path, "video"))
    clip.close()
    return frames / (clip.rate or DEFAULT_RATE)


def _rounded(busy: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in busy.items()}


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    overlap, whole = report["overlap"], report["whole"]
    table = Table(title=f"{report['engine']} ({report['backend']}), {report['machine']['cpu']}")
    table.add_column("share of the time at work")
    table.add_column("stand-in", justify="right")
    table.add_column("engine", justify="right")
    for name in overlap["busy"]:
        table.add_row(name, f"{overlap['busy'][name]:.0%}", f"{whole['busy'][name]:.0%}")
    console = Console()
    console.print(table)
    console.print(
        f"stand-in: {overlap['engine_ms']} ms a frame, all other stages {overlap['others_ms']} ms; {overlap['frames']} "
        f"frames in {overlap['ratio']} times the stand-in's own time (at most {OVERLAP_RATIO})"
    )
    console.print(f"engine: {whole['frames']} frames, {whole['per_second']} a second from file to file (aim: {AIM:g})")
