"""Do the stages overlap, and what do they cost: `python -m tools.benchmark pipeline`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.engine.base import Engine
from tools.benchmark.common import in_fresh_process, machine, resident

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter
    from runtime.stream.clip import Outcome
    from runtime.stream.options import ClipOptions

PHOTOGRAPH = (321, 481)  # pixels, as in BSDS500
SHARE = 0.85  # of the rate that the network or the processor allows
OVERLAP_RATIO = 1.15
MEMORY_RATIO = 1.05
SLEEP = 0.005  # seconds a frame, of the engine's stand-in
SIZE, RATE = (360, 640), Fraction(25)


class Part(str, Enum):
    """What may be measured."""

    photographs = "photographs"
    stand_in = "stand-in"
    memory = "memory"
    clip = "clip"


class SleepingEngine(Engine):
    """Gives what another engine gave once, after a time in which it leaves the processor to the other stages."""

    def __init__(self, engine: Engine, outputs: list[NDArray[Any]], seconds: float, head: str | None = None) -> None:
        from dataclasses import replace

        self.spec = engine.spec if head is None else replace(engine.spec, head=head)
        self.device, self.path, self.asked = "cpu", engine.path, "cpu"
        self.outputs, self.seconds = outputs, seconds

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        time.sleep(self.seconds)
        return self.outputs

    def clone(self) -> SleepingEngine:
        """Itself: it has nothing to share."""
        return self


def pipeline(
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What to measure; may be repeated. All.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; default: drawn scenes.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Photographs; for memory also ten times as many.")] = 300,
    clip: Annotated[Path | None, typer.Option(help="A video of your own; default: a drawn one, 640x360.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames of the clip.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="Of the clip the engine sees every Nth frame.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Do the stages overlap, and what do they cost? With the embedded engine, overlay and labels written.

    photographs: their rate against what the network, or the processor, allows (at least 0.85 of it), and processor
    time outside of the network. stand-in: an engine that sleeps 5 ms a frame (at most 1.15 times the longer of its
    sleep and the other stages' processor time over the cores). memory: for ten times as many photographs at most 5 %
    more. clip: frames a second from file to file, which is only reported.
    Exit 1: a bound is missed.
    """
    wanted = parts or list(Part)
    report: dict[str, Any] = {"machine": machine(), "cores": _cores()}
    with tempfile.TemporaryDirectory() as folder:
        if {Part.photographs, Part.stand_in} & set(wanted):
            pictures = copy_photographs(photos, Path(folder) / "photographs", count)
        if Part.photographs in wanted:
            report["photographs"] = [measure_photographs(backend, pictures) for backend in _backends()]
        if Part.stand_in in wanted:
            report["stand_in"] = measure_stand_in(pictures, count)
        if Part.memory in wanted:
            report["memory"] = measure_memory(photos, Path(folder), count)
        if Part.clip in wanted:
            source = clip or draw_clip(Path(folder) / "clip.mp4", frames)
            report["clip"] = [in_fresh_process(run_clip_with, backend, str(source), every) for backend in _backends()]
    report["missed"] = _missed(report)
    typer.echo(json.dumps(report)) if as_json else _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def measure_photographs(backend: str, pictures: Path) -> dict[str, Any]:
    """Rate, bound and processor time of one backend."""
    whole = in_fresh_process(run_photographs_with, backend, str(pictures), 0.0)
    network = in_fresh_process(run_network, backend)
    outside = in_fresh_process(run_photographs_with, "maps", str(pictures), 0.0)
    allowed = min(1 / network["seconds"], _cores() / whole["processor"])
    return {
        "backend": backend,
        "per_second": round(1 / whole["seconds"], 2),
        "network_per_second": round(1 / network["seconds"], 2),
        "processor_ms": round(1e3 * whole["processor"], 2),
        "outside_network_ms": round(1e3 * outside["processor"], 2),
        "ratio": round(1 / whole["seconds"] / allowed, 3),
    }


def measure_stand_in(pictures: Path, count: int) -> dict[str, Any]:
    """Time of the whole over the longer of the stand-in's sleep and the other stages' share of the processor."""
    whole = in_fresh_process(run_photographs_with, "labels", str(pictures), SLEEP)
    floor = max(SLEEP, whole["processor"] / _cores())
    return {
        "frames": count,
        "ms": round(1e3 * whole["seconds"], 2),
        "processor_ms": round(1e3 * whole["processor"], 2),
        "ratio": round(whole["seconds"] / floor, 3),
    }


def measure_memory(photos: Path | None, folder: Path, count: int) -> dict[str, Any]:
    """Peak memory in MB for `count` photographs and for ten times as many, with labels at once."""
    peaks = []
    for number in (count, 10 * count):
        pictures = copy_photographs(photos, folder / str(number), number)
        peaks.append(in_fresh_process(run_photographs_with, "labels", str(pictures), 0.0)["peak"])
    few, many = peaks
    return {"photographs": [count, 10 * count], "peak_mb": [round(few), round(many)], "ratio": round(many / few, 3)}


# What follows runs in fresh processes.


def run_photographs_with(engine: str, pictures: str, sleep: float) -> dict[str, float]:
    """Seconds, processor seconds a photograph and peak MB. `engine`: a backend, or a stand-in: "maps" or "labels"."""
    from runtime.frames.find import find_sources
    from runtime.stream.options import ClipOptions
    from runtime.stream.run import Run

    sources, _ = find_sources([pictures])
    segmenter = open_segmenter(engine, sleep)
    with tempfile.TemporaryDirectory() as output:
        run = Run(segmenter.stages, Path(output), ["overlay", "labels"], ClipOptions())
        start, spent = time.perf_counter(), time.process_time()
        failed = run(sources)
        seconds, processor = time.perf_counter() - start, time.process_time() - spent
    if failed:
        sys.exit(f"error: {failed} photographs failed")
    return {"seconds": seconds / len(sources), "processor": processor / len(sources), "peak": resident("VmHWM")}


def run_network(backend: str) -> dict[str, float]:
    """Seconds and processor seconds a frame of the network by itself."""
    import numpy as np

    from runtime.engine.registry import open_engine

    engine = open_engine(None, "cpu", backend)
    frame = np.random.default_rng(0).integers(0, 256, (1, engine.spec.height, engine.spec.width, 3), np.uint8)
    for _ in range(5):
        engine.infer(frame)
    start, spent, count = time.perf_counter(), time.process_time(), 100
    for _ in range(count):
        engine.infer(frame)
    return {"seconds": (time.perf_counter() - start) / count, "processor": (time.process_time() - spent) / count}


def run_clip_with(backend: str, source: str, every: int) -> dict[str, Any]:
    """Frames a second of a clip from file to file, and the share of the time each stage worked."""
    from runtime.stream.options import ClipOptions

    with tempfile.TemporaryDirectory() as folder:
        outcome = through(open_segmenter(backend, 0.0), Path(source), Path(folder), ClipOptions(every=every))
    return {
        "backend": backend,
        "frames": outcome.frames,
        "per_second": round(outcome.frames / outcome.seconds, 2),
        "busy": {name: round(share, 3) for name, share in outcome.busy.items()},
    }


def open_segmenter(engine: str, sleep: float) -> Segmenter:
    """The embedded engine on a backend; or a stand-in that gives its maps of a scene, or labels, after a sleep."""
    import numpy as np

    from runtime.segmenter import Segmenter
    from tools.scenes.draw import draw_scene

    if engine not in ("maps", "labels"):
        return Segmenter.open(device="cpu", backend=engine)
    opened = Segmenter.open(device="cpu", backend=_backends()[0])
    scene = draw_scene(0, (opened.engine.spec.height, opened.engine.spec.width))
    if engine == "maps":
        return Segmenter(SleepingEngine(opened.engine, opened.engine.infer(scene.frame[None]), sleep), opened.config)
    labels: list[Any] = [scene.mask[None].astype(np.uint8), np.array([scene.mask.max() + 1], np.int32)]
    return Segmenter(SleepingEngine(opened.engine, labels, sleep, "labels"), opened.config)


def through(segmenter: Segmenter, source: Path, folder: Path, options: ClipOptions) -> Outcome:
    """Segment a clip as the command line does, into overlay and label pictures."""
    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.stream.clip import run_clip

    def ignore(line: object) -> None:
        pass

    with Progress(disable=True) as progress:
        return run_clip(
            segmenter.stages,
            Source(source, Path("out"), "video"),
            folder / "out",
            ["overlay", "labels"],
            options,
            progress=progress,
            report=ignore,
            say=ignore,
        )


def copy_photographs(photos: Path | None, folder: Path, count: int) -> Path:
    """A folder of `count` JPEGs: copies of those in `photos`, or of drawn scenes."""
    import cv2

    from runtime.frames.source import IMAGE_SUFFIXES
    from tools.scenes.draw import draw_scene

    folder.mkdir(parents=True)
    if photos is None:
        scenes = [draw_scene(seed, PHOTOGRAPH).frame for seed in range(min(count, 20))]
        originals = [(".jpg", cv2.imencode(".jpg", scene)[1].tobytes()) for scene in scenes]
    else:
        found = [path for path in sorted(photos.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES][:count]
        originals = [(path.suffix, path.read_bytes()) for path in found]
    if not originals:
        sys.exit(f"error: {photos}: no photographs")
    for number in range(count):
        suffix, data = originals[number % len(originals)]
        (folder / f"{number:05d}{suffix}").write_bytes(data)
    return folder


def draw_clip(path: Path, frames: int) -> Path:
    """A moving drawn scene as a video."""
    from runtime.outputs.form import ClipForm
    from runtime.outputs.movie import VideoSink
    from tools.scenes.moving import draw_moving_scene

    scene = draw_moving_scene(0, SIZE, split="test")
    sink = VideoSink(path, ClipForm(RATE, 1 / RATE))
    for number in range(frames):
        # There and back, for a long walk would lead out of the picture.
        sink.write(number, number / RATE, scene.frame(20 - abs(number % 40 - 20)))
    sink.close()
    return path


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _backends() -> list[str]:
    """Those installed that run the embedded engine."""
    from importlib.util import find_spec

    return [name for name in ("onnxruntime", "openvino") if find_spec(name) is not None]


def _missed(report: dict[str, Any]) -> list[str]:
    missed = [
        f"photographs with {found['backend']}: {found['ratio']} of the rate allowed, at least {SHARE}"
        for found in report.get("photographs", [])
        if found["ratio"] < SHARE
    ]
    for name, bound in (("stand_in", OVERLAP_RATIO), ("memory", MEMORY_RATIO)):
        if name in report and report[name]["ratio"] > bound:
            missed.append(f"{name.replace('_', '-')}: {report[name]['ratio']}, at most {bound}")
    return missed


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    say = Console().print
    say(f"{report['machine']['cpu']}, {report['cores']} to use", highlight=False)
    for found in report.get("photographs", []):
        say(
            f"photographs, {found['backend']}: {found['per_second']} a second, {found['ratio']} of what is allowed "
            f"(network alone {found['network_per_second']} a second; processor {found['processor_ms']} ms each, of "
            f"which outside of the network {found['outside_network_ms']})",
            highlight=False,
        )
    if found := report.get("stand_in"):
        say(
            f"stand-in: {found['ms']} ms a photograph, processor {found['processor_ms']} ms, {found['ratio']} times "
            f"the least (at most {OVERLAP_RATIO})",
            highlight=False,
        )
    if found := report.get("memory"):
        few, many = found["peak_mb"]
        say(f"memory: {few} MB and {many} MB for {found['photographs']} photographs", highlight=False)
    for found in report.get("clip", []):
        busy = ", ".join(f"{name} {share:.0%}" for name, share in found["busy"].items())
        say(f"clip, {found['backend']}: {found['per_second']} frames a second ({busy})", highlight=False)
    for line in report["missed"]:
        say(f"MISSED: {line}", style="bold red", highlight=False)
