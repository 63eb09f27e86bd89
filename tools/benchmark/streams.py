"""Streams to be timed: photographs and clips through the stages, with an engine or with a stand-in for one."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engine.base import Engine
from tools.benchmark.common import resident

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter
    from runtime.stream.clip import Outcome
    from runtime.stream.options import ClipOptions

PHOTOGRAPH = (321, 481)  # pixels, as in BSDS500
SIZE, RATE = (360, 640), Fraction(25)  # of a drawn clip


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


def backends() -> list[str]:
    """Those installed that run the embedded engine."""
    from importlib.util import find_spec

    return [name for name in ("onnxruntime", "openvino") if find_spec(name) is not None]


def run_photographs_with(
    engine: str, pictures: str, sleep: float, kinds: Sequence[str] = ("overlay", "labels")
) -> dict[str, float]:
    """Seconds, processor seconds a photograph and peak MB. `engine`: a backend, or a stand-in: "maps" or "labels"."""
    from runtime.frames.find import find_sources
    from runtime.stream.options import ClipOptions
    from runtime.stream.run import Run

    sources, _ = find_sources([pictures])
    segmenter = open_segmenter(engine, sleep)
    with tempfile.TemporaryDirectory() as output:
        Run(segmenter.stages, Path(output) / "before", list(kinds), ClipOptions())(sources[:2])  # imports what it needs
        run = Run(segmenter.stages, Path(output), list(kinds), ClipOptions())
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
    """The embedded engine's merge on a backend; or a stand-in that sleeps, and gives its maps of a scene, or labels."""
    import numpy as np

    from runtime.engine.registry import open_engine
    from runtime.segmenter import Segmenter
    from tools.scenes.draw import draw_scene

    if engine not in ("maps", "labels"):
        return Segmenter(open_engine(None, "cpu", engine))
    opened = open_engine(None, "cpu", backends()[0])
    scene = draw_scene(0, (opened.spec.height, opened.spec.width))
    if engine == "maps":
        return Segmenter(SleepingEngine(opened, opened.infer(scene.frame[None]), sleep))
    labels: list[Any] = [scene.mask[None].astype(np.uint8), np.array([scene.mask.max() + 1], np.int32)]
    return Segmenter(SleepingEngine(opened, labels, sleep, "labels"))


def through(segmenter: Segmenter, source: Path, folder: Path, options: ClipOptions) -> Outcome:
    """Segment a clip as the command line does, into overlay and label pictures."""
    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.outputs.target import Target
    from runtime.stream.clip import run_clip

    def ignore(line: object) -> None:
        pass

    with Progress(disable=True) as progress:
        return run_clip(
            segmenter.stages,
            Source(source, Path("out"), "video"),
            Target(folder / "out", folder, source.name),
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
