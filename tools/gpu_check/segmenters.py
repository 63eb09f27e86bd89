"""Segmenters on a GPU: labels in the graph, automatic thresholds, a second card, a clip, memory over many frames."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from tools.gpu_check.bench import ROOT, Bench, Skipped

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter

FRAMES, GROWTH = 2000, 64e6  # of the part `memory`: frames, and bytes that may be added after the first of them
LABELS_HEAD = 0.02  # share of the pixels that may differ: on a GPU products may be in TF32


def open_tiny(bench: Bench, folder: Path, auto: bool = False) -> Segmenter:
    """The tiny engine's merge on the GPU, through what is installed. Raises Skipped where nothing is that can."""
    from runtime import Segmenter
    from runtime.engine.registry import EMBEDDED, open_engine

    return Segmenter(open_engine(_engine(bench, folder, EMBEDDED), bench.name), auto=auto)


def _engine(bench: Bench, folder: Path, engine: Path) -> Path:
    """The engine itself where ONNX Runtime has CUDA; otherwise a plan of it."""
    with suppress(ImportError):
        import onnxruntime

        if bench.dry or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return engine
    from export.plan.build import PlanRequest, build_plan
    from export.progress import Phases

    try:
        build_plan(engine, folder / f"{engine.stem}.plan", PlanRequest(device=bench.device), Phases())
    except DiffSegError as error:
        raise Skipped(f"neither ONNX Runtime with CUDA nor TensorRT: {error}") from None
    return folder / f"{engine.stem}.plan"


def labels_head(bench: Bench) -> dict[str, Any]:
    """An engine that has the whole of DiffSeg in its graph: its labels on the GPU are the CPU's.

    It is of Stable Diffusion's shape, small, with random weights. In a dry run the tiny engine takes its place.
    """
    import numpy as np

    from export.check.labels import differing_when_matched
    from export.check.maps import random_frame
    from runtime import Segmenter
    from runtime.engine.registry import EMBEDDED, open_engine
    from tools.gpu_check.plans import stages

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = EMBEDDED if bench.dry else _labels_engine(folder)
        here = Segmenter(open_engine(path, "cpu", "onnxruntime"))
        there = Segmenter(open_engine(_engine(bench, folder, path), bench.name))
        frame = random_frame(here.engine.spec.height, here.engine.spec.width)
        found, expected = there(frame), here(frame)
        times = stages(there, frame, bench.repeat)["milliseconds"]
    differ = float(differing_when_matched(found.labels[None], expected.labels[None]))
    return {
        "segments": [found.count, expected.count],
        "labels_differ": differ,
        "pixels_differ": float(np.mean(found.labels != expected.labels)),
        "milliseconds": times,
        "missed": [f"{differ:.2%} of the labels differ from the CPU's"] if differ > LABELS_HEAD else [],
    }


def _labels_engine(folder: Path) -> Path:
    from export.engine import ExportRequest, export_engine
    from tools.tiny.random_pipelines import save_random_pipeline

    model = save_random_pipeline(folder / "small")
    request = ExportRequest(model=str(model), size=(128, 192), head="labels", thresholds=(0.8, 0.75), grid=12)
    export_engine(request, folder / "labels.onnx", check=False)
    return folder / "labels.onnx"


def auto(bench: Bench) -> dict[str, Any]:
    """Segments that are chosen for each frame: the same on the GPU and on the CPU, and what they cost."""
    import numpy as np

    from runtime import Segmenter
    from runtime.engine.registry import open_engine
    from runtime.frames.decode import read_frame
    from tools.gpu_check.plans import LABELS, PICTURE, stages

    frame = read_frame(PICTURE)
    with tempfile.TemporaryDirectory() as folder:
        there = open_tiny(bench, Path(folder), auto=True)
        usual = open_tiny(bench, Path(folder))
        here = Segmenter(open_engine(None, "cpu", "onnxruntime"), auto=True)
        found, expected = there(frame), here(frame)
        differ = float(np.mean(found.labels != expected.labels))
        times = {
            name: stages(each, frame, bench.repeat)["milliseconds"]
            for name, each in (("auto", there), ("usual", usual))
        }
    missed = [f"{differ:.2%} of the labels differ from the CPU's"] if differ > LABELS else []
    if found.count != expected.count:
        missed.append(f"found {found.count} segments, the CPU {expected.count}")
    return {"segments": found.count, "labels_differ": differ, "milliseconds": times, "missed": missed}


def second_gpu(bench: Bench) -> dict[str, Any]:
    """The same engine on two cards in turns, and maps of one card refused on the other."""
    import numpy as np

    from runtime.frames.decode import read_frame
    from runtime.gpu.probe import check_driver
    from tools.gpu_check.plans import LABELS, PICTURE

    if not bench.dry and check_driver() < 2:
        raise Skipped("this machine has one GPU")
    other = replace(bench, device=bench.device if bench.dry else 1 - min(bench.device, 1))
    frame = read_frame(PICTURE)
    with tempfile.TemporaryDirectory() as folder:
        segmenters = [open_tiny(each, Path(folder)) for each in (bench, other)]
        labels = [segmenters[turn % 2](frame).labels for turn in range(4)]
    differ = max(float(np.mean(each != labels[0])) for each in labels)
    missed = [f"{differ:.2%} of the labels differ between the cards"] if differ > LABELS else []
    return {"labels_differ": differ, "missed": missed}


def video(bench: Bench) -> dict[str, Any]:
    """A clip through the command line, as people run it: frames per second, and whole files."""
    import cv2

    from runtime.engine.registry import EMBEDDED
    from runtime.frames.decode import read_frame
    from tools.gpu_check.plans import PICTURE

    picture = cv2.resize(read_frame(PICTURE), (640, 480))
    count = 12 if bench.dry else 300
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (640, 480))
        for index in range(count):
            writer.write(picture[:, [(column + 2 * index) % 640 for column in range(640)]])
        writer.release()
        engine = _engine(bench, folder, EMBEDDED)
        command = [sys.executable, "-m", "runtime.segment", str(folder / "clip.avi"), "--engine", str(engine)]
        command += ["--device", bench.name, "--output", str(folder / "out"), "--save", "labels", "--temporal", "off"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        written = sorted(path.name for path in (folder / "out").rglob("*") if path.is_file())
    missed = [] if done.returncode == 0 and written else [f"exit {done.returncode}: {done.stderr[-1000:]}"]
    return {"frames_per_second": count / seconds, "files": len(written), "missed": missed}


def memory(bench: Bench) -> dict[str, Any]:
    """2,000 frames: memory on the card and on the host after the first tenth and at the end."""
    from runtime.frames.decode import read_frame
    from tools.gpu_check.plans import PICTURE, _free

    frame, count = read_frame(PICTURE), 20 if bench.dry else FRAMES
    with tempfile.TemporaryDirectory() as folder:
        segmenter = open_tiny(bench, Path(folder))
        for _ in range(count // 10):
            segmenter(frame)
        free, held = _free(bench), _resident()
        for _ in range(count - count // 10):
            segmenter(frame)
        grown = {"gpu_mb": (free - _free(bench)) / 1e6, "host_mb": (_resident() - held) / 1e6}
    missed = [f"{name} grew by {size:.0f} MB" for name, size in grown.items() if size * 1e6 > GROWTH]
    return {"frames": count, "grown": grown, "missed": missed}


def _resident() -> float:
    """Most memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most * (1 if sys.platform == "darwin" else 1024))
